"""What a cell cost: flat figures, name -> number, from the files that it left and from how its process ended.

A step's seconds are the difference of `elapsed_seconds` of two lines of metrics.jsonl (waiting for images included, checkpoints and
evaluations not), divided by the steps between them. The first steps are left out: they touch memory for the first time, and have few
active rows; of a short cell its first half is left out. The parts of a step are means, which add up to the mean of the step and not to
its median. Where cells took turns, steps that took longer than a turn are left out: turns of others ran within them.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.scaling.cell_process import Ended
from engine.scaling.store_figures import config_of, store_figures

Line = Mapping[str, Any]  # of metrics.jsonl

STAGE = "seconds_of_"  # what a stage's figure begins with
_FIGURES_OF_ROWS = (
    *("blocks_read", "block_read_seconds", "blocks_written", "block_write_seconds", "blocks_stored"),
    *("visited", "readmitted"),
)


def lines_of(path: Path) -> list[Any]:
    """The values in the lines of a file such as metrics.jsonl; a last one that a killed process left half is left out."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def figures_of(directory: Path, ended: Ended, skip_steps: int, turn_seconds: float | None = None) -> dict[str, float]:
    """All that can be told; a cell that died early has few of them.

    directory    the cell's output          skip_steps    first steps that do not count
    turn_seconds of the turns that it took with others; None: it ran alone
    """
    lines = lines_of(directory / "metrics.jsonl")
    found: dict[str, float] = {
        "seconds": ended.seconds,
        "tree_peak_bytes": ended.peak_bytes,
        "pss_bytes": ended.pss_bytes,
    }
    if ended.first_step_seconds is not None:
        found["first_step_seconds"] = ended.first_step_seconds
    if not lines:
        return found
    steps = lines[-1]["step"]
    pairs = pairs_of(lines, min(skip_steps, steps // 2))
    if turn_seconds is not None:
        pairs = within_turns(pairs, turn_seconds)
    found |= {"steps": steps, "skipped_steps": min(skip_steps, steps // 2)}
    found |= _step_figures(pairs) if pairs else {}
    for tier in ("device", "host", "process_peak"):
        found[f"{tier}_bytes"] = max(line["bytes"][tier] for line in lines)
    found["disk_bytes"] = lines[-1]["bytes"]["disk"]
    found |= {name: lines[-1][name] for name in _FIGURES_OF_ROWS if name in lines[-1]}
    found |= store_figures(lines[-1], config_of(directory))
    losses = [line["loss"] for line in lines[-max(1, len(lines) // 20) :] if line["loss"] is not None]
    return found | ({"loss": statistics.fmean(losses)} if losses else {})


def pairs_of(lines: Sequence[Line], skip_steps: int) -> list[tuple[Line, Line]]:
    """Each line with the one before it, of the lines whose steps all count."""
    return [(before, line) for before, line in pairwise(lines) if before["step"] >= skip_steps]


def within_turns(pairs: Sequence[tuple[Line, Line]], turn_seconds: float) -> list[tuple[Line, Line]]:
    """Those between whose lines less than a turn passed, so that none of others did."""
    return [
        (before, line) for before, line in pairs if line["elapsed_seconds"] - before["elapsed_seconds"] < turn_seconds
    ]


def step_seconds(pairs: Sequence[tuple[Line, Line]]) -> list[float]:
    """Of each pair: the mean seconds of the steps between the two lines."""
    return [
        (line["elapsed_seconds"] - before["elapsed_seconds"]) / (line["step"] - before["step"])
        for before, line in pairs
    ]


def _step_figures(pairs: Sequence[tuple[Line, Line]]) -> dict[str, float]:
    seconds, timed = step_seconds(pairs), [line for _, line in pairs]
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    steps = sum(line["step"] - before["step"] for before, line in pairs)
    total = sum(line["elapsed_seconds"] - before["elapsed_seconds"] for before, line in pairs)
    stages: dict[str, float] = defaultdict(float)
    for line in timed:
        for stage, spent in line["seconds"].items():
            stages[stage] += spent / steps
    images = sum(line["images_per_second"] * line["interval_seconds"] for line in timed)
    return {
        "step_seconds": middle,
        "step_seconds_q1": low,
        "step_seconds_q3": high,
        "step_seconds_mean": total / steps,
        **{STAGE + stage: spent for stage, spent in sorted(stages.items())},
        "images_per_second": images / total,
        "sent_bytes": sum(sum(line["sent_bytes"].values()) for line in timed) / steps,
        "waits": sum(line["prefetch_waits"]["steps"] for line in timed) / steps,
        "waited_seconds": sum(line["prefetch_waits"]["seconds"] for line in timed) / steps,
    }
