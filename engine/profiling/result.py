"""profile.json: what a run planned and what it took, component by component, by stage and over time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.planning import components as names
from engine.profiling.samples import Samples, read_samples
from engine.scaling.figures import lines_of

DIRECTORY = "profile"
_LARGE = 2**20  # components below this are left out of the comparison
_TRUNK_STAGES = ("trunk_forward", "trunk_backward")
MADE = "made within a step: activations, gradients, work space"
_MADE_OF = (names.ACTIVATIONS, names.SOFTMAX, names.TRUNK_GRADIENTS)


def profile_of(output: Path, status: str) -> dict[str, Any]:
    """All that profile.json says. output: of the run; status: what became of it, in words."""
    directory = output / DIRECTORY
    facts = json.loads((directory / "facts.json").read_text())
    samples = read_samples(directory)
    counted = [_read(directory / f"components-{one.rank}.json") for one in samples]
    return {
        "status": status,
        "plan": facts["plan"],
        "hardware": facts["hardware"],
        "versions": facts["versions"],
        "config": facts["config"],
        "components": compared(facts["plan"]["components"], counted),
        "process": process_of(facts["plan"], samples, counted),
        "ranks": [rank_of(one, own) for one, own in zip(samples, counted, strict=True)],
        "step": step_of(
            lines_of(output / "metrics.jsonl"),
            has_trunk=any(one["name"] == names.TRUNK_WEIGHTS for one in facts["plan"]["components"]),
        ),
        "changes": facts["changes"],
    }


def compared(planned: Sequence[Mapping[str, Any]], counted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each component over 1 MB: planned bytes, the most that was counted on a rank, the least, and planned / counted.

    counted   of each rank: {"components": {name: bytes}, "made_bytes": ...}; None where it lives for a moment only
    """
    rows = {one["name"]: {"tier": one["tier"], "name": one["name"], "planned": one["bytes"]} for one in planned}
    made = sum(one["bytes"] for one in planned if one["name"] in _MADE_OF)
    rows[MADE] = {"tier": names.DEVICE, "name": MADE, "planned": made}
    for row in rows.values():
        found = [
            own["made_bytes"] if row["name"] == MADE else own["components"].get(row["name"]) for own in counted if own
        ]
        known = [count for count in found if count]
        row["counted"], row["least"] = (max(known), min(known)) if known else (None, None)
        row["ratio"] = row["planned"] / row["counted"] if known else None
    return [row for row in rows.values() if max(row["planned"], row["counted"] or 0) > _LARGE]


def process_of(
    plan: Mapping[str, Any], samples: Sequence[Samples], counted: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The peak of the largest process beside the plan's, and what no component explains."""
    peaks = [peak_of(one, own) for one, own in zip(samples, counted, strict=True)]
    peak, least = max(peaks, default=0), min(peaks, default=0)
    growth = [found for one in samples if (found := one.growth())]
    return {
        "planned_peak": plan["process_peak"],
        "libraries": plan["libraries"],
        "peak": peak,
        "least": least,
        "ratio": plan["process_peak"] / peak if peak else None,
        "residual": peak - plan["process_peak"],
        # Of the rank that grew most: bytes a step, and half of the 95 % interval.
        "growth": max(growth) if growth else None,
        "limit": samples[0].limit_bytes if samples else None,
        "limit_words": samples[0].limit if samples else "",
    }


def peak_of(samples: Samples, counted: Mapping[str, Any]) -> int:
    """The most that was resident in the process of a rank."""
    return max([counted.get("peak_bytes", 0), *(look.own_bytes for look in samples.looks)])


def rank_of(samples: Samples, counted: Mapping[str, Any]) -> dict[str, Any]:
    """Peaks of one rank, in all and by stage."""
    return {
        "rank": samples.rank,
        "last_step": samples.last_step,
        "last_stage": samples.last_stage,
        "peak_bytes": peak_of(samples, counted),
        "worker_bytes": max((look.worker_bytes for look in samples.looks), default=0),
        "proportional_bytes": max((look.shared_bytes or 0 for look in samples.looks), default=0),
        "reserved_bytes": max((look.reserved_bytes for look in samples.looks), default=0),
        "by_stage": {
            stage: max(count, counted.get("resident_bytes", {}).get(stage, 0))
            for stage, count in samples.by_stage("own_bytes").items()
        },
        "device_by_stage": counted.get("device_bytes", {}) or samples.by_stage("allocated_bytes"),
        "growth": samples.growth(),
    }


def step_of(lines: Sequence[Mapping[str, Any]], has_trunk: bool) -> dict[str, Any]:
    """Seconds a step by stage, after the first third of the lines; and what the engine takes beside the trunk.

    overhead   (step - trunk - waiting for images) / trunk; None where there is no trunk
    """
    lines = lines[len(lines) // 3 :]
    if len(lines) < 2:
        return {"seconds": {}, "step_seconds": None, "overhead": None}
    steps = lines[-1]["step"] - lines[0]["step"]
    stages: dict[str, float] = {}
    for line in lines[1:]:
        for stage, seconds in line["seconds"].items():
            stages[stage] = stages.get(stage, 0.0) + seconds / steps
    whole = (lines[-1]["elapsed_seconds"] - lines[0]["elapsed_seconds"]) / steps
    trunk = sum(stages.get(stage, 0.0) for stage in _TRUNK_STAGES) + stages.get("trunk_update", 0.0)
    rest = whole - trunk - stages.get("data", 0.0)
    return {"seconds": stages, "step_seconds": whole, "overhead": rest / trunk if has_trunk else None}


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    except (OSError, ValueError):  # the run was killed before, or while, it wrote
        return {"components": {}, "made_bytes": 0}
