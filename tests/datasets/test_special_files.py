"""Only regular files are opened: nothing waits for a pipe, and no descriptor stays open."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import regular_file
from datasets.batch import ImagesUnavailable, UnreadableImage
from datasets.folder import ImageFolder
from tests.datasets.faulty_reads import Pauses, fails, save


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
