"""The block map is a dict of entries in 24 bytes a block, whichever way it is put together."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.disk.block_map import BlockMap, Entry

entries = st.builds(Entry, st.integers(1, 2**32 - 1), st.tuples(*[st.integers(0, 2**32 - 1) for _ in range(3)]))
dicts = st.dictionaries(st.integers(0, 40) | st.integers(0, 2**50), entries, max_size=12)


def made(content: dict[int, Entry]) -> BlockMap:
    found = BlockMap()
    for block, entry in content.items():
        found.put(block, entry)
    return found


@given(dicts, dicts, st.booleans())
def test_a_map_is_a_dict_merged_or_not(first, second, merge_between):
    found = made(first)
    if merge_between:
        found.merge()
    for block, entry in second.items():
        found.put(block, entry)
    wanted = {**first, **second}
    for _ in range(2):
        assert dict(found) == wanted and len(found) == len(wanted) and list(found) == sorted(wanted)
        assert all(block in found for block in wanted) and (41 in found) == (41 in wanted) and found.get(-1) is None
        numbers, counts = found.generations()
        in_each = [entry.generation for entry in wanted.values()]
        assert {n: in_each.count(n) for n in in_each} == dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        found.merge()


@given(dicts, st.randoms())
def test_arrays_make_the_same_map_in_whatever_order_they_come(content, random):
    arrays = made(content).arrays()
    assert [arrays[name].dtype for name in ("block", "generation", "checks")] == [np.int64, np.uint32, np.uint32]
    order = random.sample(range(len(content)), len(content))
    again = BlockMap({name: array[order] for name, array in arrays.items()})
    assert dict(again) == content
    some = np.array(random.sample(sorted(content), len(content) // 2), dtype=np.int64)
    part = BlockMap(made(content).arrays(some))
    assert dict(part) == {block: content[block] for block in some.tolist()}


@given(dicts, dicts)
def test_maps_are_laid_over_each_other_and_compared_as_dicts_are(older, newer):
    assert dict(made(older).overlaid(made(newer))) == {**older, **newer}
    gone = {block: entry for block, entry in older.items() if newer.get(block) != entry}
    assert dict(made(older).without(made(newer))) == gone
    merged = made(older)
    merged.merge()
    assert dict(merged.without(merged.copy())) == {}
    even = made(older)
    assert dict(even.where(even.blocks() % 2 == 0)) == {b: e for b, e in older.items() if b % 2 == 0}


def test_a_copy_stays_as_it_is_when_the_map_goes_on():
    found = made({1: Entry(1, (1, 2, 3)), 2: Entry(1, (4, 5, 6))})
    copy = found.copy()
    found.put(1, Entry(2, (7, 7, 7)))
    found.merge()
    assert copy[1] == Entry(1, (1, 2, 3)) and found[1] == Entry(2, (7, 7, 7)) and len(copy) == 2


def test_a_block_costs_24_bytes():
    count = 100_000
    found = BlockMap(
        {
            "block": np.arange(count),
            "generation": np.ones(count, dtype=np.int64),
            "checks": np.zeros((count, 3), np.uint32),
        }
    )
    for block in range(0, 2 * count, 7):
        found.put(block, Entry(3, (1, 2, 3)))
    found.merge()
    assert sum(array.nbytes for array in found.arrays().values()) == 24 * len(found)
