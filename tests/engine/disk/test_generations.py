"""The table of generations against a dict."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.disk import shapes
from engine.disk.generations import KINDS, MOST_SUFFIX, TYPES, Generations, name_of
from engine.rows.damaged import Damaged

numbers = st.integers(1, 30) | st.integers(1, 2**32 - 1)
tables = st.dictionaries(numbers, st.tuples(st.integers(0, MOST_SUFFIX), st.integers(0, KINDS - 1), st.booleans()))


def made(content):
    arrays = {"number": list(content)} | {
        name: [row[place] for row in content.values()] for place, name in enumerate(("suffix", "kind", "shared"))
    }
    return Generations("float32", 4, {name: np.array(arrays[name], TYPES[name]) for name in TYPES})


def content_of(generations):
    found = {}
    for number, generation in generations.items():
        assert shapes.generation_number(generation.name) == number and generations.has_name(generation.name)
        suffix, kind = int(generation.name.rpartition("-")[2], 16), generations.columns.index(generation.columns)
        found[number] = suffix, kind, generation.shared
    return found


@given(tables)
def test_what_a_file_keeps_makes_the_same_table(content):
    generations = made(content)
    assert content_of(generations) == content and list(generations) == sorted(content)
    arrays = generations.arrays()
    assert {name: array.dtype for name, array in arrays.items()} == TYPES
    assert content_of(Generations("float32", 4, arrays)) == content
    assert not any(generations.has_name(name_of(number, 0xABCDEF)) for number in (31, 32) if number not in content)


@given(tables, tables)
def test_two_tables_join_unless_a_number_stands_for_two(first, second):
    differ = [number for number in first.keys() & second.keys() if first[number][:2] != second[number][:2]]
    if differ:
        with pytest.raises(Damaged, match="another generation with the number"):
            made(first).joined(made(second))
        return
    both = first | {n: (*row[:2], row[2] or (n in first and first[n][2])) for n, row in second.items()}
    assert content_of(made(first).joined(made(second))) == both


@given(tables, st.data())
def test_adding_counting_and_removing_is_what_a_dict_does(content, data):
    generations, counts = made(content), dict.fromkeys(content, 0)
    for _ in range(data.draw(st.integers(0, 8))):
        free = data.draw(numbers.filter(lambda number: number not in counts))
        generations.add(free, 0x3FA29C, generations.columns[0])
        generations.count(free, 3)
        counts[free] = 3
        gone = data.draw(st.sampled_from(sorted(counts)))
        before = generations.copy()
        generations.remove(gone)
        assert gone in before and gone not in generations
        del counts[gone]
    assert {number: generation.blocks for number, generation in generations.items()} == counts
    each = [sum(column.chunk_bytes(8) for column in generation.columns) for generation in generations.values()]
    assert generations.total_bytes(8) == sum(
        np.array(each, int) * np.array(list(counts.values()), int)[np.argsort(list(counts))]
    )


def test_a_generation_takes_14_bytes():
    table = made(dict.fromkeys(range(1, 1001), (0, 0, False)))._table
    assert sum(part.nbytes for part in table) == 14 * 1000


def test_an_example_by_hand():
    generations = Generations("float32", 4)
    generations.add(4, 0x3FA29C, generations.columns[2])
    assert generations[4].name == "000004-3fa29c"
    assert [column.name for column in generations[4].columns] == ["weight", "last_step"]
    assert generations.kinds(np.array([4, 4])).tolist() == [2, 2]
    with pytest.raises(KeyError):
        generations[5]
