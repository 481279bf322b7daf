"""How a figure grows along an axis: its ratio to the first cell, and its slope in log-log, with 95 % intervals over the blocks.

An axis is a key with several numbers; a line of cells are those that differ in this key alone. Of each block there is one value of each
cell, so the comparison is paired: in block r the ratio of cell j is value(j, r) / value(0, r), and what was slow in that block was slow
for both. With the logarithms x of the ratios of n blocks

    interval = exp(mean(x) +- t(0.975, n - 1) stdev(x) / sqrt(n))

The slope is that of least squares through log(value) over log(axis) in each block, and has the same interval without exp. So a slope
of 1 is growth in proportion, and 0 is none. One block has no interval.

What is left out: the intervals are for one cell each and not for all together; three blocks make them wide (t is 4.3).
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from engine.scaling.cells import Cell
from engine.scaling.records import Record

_NO_AXIS = "steps"


@dataclass(frozen=True)
class Estimate:
    """middle, and the ends of its 95 % interval; None where there is one block only."""

    middle: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Growth:
    """
    axis, others   key of the axis; the other values that the cells of this line have in common
    figure         its name
    points         number of cell -> value on the axis, ascending
    ratios         number of cell -> to the first cell of the line; cells that share no block with it are missing
    slope          None where no block has two cells of the line
    """

    axis: str
    others: dict[str, Any]
    figure: str
    points: dict[int, float]
    ratios: dict[int, Estimate]
    slope: Estimate | None


def interval(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None)
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def ratio(logarithms: Sequence[float]) -> Estimate:
    """The same for ratios, whose logarithms these are."""
    found = interval(logarithms)
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    return Estimate(math.exp(found.middle), low, high)


def lines_of_cells(cells: Iterable[Cell]) -> list[tuple[str, dict[str, Any], list[Cell]]]:
    """(axis, what they have in common, the cells in the order of the axis), for every axis and line of two cells or more.

    "steps" is no axis, and cells of one line may differ in it: more steps only measure for longer.
    """
    found: dict[tuple[str, str], tuple[dict[str, Any], list[Cell]]] = {}
    for cell in cells:
        for key, value in cell.values.items():
            if key != _NO_AXIS and isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                others = {name: other for name, other in cell.values.items() if name not in (key, _NO_AXIS)}
                line = found.setdefault((key, json.dumps(others, sort_keys=True)), (others, []))
                line[1].append(cell)
    axes = dict.fromkeys(axis for axis, _ in found)
    return [
        (axis, others, sorted(line, key=lambda cell: cell.values[axis]))
        for axis in axes
        for (key, _), (others, line) in found.items()
        if key == axis and len(line) > 1
    ]


def growth(cells: Sequence[Cell], records: Sequence[Record], figures: Sequence[str]) -> list[Growth]:
    """Of each of these figures along every line of cells, where its first cell and another have the figure, above zero."""
    found = []
    for axis, others, line in lines_of_cells(cells):
        points = {cell.number: float(cell.values[axis]) for cell in line}
        for figure in figures:
            values = values_of(records, points, figure)
            if ratios := _ratios(values, points):
                found.append(Growth(axis, others, figure, points, ratios, _slope(values, points)))
    return found


def values_of(records: Iterable[Record], numbers: Iterable[int], figure: str) -> dict[int, dict[int, float]]:
    """block -> number of cell -> value, of the cells that ended by themselves."""
    chosen = set(numbers)
    values: dict[int, dict[int, float]] = {}
    for record in records:
        if record.cell in chosen and record.status == "ended" and figure in record.figures:
            values.setdefault(record.repeat, {})[record.cell] = record.figures[figure]
    return values


def _ratios(values: Mapping[int, Mapping[int, float]], points: Mapping[int, float]) -> dict[int, Estimate]:
    first, *rest = points
    found = {}
    for number in rest:
        both = [block for block in values.values() if block.get(first, 0) > 0 and block.get(number, 0) > 0]
        if both:
            found[number] = ratio([math.log(block[number] / block[first]) for block in both])
    return found


def _slope(values: Mapping[int, Mapping[int, float]], points: Mapping[int, float]) -> Estimate | None:
    slopes = []
    for block in values.values():
        there = [number for number in points if block.get(number, 0) > 0]
        if len(there) > 1:
            x, y = np.log([points[number] for number in there]), np.log([block[number] for number in there])
            slopes.append(float(np.polyfit(x, y, 1)[0]))
    return interval(slopes) if slopes else None
