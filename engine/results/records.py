"""What a run wrote down about itself, read back: the JSON files of its output directory and the figures they give.

    config.json         the resolved config              metrics.jsonl       a line every few steps
    plan.json           planned bytes by tier and item   evaluations.jsonl   a line an evaluation
    summary.json        the figures at the run's end     linear.json         what linear probes found

They are for people, and people copy, edit and lose them. So any of them may be missing, cut short or something else, and any number
in them may be null or NaN (a skipped step). Such a figure is None here and never a stand-in; a file or line that is not what it
should be is left out, and told in `left_out` and `unreadable_lines`. Of steps that a resumed run logged twice the later lines
count.
"""

import io
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.shown import cut_text
from engine.results.thinned import Line, Lines

# What a row table counts; a page shows it in words of its own.
FIGURES_OF_ROWS = (
    *("active", "visited", "readmitted", "store_bytes"),
    *("blocks_read", "block_read_seconds", "blocks_written", "block_write_seconds", "blocks_stored"),
)
FIGURES_OF_PROBE = ("probe_top1", "probe_loss")  # of the online probe
# What a line of evaluations.jsonl says beside the figures of its evaluators.
_NOT_FIGURES = ("step", "elapsed_seconds", "chance", "rankme_dim")
_LARGEST = 1e100  # no figure of a run is larger, and charts cannot draw what is


@dataclass(frozen=True)
class Records:
    """The contents of the files; an object or list is empty where its file is missing or was left out.

    metrics, evaluations   lines that have a `step`, an int of 0 to 2^53, in ascending order of steps; of very many metrics older ones
                           are put together (engine/results/thinned.py)
    unreadable_lines       of both, left out
    left_out               what else was, each with its reason: "summary.json (not a JSON object)"
    """

    config: dict[str, Any]
    plan: dict[str, dict[str, int]]
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    unreadable_lines: int
    left_out: list[str] = field(default_factory=list)
    linear: dict[str, Any] = field(default_factory=dict)

    def figure(self, field: str) -> float | None:
        """A figure of the summary, or where that has none, of the last metrics line that has it."""
        stated = finite(self.summary.get(field))
        if stated is not None:
            return stated
        logged = (number for line in reversed(self.metrics) if (number := finite(line.get(field))) is not None)
        return next(logged, None)

    def figure_names(self) -> list[str]:
        """The figures that the run's method gave, by the names that they have in summary and metrics; none of a run of before."""
        lists = [line.get("figures") for line in (*self.metrics[-1:], self.summary)]
        names = [name for one in lists if isinstance(one, list) for name in one if isinstance(name, str)]
        return list(dict.fromkeys(names))

    def has_rows(self) -> bool:
        """Whether the method has a row table; runs that do not say what they count had one."""
        says = any(isinstance(line.get("figures"), list) for line in (*self.metrics[-1:], self.summary))
        return not says or "active" in self.figure_names()

    def active_rows(self) -> float | None:
        """K: the summary's figure, else the most rows that were active at any logged step."""
        stated = amount(self.summary.get("active"))
        return stated or max((amount(line.get("active")) or 0.0 for line in self.metrics), default=0.0) or None

    def chance_loss(self) -> float | None:
        """ln K in nats, the loss of a softmax over K rows that knows nothing."""
        stated, active_rows = finite(self.summary.get("chance_loss")), self.active_rows()
        return stated if stated is not None or active_rows is None else math.log(active_rows)

    def planned_bytes(self) -> dict[str, int]:
        """Planned bytes by tier, summed over its items."""
        return {tier: sum(items.values()) for tier, items in self.plan.items()}

    def measured_bytes(self) -> dict[str, int]:
        """The largest count over all metrics lines, by tier and for `process_peak`; what no line names is absent."""
        peaks: dict[str, int] = {}
        for line in self.metrics:
            for name, count_bytes in amounts(line.get("bytes")).items():
                peaks[name] = max(peaks.get(name, 0), int(count_bytes))
        return peaks


def evaluated_steps(output: Path) -> set[int]:
    """The steps after which evaluations.jsonl has a line."""
    lines, _ = _read_lines(output / "evaluations.jsonl", [])
    return {line["step"] for line in lines}


def read_records(output: Path) -> Records:
    """The records in the directory `output`, as far as they can be read; raises nothing for what its files hold."""
    left_out: list[str] = []
    metrics, unreadable_metrics = _read_lines(output / "metrics.jsonl", left_out, is_thinned=True)
    evaluations, unreadable_evaluations = _read_lines(output / "evaluations.jsonl", left_out)
    return Records(
        config=_read_object(output / "config.json", left_out),
        plan=_plan(_read_object(output / "plan.json", left_out), left_out),
        summary=_read_object(output / "summary.json", left_out),
        metrics=metrics,
        evaluations=evaluations,
        unreadable_lines=unreadable_metrics + unreadable_evaluations,
        left_out=left_out,
        linear=_read_object(output / "linear.json", left_out),
    )


def finite(value: Any) -> float | None:
    """The number in a JSON field; None where it is absent, no number, not finite, or larger than any figure is."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        return None
    return float(value)


def amount(value: Any) -> float | None:
    """The same for what is counted or measured and cannot be below 0: bytes, seconds, rows."""
    number = finite(value)
    return number if number is not None and number >= 0 else None


def finite_items(numbers: Any) -> dict[str, float]:
    """The entries of a JSON object that are finite numbers; none where it is no object."""
    pairs = ((name, finite(value)) for name, value in (numbers.items() if isinstance(numbers, Mapping) else ()))
    return {name: value for name, value in pairs if value is not None}


def amounts(numbers: Any) -> dict[str, float]:
    """The same for what cannot be below 0."""
    return {name: value for name, value in finite_items(numbers).items() if value >= 0}


def evaluator_figures(line: Mapping[str, Any]) -> dict[str, float]:
    """What evaluators gave as numbers of a line of evaluations.jsonl itself; kNN's shares are in an object of it."""
    return {name: value for name, value in finite_items(line).items() if name not in _NOT_FIGURES}


def _plan(content: dict[str, Any], left_out: list[str]) -> dict[str, dict[str, int]]:
    """The tiers and items of a plan that are counts of bytes."""
    plan: dict[str, dict[str, int]] = {}
    for tier, items in content.items():
        counts = amounts(items)
        strange = not isinstance(items, Mapping) or len(counts) < len(items)
        if strange:
            left_out.append(f"{cut_text(tier)} of plan.json (not all of it is counts of bytes)")
        if counts or not strange:
            plan[tier] = {item: int(count_bytes) for item, count_bytes in counts.items()}
    return plan


class _Unreadable(Exception):
    """A file that is there and cannot be used; says why."""


def _read_object(path: Path, left_out: list[str]) -> dict[str, Any]:
    try:
        content = _content(path)
        value = None if content is None else _parsed(content)
        if content is None or isinstance(value, dict):
            return value or {}
        reason = "not a JSON object"
    except _Unreadable as error:
        reason = str(error)
    left_out.append(f"{path.name} ({reason})")
    return {}


def _read_lines(path: Path, left_out: list[str], *, is_thinned: bool = False) -> tuple[list[Line], int]:
    """(lines, how many could not be read)"""
    lines = Lines(is_thinned=is_thinned)
    unreadable = 0
    try:
        content = _content(path) or b""
    except _Unreadable as error:
        left_out.append(f"{path.name} ({error})")
        return [], 0
    for text in io.BytesIO(content):
        try:
            line = _parsed(text)
        except _Unreadable:
            line = None
        if not isinstance(line, dict) or not _is_step(line.get("step")):
            unreadable += 1
            continue
        lines.append(line)
    return lines.all(), unreadable


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53


def _content(path: Path) -> bytes | None:
    """What a regular file holds; None where there is nothing of that name. Raises _Unreadable."""
    try:
        # Without waiting: something else may have the name, a pipe that nobody writes into.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise _Unreadable("not a file")
        with open(handle, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Unreadable(error.strerror or type(error).__name__) from None
    except MemoryError:
        raise _Unreadable("larger than memory") from None


def _parsed(content: bytes) -> Any:
    """JSON, with null for numbers that are not finite. Raises _Unreadable."""

    def number(digits: str) -> float | None:
        return value if math.isfinite(value := float(digits)) else None

    try:
        return json.loads(content.decode("utf-8"), parse_constant=lambda _: None, parse_float=number)
    except UnicodeDecodeError:
        raise _Unreadable("not UTF-8") from None
    except (ValueError, RecursionError):  # a number of thousands of digits is a ValueError too
        raise _Unreadable("not JSON") from None
