"""Runs of versions that kept a list of paths, and took sha256 over paths and sizes for a set's fingerprint, go on."""

import hashlib
import json
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.index import packed
from datasets.index.image_index import WrongIndex
from datasets.index.old_list import old_fingerprint, translated
from tests.conftest import REPOSITORY
from tests.datasets.index.sets import found, index_of, many, paths_of

# Written by the version before there was an index: a run of 16 images that went on with 19, one of which it could not read.
GOLDEN = REPOSITORY / "tests" / "datasets" / "golden" / "listed_run"


def test_the_old_fingerprint_is_paths_and_then_sizes() -> None:
    walk = many(5000)
    content = b"".join(path + b"\0" for path, *_ in walk)
    sizes = struct.pack("<5000q", *(size for _, size, _ in walk))
    assert old_fingerprint(index_of(walk), 5000) == hashlib.sha256(b"folder\n" + content + sizes).hexdigest()
    changed = [(path, 3 if number == 4500 else size, stamp) for number, (path, size, stamp) in enumerate(walk)]
    assert old_fingerprint(index_of(changed), 5000, {4500: walk[4500][1]}) == old_fingerprint(index_of(walk), 5000)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from("abcdefghij"), min_size=1), st.sets(st.sampled_from("abcdefghij")), st.data())
def test_a_list_and_a_walk_are_an_index(old: set[str], new: set[str], data: st.DataObject) -> None:
    listed = [*sorted(old), *sorted(new - old)]
    content = "".join(f"{name}\0" for name in listed).encode()
    count = data.draw(st.integers(1, len(listed)))
    extra = data.draw(st.sets(st.sampled_from("klm")))
    there = found(*listed, *extra)
    index = translated(content, Path("list"), count, there)
    assert paths_of(index) == [*listed[:count], *sorted({*listed[count:], *extra})]
    by_name = {path.decode(): (size, stamp) for path, size, stamp in there}
    entries = [index.entry(number) for number in range(len(index))]
    assert [(entry.size, entry.stamp) for entry in entries] == [by_name[entry.path.decode()] for entry in entries]
    assert index.runs[0] == 0 and index.runs == sorted(set(index.runs))
    gone = [one for one in there if one[0].decode() != listed[0]]
    with pytest.raises(WrongIndex, match=rf"{listed[0]} was instance 0 of this run and is gone.*--fresh"):
        translated(content, Path("list"), count, gone)


def test_a_run_of_the_version_before_goes_on_with_its_images(run, capsys, tmp_path) -> None:
    root, checkpoints = tmp_path / "photos", run.output / "checkpoints"
    shutil.copytree(GOLDEN / "photos", root)
    shutil.copytree(GOLDEN / "checkpoints", checkpoints)
    config = json.loads((GOLDEN / "config.json").read_text())
    config["data"]["root"] = str(root)
    listed = (checkpoints / "images.index").read_bytes()
    assert listed.startswith(b"m00.png\0") and listed.count(b"\0") == 19
    shutil.copy(root / "m02.png", root / "m03.png")  # the one that could not be read is repaired
    shutil.copy(root / "m02.png", root / "new.png")
    assert run("steps=9", config=config) == 0
    said = capsys.readouterr().out
    assert "going on after step 6" in said and "1 images were added" in said
    content = (checkpoints / "images.index").read_bytes()
    index, split = packed.unpacked(content, checkpoints / "images.index")
    assert split == "" and paths_of(index) == [*listed[:-1].decode().split("\0"), "new.png"]
    assert run("steps=10", config=config) == 0  # from the index, and a checkpoint of today
    assert run.summary()["instances"] == 20


def test_a_run_of_the_version_before_whose_images_changed_is_refused(run, capsys, tmp_path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(GOLDEN / "photos", root)
    shutil.copytree(GOLDEN / "checkpoints", run.output / "checkpoints")
    config = json.loads((GOLDEN / "config.json").read_text())
    config["data"]["root"] = str(root)
    before = (root / "m05.png").read_bytes()
    (root / "m05.png").write_bytes(before + b"more")
    assert run("steps=9", config=config) == 2
    assert "the images changed since" in capsys.readouterr().err
    (root / "m05.png").unlink()
    assert run("steps=9", config=config) == 2
    assert "m05.png was instance 5 of this run and is gone" in capsys.readouterr().err
