"""What a run wrote down about itself, read back: the JSON files of its output directory and the figures they give.

    config.json         the resolved config              metrics.jsonl       a line every few steps
    plan.json           planned bytes by tier and item   evaluations.jsonl   a line an evaluation
    summary.json        the figures at the run's end

Any of them may be missing (an interrupted run, one without evaluations) and any number in them may be null or NaN (a
skipped step); such a figure is None here and never a stand-in. Of steps that a resumed run logged twice the later lines
count. A line that is not JSON (the run was killed while writing it) is left out and counted.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Records:
    """The contents of the files; an object or list is empty where its file is missing."""

    config: dict[str, Any]
    plan: dict[str, dict[str, int]]
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    unreadable_lines: int

    def figure(self, field: str) -> float | None:
        """A figure of the summary, or where that has none, of the last metrics line that has it."""
        stated = finite(self.summary.get(field))
        if stated is not None:
            return stated
        logged = (number for line in reversed(self.metrics) if (number := finite(line.get(field))) is not None)
        return next(logged, None)

    def active_rows(self) -> float | None:
        """K: the summary's figure, else the most rows that were active at any logged step."""
        stated = finite(self.summary.get("active"))
        return stated or max((finite(line.get("active")) or 0.0 for line in self.metrics), default=0.0) or None

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
            for name, count_bytes in (line.get("bytes") or {}).items():
                if count_bytes is not None:
                    peaks[name] = max(peaks.get(name, 0), count_bytes)
        return peaks


def read_records(output: Path) -> Records:
    """The records in the directory `output`.

    Raises json.JSONDecodeError where config.json, plan.json or summary.json is there and is not JSON.
    """
    metrics, unreadable_metrics = _read_lines(output / "metrics.jsonl")
    evaluations, unreadable_evaluations = _read_lines(output / "evaluations.jsonl")
    return Records(
        config=_read_object(output / "config.json"),
        plan=_read_object(output / "plan.json"),
        summary=_read_object(output / "summary.json"),
        metrics=metrics,
        evaluations=evaluations,
        unreadable_lines=unreadable_metrics + unreadable_evaluations,
    )


def finite(value: Any) -> float | None:
    """The number in a JSON field, or None where it is absent, null, NaN or infinite."""
    return float(value) if value is not None and math.isfinite(value) else None


def finite_items(numbers: Mapping[str, Any] | None) -> dict[str, float]:
    """The entries of a JSON object of numbers that are finite numbers."""
    pairs = ((name, finite(value)) for name, value in (numbers or {}).items())
    return {name: value for name, value in pairs if value is not None}


def _read_object(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    lines: list[dict[str, Any]] = []
    unreadable = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            unreadable += 1
            continue
        # A step that is not after the last one: the run was resumed from before it and did these steps again.
        while lines and lines[-1]["step"] >= line["step"]:
            lines.pop()
        lines.append(line)
    return lines, unreadable
