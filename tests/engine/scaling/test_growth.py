"""Cells of a grid, the orders of blocks, and how figures grow."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scaling.cells import Cell, block_order, cells_of
from engine.scaling.growth import Estimate, growth, interval, lines_of_cells, ratio
from engine.scaling.records import Record
from engine.scaling.results import bars


def record(cell: Cell, repeat: int, **figures: float) -> Record:
    return Record(cell.number, dict(cell.values), repeat, 0, "ended", "", "", figures)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=3),
        st.lists(st.integers(), min_size=1, max_size=4, unique=True),
        min_size=1,
        max_size=3,
    )
)
def test_a_grid_has_every_combination_once(grid):
    grid = {f"data.{key}": sorted(values) for key, values in grid.items()}
    found = [tuple(cell.values.values()) for cell in cells_of([grid])]
    assert sorted(found) == sorted(itertools.product(*grid.values()))


@given(st.integers(0, 2**40), st.integers(0, 5), st.integers(1, 20))
def test_a_block_has_every_cell_once_in_an_order_that_its_number_alone_decides(seed, repeat, count):
    order = block_order(seed, repeat, count)
    assert sorted(order) == list(range(count)) and order == block_order(seed, repeat, count)


def test_blocks_have_different_orders():
    assert len({tuple(block_order(0, repeat, 8)) for repeat in range(5)}) == 5


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"job": ["knn"]}, "scale.grid has the key job"),
        ({"scale.steps": [1]}, "the key scale.steps"),
        ({"output": ["x"]}, "the key output"),
        ({"ranks": [0]}, '"ranks": 0'),
        ({"ranks": [True]}, '"ranks": true'),
        ({"seed": [1, 2, 1]}, 'the cell {"seed": 1} twice'),
    ],
)
def test_what_is_no_cell_is_refused(grid, words):
    with pytest.raises(ValueError, match=r"scale\.grid") as error:
        cells_of([grid])
    assert words in str(error.value)


def test_a_growth_that_is_known_is_found():
    cells = cells_of([{"n": [10, 100, 1000], "k": [1, 2]}])
    drift = [1.0, 3.0, 0.5, 2.0]  # of the machine from block to block: paired ratios do not see it
    records = [record(cell, block, s=drift[block] * cell.values["n"] ** 0.5) for block in range(4) for cell in cells]
    found = growth(cells, records, ["s", "missing"])
    assert [(one.axis, one.others) for one in found] == [
        ("n", {"k": 1}),
        ("n", {"k": 2}),
        *(("k", {"n": n}) for n in (10, 100, 1000)),
    ]
    for one in found[:2]:
        assert one.slope and one.slope.middle == pytest.approx(0.5) and one.slope.high - one.slope.low < 1e-9
        assert [estimate.middle for estimate in one.ratios.values()] == pytest.approx([10**0.5, 10.0])


def test_a_cell_that_died_is_left_out_of_growth():
    cells = cells_of([{"n": [1, 10, 100]}])
    records = [record(cell, block, s=1.0) for block in range(2) for cell in cells[:2]]
    records.append(Record(2, {"n": 100}, 0, 2, "killed for memory", "", "", {"s": 50.0}))
    (one,) = growth(cells, records, ["s"])
    assert list(one.ratios) == [1] and one.slope and one.slope.middle == 0


def test_the_interval_holds_the_mean_in_95_of_100_draws():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (4000, 5))
    held = np.mean([found.low <= 3.0 <= found.high for found in map(interval, draws.tolist())])
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_one_block_has_no_interval():
    assert interval([2.0]) == Estimate(2.0, None, None) and ratio([0.0]) == Estimate(1.0, None, None)


def test_lines_are_ordered_along_their_axis_and_text_and_flags_are_no_axis():
    cells = cells_of([{"n": [100, 10], "name": ["a", "b"], "flag": [True, False]}])
    assert [(axis, [cell.values["n"] for cell in line]) for axis, _, line in lines_of_cells(cells)] == [
        ("n", [10, 100])
    ] * 4


@pytest.mark.parametrize(
    ("step", "bytes_", "holds"),
    [
        ((1.0, 1.001, 0.999), 1.0, (True, True)),
        ((1.1, 1.1, 1.1), 1.02, (False, False)),
        ((1.2, 0.8, 1.0), 1.0, (True, False)),
    ],
)
def test_bars_hold_for_flat_cells_and_for_no_others(step, bytes_, holds):
    cells = cells_of([{"data.limit": [10, 100]}])
    records = [record(cells[0], block, step_seconds=1.0, host_bytes=1000) for block in range(3)]
    records += [record(cells[1], block, step_seconds=step[block], host_bytes=1000 * bytes_) for block in range(3)]
    found = {bar.claim: bar.holds for bar in bars(growth(cells, records, ["step_seconds", "host_bytes"]))}
    assert found == {"host_bytes flat": holds[0], "step_seconds flat": holds[1]}


def test_cells_that_differ_in_their_steps_too_are_compared():
    cells = cells_of([{"k": [1], "steps": [100]}, {"k": [2], "steps": [50]}])
    assert [(axis, [cell.number for cell in line]) for axis, _, line in lines_of_cells(cells)] == [("k", [0, 1])]
