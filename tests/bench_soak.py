"""Does anything grow? 48,000 steps of launch.py with slides, checkpoints, folding, and more images at each of three restarts.

    python -m tests.bench_soak [--steps 48000] [--directory .]

The run is made of four legs, each a process of its own that goes on where the one before ended, with more images; the last one is the
longest. After its first pass over all rows no process may get slower or larger. The slopes over the steps of resident memory, open files
and the time of a step are estimated with a constant for each leg, from means over WIDTH steps, and told with their 95 % intervals, wider by
what neighbours have in common. Of the memory the slope is told without LOG_BYTES a step: each step's learning rate, its products and its
loss, which a run keeps in memory (engine/rows/transitions.py, engine/training/totals.py). The means are kept in soak.csv of the directory.

A pass takes 5,000 to 8,000 steps here. So long the heap of the C library takes to find its size: blocks of all lengths come and go, and now
and then one finds no gap. With ENVIRONMENT what is freed in blocks of 64 KiB or more goes back to the system at once; left to itself glibc
raises that size, keeps what is freed, and the heap goes on to grow by some 30 KiB in 1,000 steps, to step 16,000 and beyond.

Then the same legs with all rows in memory (store.kind=memory): the digest must be the same.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.bench_support import given_line, machine, metrics, running, scratch, status_kib

IMAGES = [160_000, 192_000, 240_000, 256_000]  # of the four legs
ENDS = [1 / 6, 1 / 3, 13 / 24, 1]  # the share of the steps that each ends at
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}
BATCH, WINDOW, STRIDE = 64, 4096, 2048
OVERRIDES = [
    f"schedule.batch={BATCH}", "schedule.block=64", "schedule.lanes=4", f"schedule.window={WINDOW}", f"schedule.stride={STRIDE}",
    "method.active=2048", "method.dim=32", "checkpoint.every_steps=500", "log_every=50", "epochs=1000", "store.fold=true",
    "optimizer.rows_weight_decay=1e-4", "optimizer.lr=0.003",
]  # fmt: skip
WIDTH = 250
LOG_BYTES = 24
MEMORY_BAR_MIB = 0.1  # per 1,000 steps


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the slopes and digests; 1 where one does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=48_000)
    parser.add_argument("--directory", type=Path, default=Path())
    options = parser.parse_args(arguments)
    print(f"{machine()}\n{' '.join(OVERRIDES)}\nimages of the legs: {IMAGES}")
    with scratch(options.directory) as directory:
        samples, digest = soak(directory / "zarr", options.steps)
        header = "leg,step,resident_mib,open_files,step_ms"
        np.savetxt(options.directory / "soak.csv", samples, "%.6g", ",", header=header, comments="")
        _, in_memory = soak(directory / "memory", options.steps, "store.kind=memory")
    print(f"{options.steps:,} steps, {options.steps * BATCH // WINDOW:,} slides; the digest in memory is "
          f"{'the same' if in_memory == digest else 'ANOTHER'}: {digest}\n")  # fmt: skip
    print("| | mean | slope per 1,000 steps | 95 % interval |\n|---|---|---|---|")
    held = in_memory == digest
    samples[:, 2] -= samples[:, 1] * LOG_BYTES / 2**20
    for column, name in enumerate(["resident memory, MiB", "open files", "step, ms"], start=2):
        slope, error = slope_of(samples[:, 0], samples[:, 1], samples[:, column])
        held &= slope - error <= 0 <= slope + error
        held &= name != "resident memory, MiB" or slope < MEMORY_BAR_MIB
        print(
            f"| {name} | {samples[:, column].mean():.2f} | {slope:.4f} | {slope - error:.4f} to {slope + error:.4f} |"
        )
    return 0 if held else 1


def soak(output: Path, steps: int, *overrides: str) -> tuple[np.ndarray, str]:
    """(leg, step, resident MiB, open files, ms a step) of each stretch after a leg's first pass, float64 [n, 5]; the digest at the end."""
    found = []
    for leg, images in enumerate(IMAGES):
        end = round(steps * ENDS[leg])
        found += leg_of(output, leg, end, f"data.limit={images}", f"steps={end}", *overrides)
    return np.array(found), json.loads((output / "summary.json").read_text())["digest"]


def leg_of(output: Path, leg: int, end: int, *overrides: str) -> list[list[float]]:
    """One process, up to step `end`."""
    looks: list[tuple[int, float, int]] = []
    first = None
    with running(given_line(output, *OVERRIDES, *overrides), os.environ | ENVIRONMENT) as process:
        while process.poll() is None:
            time.sleep(0.25)
            step = last_step(output)
            if step is None or (looks and step == looks[-1][0]):
                continue
            first = step if first is None else first
            files = open_files(process.pid)
            if files and step < end:  # what comes after the last step is another matter
                looks.append((step, status_kib(process.pid, "VmRSS") / 1024, files))
    assert process.returncode == 0, "the run failed"
    settled = first + IMAGES[leg] // STRIDE * (WINDOW // BATCH)  # a pass
    rows = []
    for start in range(settled, end - WIDTH, WIDTH):
        inside = [look for look in looks if start <= look[0] < start + WIDTH]
        lines = [line for line in metrics(output) if start < line["step"] <= start + WIDTH]
        if inside and len(lines) > 1:
            steps_ms = (
                1000
                * (lines[-1]["elapsed_seconds"] - lines[0]["elapsed_seconds"])
                / (lines[-1]["step"] - lines[0]["step"])
            )
            rows.append([leg, start, *np.mean([look[1:] for look in inside], axis=0).tolist(), steps_ms])
    return rows


def last_step(output: Path) -> int | None:
    """Of the last line of a run that writes meanwhile, if it is whole."""
    try:
        with open(output / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            last = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
        return int(json.loads(last)["step"])
    except (OSError, ValueError):
        return None


def open_files(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0


def slope_of(leg_n: np.ndarray, step_n: np.ndarray, value_n: np.ndarray) -> tuple[float, float]:
    """(per 1,000 steps, half of its 95 % interval), by least squares with a constant for each leg; leg_n in order, and step_n in each.

    Neighbours may be alike: the heap stays as it is for a while, another program runs for some minutes. With the correlation r of
    neighbouring residuals, n of them tell as much as n (1 - r) / (1 + r) that have nothing to do with each other.
    """
    legs = np.unique(leg_n)
    x_n, y_n = step_n / 1000, value_n.astype(float).copy()
    for leg in legs:
        inside = leg_n == leg
        x_n = np.where(inside, x_n - x_n[inside].mean(), x_n)
        y_n = np.where(inside, y_n - y_n[inside].mean(), y_n)
    slope = (x_n @ y_n) / (x_n @ x_n)
    freedom = len(x_n) - len(legs) - 1
    left_n = y_n - slope * x_n
    error = math.sqrt((left_n @ left_n) / freedom / (x_n @ x_n))
    together = (left_n[1:] * left_n[:-1])[leg_n[1:] == leg_n[:-1]].sum()
    found = float(together / (left_n @ left_n)) if left_n.any() else 0.0
    # Of residuals of a line that was fitted to them it comes out too small by (1 + 4 r) / n (Kendall 1954).
    alike = min(max(0.0, (len(x_n) * found + 1) / (len(x_n) - 4)), 0.99)
    # Student's t is 2.00 at 60 degrees of freedom.
    return float(slope), 2.0 * error * math.sqrt((1 + alike) / (1 - alike))


if __name__ == "__main__":
    sys.exit(main())
