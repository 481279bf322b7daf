"""An index numbers images for ever, and a fingerprint of the first ones is that of the set that had no others."""

import hashlib
import pickle
from itertools import pairwise

import google_crc32c
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.index.image_index import Held, ImageIndex
from datasets.index.rows import GROUP, Labels, Rows, joined, renumbered
from tests.datasets.index.sets import index_of, many, paths_of, rows_of


def slow_fingerprint(index: ImageIndex, count: int) -> str:
    """Group by group, entry by entry."""
    digest = hashlib.sha256(f"pic-engine images\n{index.kind}\n{count}\n".encode())
    for first in range(0, count, GROUP):
        entries = [index.entry(number) for number in range(first, min(first + GROUP, count))]
        content = b"".join(entry.path + b"\0" for entry in entries)
        content += b"".join(entry.size.to_bytes(8, "little", signed=True) for entry in entries)
        digest.update(google_crc32c.value(content).to_bytes(4, "little"))
    return digest.hexdigest()


def test_a_fingerprint_is_made_of_the_checksums_of_groups() -> None:
    index = index_of(many(2 * GROUP + 5))
    for count in (1, 5, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP, 2 * GROUP + 5):
        assert index.fingerprint(count) == slow_fingerprint(index, count)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3 * GROUP), st.data())
def test_the_fingerprint_of_the_first_images_is_that_of_the_set_without_the_others(
    whole: int, data: st.DataObject
) -> None:
    known = data.draw(st.integers(1, whole))
    count = data.draw(st.integers(1, known))
    walk = many(whole)
    labels = Labels()
    rows = rows_of(walk, labels)
    grown = ImageIndex("folder", Held(rows.piece(0, known)), [0], labels.names).grown(
        rows.piece(known, whole), labels.names
    )
    assert grown.fingerprint(count) == index_of(walk[:count]).fingerprint(count)
    assert grown.fingerprint(whole) == index_of(walk).fingerprint(whole)


def test_a_fingerprint_sees_paths_and_sizes_and_not_times_nor_labels() -> None:
    walk = many(5)
    same = [(path, size, stamp + 1) for path, size, stamp in walk]
    other_size = [(path, size + (number == 3), stamp) for number, (path, size, stamp) in enumerate(walk)]
    other_path = [(path + b"x" * (number == 3), size, stamp) for number, (path, size, stamp) in enumerate(walk)]
    prints = [index_of(one).fingerprint(5) for one in (walk, same, other_size, other_path)]
    assert prints[0] == prints[1] and len(set(prints)) == 3
    assert index_of(other_size).fingerprint(5, {3: walk[3][1], 10**7: 1}) == prints[0]
    assert index_of(walk).fingerprint(5) != index_of(walk).fingerprint(4)


def test_sizes_that_images_had_may_stand_in_for_todays_in_whole_groups_too() -> None:
    walk = many(GROUP + 9)
    changed = [(path, 5000 if n in (7, GROUP + 3) else size, stamp) for n, (path, size, stamp) in enumerate(walk)]
    were = {n: walk[n][1] for n in (7, GROUP + 3)}
    assert index_of(changed).fingerprint(len(walk), were) == index_of(walk).fingerprint(len(walk))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=5), st.data())
def test_pieces_put_together_are_the_whole(lengths: list[int], data: st.DataObject) -> None:
    walk = many(sum(lengths))
    whole = rows_of(walk)
    ends = np.cumsum([0, *lengths])
    together = joined(whole.piece(int(start), int(stop)) for start, stop in pairwise(ends))
    assert list(together.each_path()) == [path for path, *_ in walk]
    assert (together.ends_n == whole.ends_n).all()
    if walk:
        number = data.draw(st.integers(0, len(walk) - 1))
        assert together.entry(number) == whole.entry(number)
        assert whole.entry(number)[:4] == (walk[number][0], 0, *walk[number][1:])


def test_labels_are_first_directories_and_may_be_numbered_anew() -> None:
    labels = Labels()
    rows = rows_of([(b"b/1", 0, 0), (b"a/2", 0, 0), (b"c", 0, 0), (b"b/x/3", 0, 0)], labels)
    assert rows.entries_n["label"].tolist() == [0, 1, -1, 0] and labels.names == [b"b", b"a"]
    others = Labels([b"z", b"a"])
    assert renumbered(rows, labels.names, others).entries_n["label"].tolist() == [2, 1, -1, 2]
    assert others.names == [b"z", b"a", b"b"]


def test_an_index_works_after_pickling() -> None:
    index = index_of(many(10)).grown(rows_of(many(3, first=100)), [])
    again = pickle.loads(pickle.dumps(index))
    assert paths_of(again) == paths_of(index) and again.fingerprint(13) == index.fingerprint(13)


def test_an_image_takes_forty_bytes_beside_its_path() -> None:
    rows = rows_of(many(1000))
    assert isinstance(rows, Rows)
    assert rows.entries_n.nbytes + rows.ends_n.nbytes == 1000 * 40
