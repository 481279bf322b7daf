"""Whose fault it is that something cannot be read: faults are put into os.open and os.read, since root may read everything."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from datasets import regular_file
from datasets.batch import ImageSet, ImagesUnavailable, UnreadableImage
from datasets.cached import CachedSource
from datasets.clean import first_readable, load_images
from datasets.fashion_mnist import FashionMnist
from datasets.folder import ImageFolder
from datasets.glyphs import Glyphs, matplotlib_fonts_dir
from datasets.index.image_index import WrongIndex

Pauses = list[float]
MACHINES = [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK, errno.EAGAIN]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """The pauses that were asked for; none is made."""
    slept: Pauses = []
    monkeypatch.setattr(regular_file.time, "sleep", slept.append)
    return slept


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    for name in ("a", "b", "c"):
        save(tmp_path / "root" / "cat" / f"{name}.png")
    return ImageFolder(tmp_path / "root")


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (10, 20, 30)).save(path)
    return path


def fails(monkeypatch: pytest.MonkeyPatch, call: str, number: int, times: int = 10**9, of: str = "") -> None:
    """os.<call> raises this error so many times, for paths (or, for read, always) that have `of` in them."""
    whole, left = getattr(os, call), [times]

    def failing(first, *others, **named):
        if left[0] and (isinstance(first, int) or of in os.fsdecode(first)):
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return whole(first, *others, **named)

    monkeypatch.setattr(os, call, failing)


@pytest.mark.parametrize("number", MACHINES)
@pytest.mark.parametrize("call", ["open", "read"])
def test_an_error_of_the_machine_is_tried_again_and_then_ends_the_run(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses, number: int, call: str
) -> None:
    fails(monkeypatch, call, number)
    with pytest.raises(ImagesUnavailable) as error:
        folder.image(1)
    assert str(error.value) == f"cannot read cat/b.png: {os.strerror(number)}"
    assert pauses == list(regular_file.PAUSES_SECONDS)
    assert 1.5 < sum(pauses) < 3
    assert pauses == sorted(pauses)


@pytest.mark.parametrize("call", ["open", "read"])
def test_what_the_machine_gives_at_the_second_try_is_the_image(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses, call: str
) -> None:
    fails(monkeypatch, call, errno.ESTALE, times=2)
    assert folder.image(1)[0, 0].tolist() == [10, 20, 30]
    assert len(pauses) == 2


@pytest.mark.parametrize("number", [errno.EIO, errno.EUCLEAN, errno.EBADMSG])
def test_a_file_that_fails_twice_while_others_come_is_unreadable_and_others_are_read_on(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses, number: int
) -> None:
    fails(monkeypatch, "open", number, of="b.png")
    for _ in range(2):
        pauses.clear()
        with pytest.raises(UnreadableImage) as error:
            folder.image(1)
        assert error.value.name == "cat/b.png"
        assert error.value.reason == f"{os.strerror(number)}, twice, while other images come"
        assert pauses == [0.1]
    assert folder.image(2).shape == (4, 6, 3)


def test_a_sector_that_is_read_at_the_second_try_is_an_image(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses
) -> None:
    fails(monkeypatch, "open", errno.EIO, times=1, of="b.png")
    assert folder.image(1)[0, 0].tolist() == [10, 20, 30]
    assert pauses == [0.1]


def test_a_sector_in_the_middle_of_a_file_is_found_where_it_is_read(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses
) -> None:
    """The first byte comes, and what is read of others comes too."""
    real = os.read

    def read(descriptor: int, size: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("b.png") and size > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, size)

    monkeypatch.setattr(os, "read", read)
    with pytest.raises(UnreadableImage, match="Input/output error, twice"):
        folder.image(1)


def test_a_disk_that_fails_for_all_and_a_file_without_witnesses_end_the_run(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    save(tmp_path / "one" / "b.png")
    alone = ImageFolder(tmp_path / "one")
    fails(monkeypatch, "read", errno.EIO)
    for source in (folder, alone):
        with pytest.raises(ImagesUnavailable, match="Input/output error"):
            source.image(0)
    monkeypatch.undo()
    monkeypatch.setattr(regular_file.time, "sleep", pauses.append)
    fails(monkeypatch, "open", errno.EIO, of="b.png")
    with pytest.raises(ImagesUnavailable, match="Input/output error"):
        alone.image(0)


def test_a_disk_that_goes_between_two_failures_is_not_the_files_fault(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses
) -> None:
    answers = iter([True, False, True, False, False])
    monkeypatch.setattr("datasets.indexed.any_answers", lambda _: next(answers))
    fails(monkeypatch, "open", errno.EIO)
    with pytest.raises(ImagesUnavailable):
        folder.image(1)
    assert len(pauses) == len(regular_file.PAUSES_SECONDS)


def test_witnesses_are_read_from_the_disk_at_any_offset_and_need_a_byte_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.fsencode(tmp_path / "a")
    Path(os.fsdecode(path)).write_bytes(bytes(200_000))
    dropped: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *advice: dropped.append(advice))
    before = len(os.listdir("/proc/self/fd"))
    assert regular_file.any_answers([(path, 0)])
    assert regular_file.any_answers([(b"/nowhere", 0), (path, 199_999)])
    assert not regular_file.any_answers([(path, 200_000)])
    assert not regular_file.any_answers([])
    assert not regular_file.any_answers([(os.fsencode(tmp_path), 0)])
    assert [
        (start <= place < start + length, how)
        for place, (start, length, how) in zip((0, 199_999), dropped, strict=False)
    ] == [(True, os.POSIX_FADV_DONTNEED)] * 2
    assert len(os.listdir("/proc/self/fd")) == before


# ---- what is not as it was listed


def test_a_file_of_another_size_than_listed_is_named_as_changed_and_not_shown(
    folder: ImageFolder, pauses: Pauses
) -> None:
    path = folder.root / "cat" / "b.png"
    was = path.read_bytes()
    Image.new("RGB", (60, 40)).save(path)
    with pytest.raises(UnreadableImage) as error:
        folder.image(1)
    assert (
        error.value.reason == f"changed since it was listed: {path.stat().st_size:,} bytes, it was {len(was):,} bytes"
    )
    path.write_bytes(was)
    assert folder.image(1).shape == (4, 6, 3)
    assert not pauses


def test_a_file_in_the_place_of_a_link_to_nothing_is_named_as_changed(tmp_path: Path) -> None:
    save(tmp_path / "root" / "a.png")
    (tmp_path / "root" / "b.png").symlink_to(tmp_path / "later.png")
    folder = ImageFolder(tmp_path / "root")
    with pytest.raises(UnreadableImage, match="No such file"):
        folder.image(1)
    save(tmp_path / "later.png")
    with pytest.raises(UnreadableImage, match="bytes, it was a link to nothing"):
        folder.image(1)
    assert ImageFolder(tmp_path / "root").image(1).shape == (4, 6, 3)


@pytest.mark.parametrize("read", [regular_file.read_whole, lambda *one: regular_file.open_content(*one).read()])
def test_a_file_that_was_written_again_is_named_as_changed_where_the_list_has_times(
    tmp_path: Path, read: Callable[..., bytes]
) -> None:
    path = save(tmp_path / "a.png")
    status = path.stat()
    listed = regular_file.Listed(status.st_size, status.st_mtime_ns)
    assert read(str(path), listed) == read(str(path)) == path.read_bytes()
    os.utime(path, ns=(0, status.st_mtime_ns + 1))
    with pytest.raises(regular_file.Changed, match="written again, as long as it was"):
        read(str(path), listed)
    assert read(str(path), regular_file.Listed(status.st_size)) == path.read_bytes()


def test_a_file_that_changes_while_it_is_read_is_named_as_changed(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regular_file, "_rest", lambda *_: b"half")
    with pytest.raises(UnreadableImage, match="changed while it was read: 4 bytes, it was"):
        folder.image(1)


def test_no_memory_to_decode_is_the_machines(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", full)
    with pytest.raises(ImagesUnavailable, match=r"cat/a\.png: out of memory"):
        folder.image(0)
    assert len(pauses) == len(regular_file.PAUSES_SECONDS)


@pytest.mark.parametrize(
    "number", [errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EISDIR]
)
def test_what_is_the_files_own_fault_is_not_waited_for(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses, number: int
) -> None:
    fails(monkeypatch, "open", number)
    with pytest.raises(UnreadableImage) as error:
        folder.image(2)
    assert (error.value.name, error.value.reason) == ("cat/c.png", os.strerror(number))
    assert not pauses


def test_a_root_that_vanished_is_not_the_fault_of_its_images(folder: ImageFolder, pauses: Pauses) -> None:
    folder.root.rename(folder.root.with_name("elsewhere"))
    with pytest.raises(ImagesUnavailable, match=r"cat/a\.png: data.root \(.*root\) is gone, or another directory"):
        folder.image(0)
    folder.root.mkdir()  # the place where a disk was mounted, say
    with pytest.raises(ImagesUnavailable, match="is gone, or another directory lies there now"):
        folder.image(0)
    folder.root.rmdir()
    folder.root.with_name("elsewhere").rename(folder.root)
    assert folder.image(0).shape == (4, 6, 3)


def test_a_root_that_comes_back_in_time_is_read_on(folder: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder.root.with_name("elsewhere")
    folder.root.rename(elsewhere)
    monkeypatch.setattr(regular_file.time, "sleep", lambda _: elsewhere.exists() and elsewhere.rename(folder.root))
    assert folder.image(0).shape == (4, 6, 3)


def test_a_file_that_is_removed_alone_is_unreadable(folder: ImageFolder, pauses: Pauses) -> None:
    (folder.root / "cat" / "b.png").unlink()
    with pytest.raises(UnreadableImage, match=r"cat/b\.png: No such file"):
        folder.image(1)
    assert folder.image(2).shape == (4, 6, 3)


def test_a_process_may_change_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "root" / "a.png")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = ImageFolder(Path("root"))
    monkeypatch.chdir(tmp_path / "other")
    assert folder.image(0).shape == (4, 6, 3)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))


def _link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def _directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_fifo, "a FIFO, not a regular file"),
        (_link_to_fifo, "a FIFO, not a regular file"),
        (_directory, "a directory, not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a regular file"),
        (lambda path: path.symlink_to("/dev/stdin/x"), "Not a directory"),
        (_socket, os.strerror(errno.ENXIO)),
    ],
)
def test_only_regular_files_are_opened_and_nothing_is_waited_for(
    folder: ImageFolder, make: Callable[[Path], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.root)
    image = folder.root / "cat" / "b.png"
    image.unlink()
    make(image)
    with pytest.raises(UnreadableImage) as error:
        folder.image(1)
    assert error.value.reason == reason


def test_a_link_to_a_fifo_is_unreadable_and_a_fifo_no_image(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").symlink_to("b.jpg")
    source = ImageFolder(tmp_path)
    assert [source.instance_name(i) for i in range(len(source))] == ["a.png", "c.jpg"]
    assert source.notes == (f"{tmp_path}/b.jpg (a FIFO): not a regular file, left out",)
    with pytest.raises(UnreadableImage, match="a FIFO, not a regular file"):
        source.image(1)


def test_no_descriptor_stays_open(folder: ImageFolder) -> None:
    (folder.root / "cat" / "b.png").write_bytes(b"no image")
    (folder.root / "cat" / "c.png").unlink()
    os.mkfifo(folder.root / "cat" / "c.png")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        folder.image(0)
        for instance in (1, 2):
            with pytest.raises(UnreadableImage):
                folder.image(instance)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate"])
def test_a_file_that_is_too_large_to_be_read_whole_is_read_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: Pauses, compression: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression)
    folder = ImageFolder(tmp_path)
    monkeypatch.setattr(regular_file, "WHOLE_BYTES", 100)
    before = len(os.listdir("/proc/self/fd"))
    np.testing.assert_array_equal(folder.image(0), pixels)
    fails(monkeypatch, "readv", errno.EIO)
    with pytest.raises(ImagesUnavailable, match="Input/output error"):
        folder.image(0)
    assert len(os.listdir("/proc/self/fd")) == before


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
