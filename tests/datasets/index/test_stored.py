"""An index on the disk: the same as in memory, whole after any kill, and damage is noticed before it is used."""

import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import regular_file
from datasets.batch import ImagesUnavailable
from datasets.index import packed, stored
from datasets.index.image_index import Held, ImageIndex, WrongIndex
from datasets.index.rows import GROUP, Labels
from datasets.index.stored import COLUMNS, HEADER, Header, Writer, opened, read_header
from tests.datasets.index.sets import index_of, many, paths_of, rows_of


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regular_file.time, "sleep", lambda _: None)


def write(directory: Path, walk: list[Any], *cuts: int, is_whole: bool = True) -> None:
    """In the pieces that end at these numbers."""
    labels = Labels()
    rows = rows_of(walk, labels)
    with Writer(directory, Header("folder")) as writer:
        for first, stop in zip((0, *cuts), (*cuts, len(walk)), strict=True):
            writer.add(rows.piece(first, stop), labels.names, begins_run=first == 0)
        if is_whole:
            writer.put_header(is_whole=True)


@pytest.mark.parametrize("cuts", [(), (1,), (GROUP,), (GROUP - 1, GROUP + 1, 2 * GROUP), (100, 100, 9000)])
def test_what_was_written_in_pieces_is_the_index_in_memory(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    walk = many(2 * GROUP + 1234)
    write(tmp_path / "index", walk, *cuts)
    index, held = opened(tmp_path / "index"), index_of(walk)
    assert len(index) == len(held) and index.label_names == held.label_names and index.runs == [0]
    for count in (1, GROUP - 1, GROUP, 9000, len(walk)):
        assert index.fingerprint(count) == held.fingerprint(count)
    for instance in (0, 1, GROUP - 1, GROUP, 5000, len(walk) - 1):
        assert index.entry(instance) == held.entry(instance)  # the group is compared with its checksums
        assert index.entry(instance) == held.entry(instance)  # three reads, no arrays
    assert (index.labels() == held.labels()).all()
    assert list(index.piece(4000, 9300).each_path()) == list(held.piece(4000, 9300).each_path())
    assert pickle.loads(pickle.dumps(index)).entry(5000) == held.entry(5000)


def test_images_that_are_appended_change_no_number_before_them(tmp_path: Path) -> None:
    walk, more = many(GROUP + 10), many(700, first=10**6)
    write(tmp_path / "index", walk)
    before = opened(tmp_path / "index")
    prints = before.fingerprint(len(walk))
    with Writer(tmp_path / "index") as writer:
        writer.add(rows_of(more), writer_names(before), begins_run=True)
    after = opened(tmp_path / "index")
    assert len(after) == len(walk) + 700 and after.runs == [0, len(walk)]
    assert after.fingerprint(len(walk)) == prints
    assert paths_of(after)[: len(walk)] == paths_of(before)
    assert before.entry(GROUP + 9) == after.entry(GROUP + 9)  # who had it open sees what was there


def writer_names(index: ImageIndex) -> list[bytes]:
    return index.label_names


def test_a_kill_at_any_write_leaves_what_was_there_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before its k-th write, or in the middle of it."""
    walk = many(GROUP + 100)
    rows = rows_of(walk, labels := Labels())
    whole = tmp_path / "whole"
    write(whole, walk, 50, 3000)
    base = tmp_path / "base"
    write(base, walk[:3000], 50, is_whole=False)
    plain = os.pwrite
    ended = 0
    for at in range(20):
        for share in (0.0, 0.5):
            directory = tmp_path / "now"
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(base, directory)
            writes = 0

            def dying(descriptor: int, content: Any, offset: int, at: int = at, share: float = share) -> int:
                nonlocal writes
                writes += 1
                if writes == at + 1:
                    plain(descriptor, content[: int(len(content) * share)], offset)
                    raise KeyboardInterrupt
                return plain(descriptor, content, offset)

            with monkeypatch.context() as patch, Writer(directory) as writer:
                patch.setattr(os, "pwrite", dying)
                try:
                    writer.add(rows.piece(3000, len(walk)), labels.names, begins_run=False)
                except KeyboardInterrupt:
                    ended += 1
            header = read_header(directory)
            assert header is not None and header.count in (3000, len(walk))
            left = stored.index_of(directory, header)
            assert left.fingerprint(3000) == opened(whole).fingerprint(3000)
            assert left.entry(2999) == rows.entry(2999)
            with Writer(directory) as writer:
                if writer.header.count == 3000:
                    writer.add(rows.piece(3000, len(walk)), labels.names, begins_run=False)
                writer.put_header(is_whole=True)
            for name in COLUMNS:
                assert (directory / name).read_bytes() == (whole / name).read_bytes(), name
    assert ended >= 10


@pytest.mark.parametrize("name", ["entries", "ends", "paths"])
def test_a_flipped_bit_is_noticed_before_it_is_used_and_only_where_it_is(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "index"
    walk = many(3 * GROUP)
    write(directory, walk)
    content = bytearray((directory / name).read_bytes())
    content[len(content) // 2] ^= 4
    (directory / name).write_bytes(content)
    index = opened(directory)
    assert index.entry(0).path == walk[0][0]
    assert index.entry(3 * GROUP - 1).path == walk[-1][0]
    with pytest.raises(ImagesUnavailable, match=rf"the images {GROUP:,} to {2 * GROUP - 1:,} are damaged; restore it"):
        index.entry(GROUP + 1)
    with pytest.raises(ImagesUnavailable, match="are damaged"):
        index.labels()


@pytest.mark.parametrize("name", ["entries", "ends", "paths", "checks", "labels"])
def test_a_column_that_is_cut_is_an_error_and_no_crash(tmp_path: Path, name: str) -> None:
    write(tmp_path / "index", many(2 * GROUP))
    os.truncate(tmp_path / "index" / name, 5)
    with pytest.raises(ImagesUnavailable, match="shorter than the index says"):
        opened(tmp_path / "index").entry(2 * GROUP - 1)


@pytest.mark.parametrize("name", ["entries", "ends", "paths"])
def test_a_column_that_is_cut_or_overwritten_while_it_is_open_is_an_error_too(tmp_path: Path, name: str) -> None:
    write(tmp_path / "index", many(2 * GROUP))
    index = opened(tmp_path / "index")
    index.entry(2 * GROUP - 2)
    whole = (tmp_path / "index" / name).read_bytes()
    os.truncate(tmp_path / "index" / name, 5)
    with pytest.raises(ImagesUnavailable, match="shorter than the index says"):
        index.entry(2 * GROUP - 1)
    (tmp_path / "index" / name).write_bytes(b"\xff" * len(whole))
    if name == "ends":  # would be paths of no length, or longer than all of them
        with pytest.raises(ImagesUnavailable, match="are damaged"):
            index.entry(2 * GROUP - 1)
    else:  # found when the group is compared again, by the next process
        with pytest.raises(ImagesUnavailable, match="are damaged"):
            opened(tmp_path / "index").entry(2 * GROUP - 1)


@pytest.mark.parametrize("damage", ["checks", "header", "later", "nothing", "unfinished", "no labels"])
def test_what_is_wrong_with_the_whole_is_told_when_it_is_opened(tmp_path: Path, damage: str) -> None:
    directory = tmp_path / "index"
    write(directory, many(2 * GROUP), is_whole=damage != "unfinished")
    if damage == "checks":
        (directory / "checks").write_bytes(b"\1" * 16)
    elif damage == "header":
        text = (directory / HEADER).read_text().replace('"count": 8192', '"count": 8191')
        (directory / HEADER).write_text(text)
    elif damage == "later":
        (directory / HEADER).write_text((directory / HEADER).read_text().replace('"format": 1', '"format": 2'))
    elif damage == "nothing":
        shutil.rmtree(directory)
    elif damage == "no labels":
        (directory / "labels").unlink()
    with pytest.raises(WrongIndex, match=r"restore|job=index") as error:
        opened(directory)
    assert len(str(error.value).splitlines()) == 1


def test_a_group_is_compared_once_whichever_process_comes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "index", many(3 * GROUP))
    index = opened(tmp_path / "index")
    child = multiprocessing.get_context("fork").Process(target=index.entry, args=(GROUP + 3,))
    child.start()
    child.join()
    assert child.exitcode == 0

    def refused(*_: object) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr(stored.Stored, "_checked", refused)
    assert index.entry(GROUP + 7).path == many(3 * GROUP)[GROUP + 7][0]
    with pytest.raises(AssertionError, match="read again"):
        index.entry(0)


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    write(tmp_path / "index", many(5))

    def write_too() -> None:
        with pytest.raises(ValueError, match=r"another job writes into .*index; wait for it"):
            Writer(tmp_path / "index")

    with Writer(tmp_path / "index"):
        child = multiprocessing.get_context("fork").Process(target=write_too)
        child.start()
        child.join()
    assert child.exitcode == 0
    Writer(tmp_path / "index").close()


def test_hashes_grow_behind_and_damage_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "index", many(50))
    hashes = np.arange(1, 51, dtype=np.uint64) << np.uint64(57)
    with Writer(tmp_path / "index") as writer:
        writer.add_hashes(hashes[:20])
        writer.add_hashes(hashes[20:])
    with Writer(tmp_path / "index") as writer:
        assert writer.header.hashed == 50 and (writer.hashes() == hashes).all()
        assert opened(tmp_path / "index").fingerprint(50) == index_of(many(50)).fingerprint(50)
        (tmp_path / "index" / "hashes").write_bytes(b"\0" * 400)
        with pytest.raises(WrongIndex, match="damaged"):
            writer.hashes()


# ---- in one file


def test_a_packed_index_is_the_same_and_may_be_cut_to_its_first_images(tmp_path: Path) -> None:
    index = index_of(many(100)).grown(rows_of(many(7, first=500)), [b"x\xff"])
    packed.write(index, "train", tmp_path / "index")
    content = packed.read_content(tmp_path / "index")
    again, split = packed.unpacked(content, tmp_path / "index")
    assert split == "train" and paths_of(again) == paths_of(index) and again.label_names == [b"x\xff"]
    assert again.runs == [0, 100] and again.fingerprint(107) == index.fingerprint(107)
    first, _ = packed.unpacked(content, tmp_path / "index", 60)
    assert len(first) == 60 and first.runs == [0] and first.fingerprint(60) == index.fingerprint(60)
    with pytest.raises(WrongIndex, match="lists 107 of 108 images; restore it"):
        packed.unpacked(content, tmp_path / "index", 108)


def test_any_damage_to_a_packed_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index"
    packed.write(ImageIndex("folder", Held(rows_of(many(3))), [0], [b"000"]), "", path)
    content = path.read_bytes()
    for at in range(1, len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1
        with pytest.raises(WrongIndex):
            packed.unpacked(bytes(damaged), path)
    for length in range(1, len(content)):
        with pytest.raises(WrongIndex):
            packed.unpacked(content[:length], path)
