"""A file that is another one than the list has is named as changed, and not shown."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from datasets import regular_file
from datasets.batch import UnreadableImage
from datasets.folder import ImageFolder
from tests.datasets.faulty_reads import Pauses, save


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
