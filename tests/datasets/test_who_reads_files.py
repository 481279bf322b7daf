"""Labels, index, fonts, caches and evaluation tell the machine's errors as the images do."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets import regular_file
from datasets.batch import ImageSet, ImagesUnavailable
from datasets.cached import CachedSource
from datasets.clean import first_readable, load_images
from datasets.fashion_mnist import FashionMnist
from datasets.folder import ImageFolder
from datasets.glyphs import Glyphs, matplotlib_fonts_dir
from datasets.index.image_index import WrongIndex
from tests.datasets.faulty_reads import Pauses, fails, save

# ---- the same wherever else a file is opened


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE])
@pytest.mark.parametrize("call", ["open", "read"])
def test_labels_index_fonts_and_idx_files_know_the_machines_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: Pauses, number: int, call: str
) -> None:
    save(tmp_path / "root" / "a.png")
    (tmp_path / "labels.csv").write_text("path,label\na.png,x\n")
    (tmp_path / "index").write_bytes(b"a.png\0")
    (tmp_path / "mnist").mkdir()
    for kind in ("images-idx3", "labels-idx1"):
        (tmp_path / "mnist" / f"train-{kind}-ubyte").write_bytes(b"")
    openings: list[Callable[[], object]] = [
        lambda: ImageFolder(tmp_path / "root", tmp_path / "labels.csv"),
        lambda: ImageFolder(tmp_path / "root", known=tmp_path / "index"),
        lambda: FashionMnist(tmp_path / "mnist", "train"),
        lambda: Glyphs(matplotlib_fonts_dir(), 16),
    ]
    fails(monkeypatch, call, number)
    for opening in openings:
        pauses.clear()
        with pytest.raises(ImagesUnavailable, match=os.strerror(number)):
            opening()
        assert len(pauses) == len(regular_file.PAUSES_SECONDS)


def test_a_fifo_in_the_place_of_labels_index_font_or_idx_file_is_a_mistake_told_in_a_line(tmp_path: Path) -> None:
    save(tmp_path / "root" / "a.png")
    os.mkfifo(tmp_path / "pipe")
    for place in ("fonts/a.ttf", "fonts2/a.ttc", "mnist/train-images-idx3-ubyte"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).symlink_to(tmp_path / "pipe")
    openings: list[tuple[Callable[[], object], str]] = [
        (lambda: ImageFolder(tmp_path / "root", tmp_path / "pipe"), "pipe is not a file; .*a FIFO"),
        (
            lambda: ImageFolder(tmp_path / "root", known=tmp_path / "pipe"),
            "pipe is a FIFO, not a regular file; restore it",
        ),
        (lambda: Glyphs(tmp_path / "fonts", 16), r"a\.ttf cannot be read as a font \(a FIFO"),
        (lambda: Glyphs(tmp_path / "fonts2", 16), r"a\.ttc cannot be read as a font \(a FIFO"),
        (lambda: FashionMnist(tmp_path / "mnist", "train"), "is a file in"),
    ]
    for opening, message in openings:
        with pytest.raises(ValueError, match=message) as error:
            opening()
        assert "\n" not in str(error.value)


def test_a_font_is_not_lost_with_the_disk_once_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ttf").write_bytes((matplotlib_fonts_dir() / "DejaVuSans-Bold.ttf").read_bytes())
    source = Glyphs(tmp_path, 16)
    expected = source.image(40)
    (tmp_path / "a.ttf").unlink()
    np.testing.assert_array_equal(source.image(40), expected)


def test_an_index_that_is_a_directory_or_gone_is_wrong(tmp_path: Path) -> None:
    save(tmp_path / "root" / "a.png")
    for known in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(WrongIndex, match="restore it, or start over with --fresh"):
            ImageFolder(tmp_path / "root", known=known)


# ---- what stands above a source


def test_the_machines_error_passes_the_cache_and_the_evaluation(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses
) -> None:
    fails(monkeypatch, "open", errno.EIO)
    with pytest.raises(ImagesUnavailable):
        CachedSource(folder).fill([0])
    with pytest.raises(ImagesUnavailable):
        load_images(folder, np.arange(3), 4)


def test_the_first_readable_image_of_a_set_is_found_without_reading_on(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_text("<html>")
    save(tmp_path / "3.png")
    folder, asked = ImageFolder(tmp_path), []

    def load(start: int, stop: int):
        asked.append(start)
        return load_images(folder, np.arange(start, stop), 4)

    images = ImageSet("pictures", 5, load)
    assert first_readable(images, 100) == 3
    assert asked == [0, 1, 2, 3]
    assert first_readable(images, 3) is None
    assert first_readable(ImageSet("none", 0, load), 5) is None
