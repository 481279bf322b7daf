"""What declaring a million times more images costs, through launch.py: N = 10^9 and 10^12 beside 10^6.

    python -m tests.bench_any_n [--rounds 5] [--steps 400] [--directory .]

Each cell is a fresh process of the program with "given" features (configs/given.json) and the sizes below, whatever N is; the sizes take
turns. A window lasts 64 steps, so 400 steps slide six times: blocks leave for the disk, and checkpoints are made every 100 steps.

    first step   from the start of the process to the end of its first step, imports included
    step         the median of the steps of a run, slides and reading ahead included, checkpoints not
    memory       the largest resident set of the process. Every larger allocation is given back at once (MALLOC_MMAP_THRESHOLD_): left to
                 itself glibc's heap grows by luck
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tests.bench_support import given_line, machine, metrics, running, scratch, spread, status_kib

SIZES = [10**6, 10**9, 10**12]
OVERRIDES = [
    "schedule.batch=256", "schedule.block=512", "schedule.lanes=8", "schedule.window=16384", "schedule.stride=4096", "method.active=8192",
    "checkpoint.every_steps=100", "log_every=1",
]  # fmt: skip
RATIO_BAR = 1.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a median of steps or of memory is over the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--directory", type=Path, default=Path())
    options = parser.parse_args(arguments)
    figures: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
    for turn in range(options.rounds):
        for size in SIZES[turn % 3 :] + SIZES[: turn % 3]:
            with scratch(options.directory) as directory:
                figures[size].append(run(directory / "run", size, options.steps))
    print(
        f"{machine()}\n{' '.join(OVERRIDES)}\n{options.rounds} runs each of {options.steps} steps: median (min - max)\n"
    )
    print(
        "| | " + " | ".join(f"N = {size:.0e}".replace("e+", "e") for size in SIZES) + " |\n|---|" + "---|" * len(SIZES)
    )
    held = True
    for what, digits in (("first step, s", 2), ("step, ms", 2), ("memory, MiB", 0)):
        values = {size: [figure[what] for figure in figures[size]] for size in SIZES}
        ratios = [statistics.median(values[size]) / statistics.median(values[SIZES[0]]) for size in SIZES]
        held &= what == "first step, s" or max(ratios) <= RATIO_BAR
        cells = (f"{spread(values[size], digits)}, x {ratio:.3f}" for size, ratio in zip(SIZES, ratios, strict=True))
        print(f"| {what} | " + " | ".join(cells) + " |")
    return 0 if held else 1


def run(output: Path, size: int, steps: int) -> dict[str, float]:
    """The figures of one run."""
    line = given_line(output, f"data.limit={size}", *OVERRIDES, f"steps={steps}")
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    start = time.perf_counter()
    with running(line, environment) as process:
        while not (output / "metrics.jsonl").exists() or not (output / "metrics.jsonl").stat().st_size:
            time.sleep(0.005)
            assert process.poll() is None, "the run ended before its first step"
        first = time.perf_counter() - start
        peak = 0
        while process.poll() is None:
            peak = max(peak, status_kib(process.pid, "VmHWM"))
            time.sleep(0.1)
        assert process.returncode == 0
    elapsed = [line["elapsed_seconds"] for line in metrics(output)]
    steps_ms = [1000 * (after - before) for before, after in pairwise(elapsed[10:])]
    return {"first step, s": first, "step, ms": statistics.median(steps_ms), "memory, MiB": peak / 1024}


if __name__ == "__main__":
    sys.exit(main())
