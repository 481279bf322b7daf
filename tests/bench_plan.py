"""The plan of a run beside what the run held: each component by count, and the peak of the process.

    .venv/bin/python -m tests.bench_plan --config configs/pic_sampled.json steps=40 output=/tmp/run

The words are those of launch.py; the run is made in this process, so that objects can be counted (engine/planning/measured.py): at each
logged step, and the largest count stands in the table; so does the most that lay on the disk. Activations are counted around the third
step, which is the slow part. A component without a count lives for a moment only. Under a launcher rank 0 prints. It was last run for
the figures in engine/RUNS.md.
"""

import json
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import launch
from configs import schema
from engine.planning import measured
from engine.planning.activations import StorageCount
from engine.planning.components import LIBRARIES


def main(words: list[str]) -> int:
    counted: dict[str, int] = {}
    held_bytes, most_on_disk = measured.held_bytes, 0

    def counting(run: Any) -> dict[str, int]:
        nonlocal most_on_disk
        for one in measured.measured_components(run):
            counted[one.name] = max(counted.get(one.name, 0), one.bytes)
        most_on_disk = max(most_on_disk, on_disk(run.output.path))
        return held_bytes(run)

    measured.held_bytes = counting
    count_a_step(counted)
    code = launch.main([*words, "--fresh"])
    if int(os.environ.get("RANK", "0")) == 0:
        options = launch.parsed(words)
        output = Path(schema.load(options.config, options.overrides).output)
        plan = json.loads((output / "plan.json").read_text())
        print("\n".join(table(plan, counted)))
        # What a worker of the loader would inherit is not in it.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        planned = max(count for name, count in plan["process"].items() if name != LIBRARIES)
        print(row("peak of the process", planned, peak))
        print(
            row(
                "most on the disk at a logged step or the end",
                sum(plan["disk"].values()),
                max(most_on_disk, on_disk(output)),
            )
        )
    return code


def on_disk(output: Path) -> int:
    """Bytes of the files of checkpoints and blocks, as far as they do not vanish meanwhile."""
    sizes = 0
    for path in (output / "checkpoints").rglob("*"):
        with suppress(OSError):
            sizes += path.stat().st_size if path.is_file() else 0
    return sizes


def count_a_step(counted: dict[str, int], number: int = 3) -> None:
    """Count what lives within step `number`, without what a step leaves behind."""
    from engine.training.run import Run

    take_step = Run._take_step

    def counting(self: Run, *arguments: Any) -> float:
        if self.step != number:
            return take_step(self, *arguments)
        with StorageCount() as count:
            lr = take_step(self, *arguments)
        counted["a step: activations, gradients, work space"] = count.peak()
        return lr

    Run._take_step = counting


def table(plan: dict[str, dict[str, int]], counted: dict[str, int]) -> list[str]:
    """Markdown: planned and counted MiB of each component, and their ratio."""
    lines = ["| component | planned, MiB | counted, MiB | planned / counted |", "|---|---|---|---|"]
    planned = {name: size for tier, items in plan.items() if tier != "process" for name, size in items.items()}
    lines += [row(name, planned.get(name), counted.get(name)) for name in {**planned, **counted}]
    return [*lines, *(row(f"process: {name}", size, None) for name, size in plan["process"].items())]


def row(name: str, planned: int | None, counted: int | None) -> str:
    ratio = f"{planned / counted:.2f}" if planned and counted else ""
    return (
        "| "
        + " | ".join([name, *("" if size is None else f"{size / 2**20:.1f}" for size in (planned, counted)), ratio])
        + " |"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
