"""Lines of a run, one after the other; of very many metrics as fewer: neighbours become one that says of the steps of both what each said.

    added up      seconds, by stage and in all; steps; what the loader did; waits for the disk
    the mean      of the loss, over steps; of images per second, over seconds
    the largest   bytes
    the later's   all else

The latest lines stay as they are. Those before are put together by equally many, twice as many whenever there are too many of them. So a
report of a run of any length holds at most four times MOST_LINES, and its sums are those of all. What is lost is how a curve runs within
a line.
"""

from collections.abc import Callable, Mapping
from typing import Any

MOST_LINES = 2048
_ADDED = ("interval_seconds", "interval_steps")
_ADDED_BY_NAME = ("seconds", "loader", "prefetch_waits")
_SHARES = ("waiting_share", "images_per_core_second")  # of the loader, which nobody adds up
_LARGEST_BY_NAME = ("bytes",)
_MEAN = {"loss": "interval_steps", "images_per_second": "interval_seconds"}  # over what

Line = dict[str, Any]


class Lines:
    """Lines in ascending order of steps. is_thinned: whether older ones are put together."""

    def __init__(self, *, is_thinned: bool) -> None:
        self._older: list[Line] = []
        self._latest: list[Line] = []
        self._is_thinned = is_thinned
        self._span, self._filled = 1, 0  # lines that one of the older stands for, and those of the last one

    def append(self, line: Line) -> None:
        """A step that is not after the last one: the run was resumed from before it and did these steps again."""
        _drop_from(line["step"], self._latest)
        if _drop_from(line["step"], self._older):
            self._filled = self._span  # of those that are left, none lacks a line
        self._latest.append(line)
        if self._is_thinned and len(self._latest) == 2 * MOST_LINES:
            for one in self._latest[:MOST_LINES]:
                self._add(one)
            del self._latest[:MOST_LINES]

    def _add(self, line: Line) -> None:
        """To the older ones."""
        if self._older and self._filled < self._span:
            self._older[-1] = _together(self._older[-1], line)
            self._filled += 1
            return
        if len(self._older) == 2 * MOST_LINES:
            pairs = zip(self._older[::2], self._older[1::2], strict=True)
            self._older, self._span = [_together(one, other) for one, other in pairs], 2 * self._span
        self._older.append(line)
        self._filled = 1

    def all(self) -> list[Line]:
        return self._older + self._latest


def _drop_from(step: int, lines: list[Line]) -> bool:
    """Remove the lines of this step and later ones; whether there were any."""
    count = len(lines)
    while lines and lines[-1]["step"] >= step:
        lines.pop()
    return len(lines) < count


def _together(one: Line, other: Line) -> Line:
    both = {**one, **other}
    for name, over in _MEAN.items():
        both[name] = _mean((one.get(name), one.get(over)), (other.get(name), other.get(over)))
    both |= _by_name(one, other, _ADDED, lambda a, b: a + b)
    for names, merge in ((_ADDED_BY_NAME, lambda a, b: a + b), (_LARGEST_BY_NAME, max)):
        for name in names:
            if isinstance(one.get(name), Mapping) and isinstance(other.get(name), Mapping):
                parts = {**one[name], **other[name]}
                merged = tuple(part for part in parts if part not in _SHARES)
                both[name] = parts | _by_name(one[name], other[name], merged, merge)
    return both


def _by_name(
    one: Mapping[str, Any], other: Mapping[str, Any], names: tuple[str, ...], merge: Callable[..., Any]
) -> Line:
    """What both have as a number, merged."""
    there = (name for name in names if _is_number(one.get(name)) and _is_number(other.get(name)))
    return {name: merge(one[name], other[name]) for name in there}


def _mean(*weighted: tuple[Any, Any]) -> Any:
    """The mean of the numbers that there are, by their weights where all have one; the last value where none is a number."""
    there = [(value, weight) for value, weight in weighted if _is_number(value)]
    if not there:
        return weighted[-1][0]
    is_weighted = all(_is_number(weight) and weight > 0 for _, weight in there)
    weights: list[float] = [weight if is_weighted else 1.0 for _, weight in there]
    return sum(value * weight for (value, _), weight in zip(there, weights, strict=True)) / sum(weights)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e100 < value < 1e100  # no NaN either
