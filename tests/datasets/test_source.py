"""What holds for every source, be it of files or not."""

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets.cached import CachedSource
from datasets.digits import Digits
from datasets.fashion_mnist import FashionMnist
from datasets.folder import ImageFolder
from datasets.glyphs import Glyphs, matplotlib_fonts_dir
from datasets.source import Source

SIZES = {"a.jpg": 3, "x/b.png": 0, "x/c.gif": 70}


def photos(root: Path) -> Source:
    for name, size_bytes in SIZES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * size_bytes)
    return ImageFolder(root)


def fonts(root: Path) -> Source:
    root.mkdir()
    (root / "a.ttf").symlink_to(matplotlib_fonts_dir() / "DejaVuSans-Bold.ttf")
    return Glyphs(root, 16)


def clothes(root: Path) -> Source:
    root.mkdir()
    for name, values in (("images-idx3", np.zeros((5, 28, 28), np.uint8)), ("labels-idx1", np.zeros(5, np.uint8))):
        header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
        (root / f"train-{name}-ubyte").write_bytes(header + values.tobytes())
    return FashionMnist(root, "train")


SOURCES = [photos, fonts, clothes, lambda _: Digits("train"), lambda root: CachedSource(photos(root))]


@pytest.mark.parametrize("make", SOURCES, ids=["folder", "glyphs", "fashion_mnist", "digits", "cached"])
def test_the_sizes_that_files_had_may_stand_in_for_todays(tmp_path: Path, make: Callable[[Path], Source]) -> None:
    source = make(tmp_path / "root")
    print_, some = source.fingerprint(), source.fingerprint(2)
    assert isinstance(source.notes, tuple)
    sizes = [source.file_bytes(instance) for instance in range(3)]
    assert source.fingerprint(None, dict(enumerate(sizes))) == print_ == source.fingerprint(were={})
    assert source.fingerprint(2, {1: sizes[1], 2: 10**6, 10**7: 1}) == some  # those behind the first 2 do not count
    is_of_files = source.name == "folder"
    assert any(sizes) == is_of_files
    assert (source.fingerprint(2, {1: sizes[1] + 1}) != some) == is_of_files
    assert source.fingerprint() == print_  # what was asked for once changes nothing


def test_the_fingerprint_of_earlier_versions_is_known(tmp_path: Path) -> None:
    source = ImageFolder(photos(tmp_path / "root").root)
    expected = hashlib.sha256(b"folder\na.jpg\0x/b.png\0x/c.gif\0" + struct.pack("<3q", 3, 0, 70)).hexdigest()
    assert source.was_fingerprint(3, {}) == expected
    (tmp_path / "root" / "x" / "b.png").unlink()
    os.symlink("gone", tmp_path / "root" / "x" / "b.png")
    broken = ImageFolder(tmp_path / "root")
    assert broken.file_bytes(1) == -1
    assert broken.was_fingerprint(3, {1: 0}) == expected
    assert broken.fingerprint(were={1: 0}) == source.fingerprint()


def test_an_index_is_written_beside_a_link_and_not_through_it(tmp_path: Path) -> None:
    source = photos(tmp_path / "root")
    (tmp_path / "thesis").write_text("my thesis")
    for name in ("index", "index.partial"):
        (tmp_path / name).symlink_to("thesis")
    source.save_index(tmp_path / "index")
    assert (tmp_path / "thesis").read_text() == "my thesis"
    assert (tmp_path / "index").read_bytes().endswith(b"a.jpg\0x/b.png\0x/c.gif\0")
    assert not (tmp_path / "index").is_symlink()
