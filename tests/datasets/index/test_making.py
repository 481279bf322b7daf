"""An index is made by several processes as one would make it, goes on after a kill, and takes what is new behind."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.folder import ImageFolder
from datasets.index import making, parallel_walk
from datasets.index.content_hash import content_hash, copies_of, hashes_of
from datasets.index.parallel_walk import walked
from datasets.index.stored import opened, read_header
from datasets.walk import Walk
from tests.datasets.index.sets import paths_of


def tree(root: Path) -> Path:
    """Directories in each other, names that sort around a slash, and what is left out."""
    for name in (
        "a/b/c/1.png",
        "a/b/c.png",
        "a/b.png",
        "a.png",
        "a-/x.png",
        "a0/y.png",
        "b/2.jpg",
        "b/1.jpg",
        "c/d/e/f/3.gif",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    for number in range(30):
        (root / f"many/{number % 7}").mkdir(parents=True, exist_ok=True)
        (root / f"many/{number % 7}/{number:02}.png").write_text("x" * number)
    (root / "b/notes.heic").touch()
    (root / "c/loop").symlink_to(root)
    (root / "c/gone.png").symlink_to("nowhere")
    (root / "empty").mkdir()
    os.mkfifo(root / "c/pipe.png")
    return root


def make(root: Path, directory: Path) -> making.Made:
    return making.of_folder(directory, Walk(os.fsencode(root)), "", 2, lambda _: None)


def test_several_processes_list_what_one_does_in_its_order_with_its_notes(tmp_path: Path) -> None:
    root = tree(tmp_path / "root")
    one, several = Walk(os.fsencode(root)), Walk(os.fsencode(root))
    expected = list(one)
    found = []
    for rows, _ in walked(several, 3, lambda _: True):
        found += zip(rows.each_path(), rows.entries_n["size"].tolist(), rows.entries_n["stamp"].tolist(), strict=True)
    assert found == expected and several.notes == one.notes and len(one.notes) == 3


def test_an_index_that_is_made_ahead_is_that_of_a_start_that_lists(tmp_path: Path) -> None:
    root = tree(tmp_path / "root")
    made = make(root, tmp_path / "index")
    plain = ImageFolder(root)
    kept = ImageFolder(root, stored=tmp_path / "index")
    assert made.added == len(kept) == len(plain) and made.notes == plain.notes
    assert kept.fingerprint() == plain.fingerprint()
    assert [kept.instance_name(n) for n in range(len(kept))] == [plain.instance_name(n) for n in range(len(plain))]
    shutil.rmtree(root / "many")
    assert len(ImageFolder(root, stored=tmp_path / "index")) == len(plain)  # nothing is listed


def test_labels_are_those_of_a_start_that_lists(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("b/1.png", "a/2.png", "c/d/3.png", "a-/4.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    make(root, tmp_path / "index")
    (root / "aa").mkdir()
    (root / "aa" / "5.png").touch()
    make(root, tmp_path / "index")
    kept = ImageFolder(root, "folders", stored=tmp_path / "index")
    labels = kept.labels()
    assert labels is not None and kept.label_names == ["a", "a-", "aa", "b", "c"]
    assert [kept.label_names[label] for label in labels] == ["a-", "a", "b", "c", "aa"]


@pytest.mark.parametrize("at", [0, 1, 3, 6])
def test_a_listing_that_is_killed_goes_on_behind_what_it_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    root = tree(tmp_path / "root")
    monkeypatch.setattr(making, "_ADD_IMAGES", 4)
    monkeypatch.setattr(parallel_walk, "_PIECE", 2)
    plain, adds = making._add, 0

    def dying(*arguments: Any) -> None:
        nonlocal adds
        if adds == at:
            raise KeyboardInterrupt
        adds += 1
        plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(making, "_add", dying)
        with pytest.raises(KeyboardInterrupt):
            make(root, tmp_path / "index")
    header = read_header(tmp_path / "index")
    assert header is None if at == 0 else header is not None and not header.is_whole and 0 < header.count < 40
    with pytest.raises(ValueError, match=r"job=index"):
        opened(tmp_path / "index")
    make(root, tmp_path / "index")
    index = opened(tmp_path / "index")
    assert paths_of(index) == [os.fsdecode(path) for path, *_ in Walk(os.fsencode(root))]
    assert index.runs == [0] and index.fingerprint(len(index)) == ImageFolder(root).fingerprint()


def test_what_is_new_comes_behind_and_what_is_gone_or_changed_is_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "root")
    before = make(root, tmp_path / "index").index
    (root / "a.png").unlink()
    (root / "b/1.jpg").write_text("another text")
    for name in ("0.png", "zz.png", "b/15.jpg"):
        (root / name).touch()
    made = make(root, tmp_path / "index")
    assert made.added == 3 and paths_of(made.index)[len(before) :] == ["0.png", "b/15.jpg", "zz.png"]
    assert paths_of(made.index)[: len(before)] == paths_of(before)
    assert made.index.fingerprint(len(before)) == before.fingerprint(len(before))
    assert made.changes.first_gone == ("a.png",) and made.changes.first_resized == ("b/1.jpg",)
    assert make(root, tmp_path / "index").added == 0


def test_a_directory_without_images_or_with_another_index_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "root")
    make(root, tmp_path / "index")
    with pytest.raises(ValueError, match=r"is the index of a folder; choose another directory"):
        making.of_folder(tmp_path / "index", Walk(os.fsencode(root)), "train", 1, lambda _: None)


# ---- copies


class Zeros:
    def digest(self) -> bytes:
        return bytes(8)


def test_a_hash_is_eight_bytes_of_blake2b_and_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert content_hash(b"a") == int.from_bytes(hashlib.blake2b(b"a", digest_size=8).digest(), "little")
    monkeypatch.setattr(hashlib, "blake2b", lambda *_, **__: Zeros())
    assert content_hash(b"a") == 1


def test_exact_copies_are_found_whatever_they_are_called(tmp_path: Path) -> None:
    root = tree(tmp_path / "root")
    for name in ("b/copy.jpg", "x.png", "z.png"):
        shutil.copy(root / "b/1.jpg", root / name)
    shutil.copy(root / "a.png", root / "many/a.png")
    source = ImageFolder(root)
    hashes = [one for some in hashes_of(source, 0, 2) for one in some.tolist()]
    assert hashes[3:] == [one for some in hashes_of(source, 3, 1) for one in some.tolist()]
    names = [source.instance_name(instance) for instance in range(len(source))]
    assert [one for one in hashes if one] == [content_hash((root / n).read_bytes()) for n in names if n != "c/gone.png"]
    copies = copies_of(np.array(hashes, np.uint64))
    assert (copies.images, copies.groups, copies.unknown) == (6, 2, 1)
    assert [[names[instance] for instance in one] for one in copies.first] == [
        ["a.png", "many/a.png"],
        ["b/1.jpg", "b/copy.jpg", "x.png", "z.png"],
    ]
    assert copies_of(np.empty(0, np.uint64)).groups == 0
