"""Files that are added, removed or renamed between two starts of a run: each start keeps the numbers of all before."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.batch import UnreadableImage
from datasets.catalog import Kept, open_source
from datasets.digits import Digits
from datasets.folder import ImageFolder
from tests.datasets.pictures import names, save


def start_again(root: Path, index: Path, labels: Path | None = None) -> ImageFolder:
    """As launch.py does it: with the index of the start before, if there was one, and saving it anew."""
    source = ImageFolder(root, labels, known=index if index.exists() else None)
    source.save_index(index)
    return source


def test_added_files_come_after_the_known_ones_wherever_their_names_sort(tmp_path: Path) -> None:
    root, index = tmp_path / "root", tmp_path / "index"
    for path in ("b/1.png", "d.png", "m/x.png"):
        save(root / path)
    first = start_again(root, index)
    assert names(first) == ["b/1.png", "d.png", "m/x.png"]
    for path in ("z.png", "a.png", "b/0.png", "b/2.png", "e.png", "b.png"):
        save(root / path, colour=(200, 0, 0))
    second = start_again(root, index)
    assert names(second) == [*names(first), "a.png", "b.png", "b/0.png", "b/2.png", "e.png", "z.png"]
    for path in ("0.png", "c.png", "zz.png"):
        save(root / path)
    third = start_again(root, index)
    assert names(third) == [*names(second), "0.png", "c.png", "zz.png"]
    assert names(start_again(root, index)) == names(third)
    assert third.image(1)[0, 0].tolist() == [10, 20, 30]
    assert third.image(3)[0, 0].tolist() == [200, 0, 0]
    assert names(ImageFolder(root)) == sorted(names(third), key=os.fsencode)


STEMS = ["a", "a/a", "a/b", "a0", "b", "b.c", "b/a", "c/a/b", "ä"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.sampled_from(STEMS), min_size=1), min_size=1, max_size=4))
def test_each_start_keeps_the_numbers_of_all_before_and_sorts_what_is_new(additions: list[set[str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root, index = Path(directory) / "root", Path(directory) / "index"
        expected: list[str] = []
        for added in additions:
            files = {f"{name}.png" for name in added}
            for name in files:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text("x" * len(name))
            expected += sorted(files - set(expected), key=os.fsencode)
            source = start_again(root, index)
            assert names(source) == expected
            for count in range(1, len(expected) + 1):
                assert source.file_bytes(count - 1) == len(expected[count - 1])


def test_the_fingerprint_of_the_first_images_is_that_of_the_folder_without_the_others(tmp_path: Path) -> None:
    root, index = tmp_path / "root", tmp_path / "index"
    save(root / "b.png")
    save(root / "c.png")
    before = start_again(root, index)
    save(root / "a.png")
    after = ImageFolder(root, known=index)
    assert after.fingerprint(2) == before.fingerprint() == before.fingerprint(2)
    assert after.fingerprint(3) == after.fingerprint() != before.fingerprint()
    assert after.fingerprint() != ImageFolder(root).fingerprint()  # other numbers
    with (root / "c.png").open("ab") as file:
        file.write(b"\0")
    changed = ImageFolder(root, known=index)
    assert changed.fingerprint(2) == before.fingerprint(2)  # the index knows what it was
    assert changed.changes.resized.tolist() == [1] and "c.png" in changed.notes[0]
    assert ImageFolder(root).fingerprint(3) != after.fingerprint(3)


def test_a_known_file_that_is_gone_keeps_its_number_and_is_told_and_counted(tmp_path: Path) -> None:
    root, index = tmp_path / "root", tmp_path / "index"
    for name in "bdfh":
        save(root / f"{name}.png")
    start_again(root, index)
    save(root / "a.png")
    whole = start_again(root, index)
    (root / "f.png").rename(root / "g.png")
    source = ImageFolder(root, known=index)
    assert names(source) == ["b.png", "d.png", "f.png", "h.png", "a.png", "g.png"]
    assert source.changes.gone.tolist() == [2]
    assert source.notes == ("1 image is gone and skipped; a number is never given to another one: f.png",)
    assert source.fingerprint(5) == whole.fingerprint()
    with pytest.raises(UnreadableImage, match=r"f\.png: No such file"):
        source.image(2)
    (root / "a.png").unlink()
    (root / "h.png").unlink()
    assert ImageFolder(root, known=index).changes.gone.tolist() == [2, 3, 4]
    for name in "bdg":
        (root / f"{name}.png").unlink()
    assert ImageFolder(root, known=index).changes.gone.tolist() == [0, 1, 2, 3, 4]
    assert "b.png, d.png, f.png, ..." in ImageFolder(root, known=index).notes[0]
    save(root / "f.png")
    back = ImageFolder(root, known=index)
    assert back.changes.gone.tolist() == [0, 1, 3, 4]
    assert back.image(2).shape == (4, 6, 3)


def test_an_index_keeps_any_bytes_that_a_name_may_have(tmp_path: Path) -> None:
    root, index = tmp_path / "root", tmp_path / "index"
    odd = [b"caf\xe9.png", b"new\nline.png", b"\x01.png", b"\xff\xfe.png", b" .png", b"new\n/line.png"]
    save(root / "plain.png")
    start_again(root, index)
    (root / "new\n").mkdir()
    for name in odd:
        (root / os.fsdecode(name)).write_bytes((root / "plain.png").read_bytes())
    grown = start_again(root, index)
    assert [grown.index.entry(i).path for i in range(len(grown))] == [b"plain.png", *sorted(odd)]
    again = start_again(root, index)
    assert again.fingerprint() == grown.fingerprint()
    assert all(again.image(i).shape == (4, 6, 3) for i in range(len(again)))
    (root / os.fsdecode(odd[0])).unlink()
    assert r"caf\xe9.png" in ImageFolder(root, known=index).notes[0]


def test_an_index_is_replaced_whole_or_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, index = tmp_path / "root", tmp_path / "index"
    save(root / "a.png")
    start_again(root, index)
    before = index.read_bytes()
    save(root / "b.png")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    grown = ImageFolder(root, known=index)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            grown.save_index(index)
    assert index.read_bytes() == before
    start_again(root, index)
    assert index.read_bytes().endswith(b"a.png\0b.png\0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "root"]


@pytest.mark.parametrize("content", [b"", b"a.png", b"a.png\0b.p"])
def test_an_index_that_is_cut_short_is_refused(tmp_path: Path, content: bytes) -> None:
    save(tmp_path / "root" / "a.png")
    (tmp_path / "index").write_bytes(content)
    with pytest.raises(ValueError, match=r"index is not a whole list of images; restore it, or start over"):
        ImageFolder(tmp_path / "root", known=tmp_path / "index")


def test_labels_follow_the_numbers_of_a_grown_folder(tmp_path: Path) -> None:
    root, index, table = tmp_path / "root", tmp_path / "index", tmp_path / "labels.csv"
    for path in ("dog/1.png", "dog/3.png"):
        save(root / path)
    start_again(root, index)
    for path in ("cat/1.png", "dog/2.png"):
        save(root / path)
    table.write_text("path,label\ncat/1.png,c\ndog/1.png,d1\ndog/2.png,d2\ndog/3.png,d3\n")
    by_folder, by_table = ImageFolder(root, "folders", index), ImageFolder(root, table, index)
    assert names(by_table) == ["dog/1.png", "dog/3.png", "cat/1.png", "dog/2.png"]
    assert [by_folder.label_names[label] for label in by_folder.labels()] == ["dog", "dog", "cat", "dog"]
    assert [by_table.label_names[label] for label in by_table.labels()] == ["d1", "d3", "c", "d2"]
    table.write_text("path,label\ndog/1.png,d1\ndog/3.png,d3\n")
    with pytest.raises(ValueError, match=r"no line for cat/1\.png \(2 of 4 images have no label\)"):
        ImageFolder(root, table, index)


def test_the_catalog_gives_the_index_to_a_folder_and_to_nothing_else(tmp_path: Path) -> None:
    root, index = tmp_path / "root", tmp_path / "index"
    save(root / "b.png")
    start_again(root, index)
    save(root / "a.png")
    options: dict[str, Any] = {"image_size": 8, "limit": None, "held_out": (), "labels": None, "kept": Kept(index)}
    source = open_source("folder", root=str(root), **options)
    assert [source.instance_name(i) for i in range(2)] == ["b.png", "a.png"]
    digits = open_source("digits", root=None, **options)
    digits.save_index(tmp_path / "unwritten")
    assert digits.fingerprint() == Digits("train").fingerprint()
    assert not (tmp_path / "unwritten").exists()
