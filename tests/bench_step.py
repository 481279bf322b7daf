"""What the kernels are worth in a step of training: the same steps on compiled kernels and on ATen, taken in turns.

    python -m tests.bench_step [--rows 65536] [--batch 256] [--steps 60] [--threads 2] [--directory .]

A step here is all of engine/training/step.py on a store on disk: schedule, admission with catch-up, softmax, the rows' SGD.
Features are random and given, so there is no network, and what is left is what rows cost. One process, two engines, five steps each
in turn.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from tests.bench_scale import Engine, Sizes
from tests.bench_support import machine, scratch

TURN = 5


def step_seconds(sizes: Sizes, kernels: list[str], steps: int, directory: Path) -> dict[str, list[float]]:
    """Seconds of each step, by implementation; the first turn of each is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in kernels}
    with scratch(directory) as place:
        engines = {}
        for name in kernels:
            (place / name).mkdir()
            engines[name] = Engine(sizes, place / name, kernels=name)
        for first in range(0, steps + TURN, TURN):
            for name, engine in engines.items():
                for _ in range(TURN):
                    start = time.perf_counter()
                    engine.step()
                    if first:
                        seconds[name].append(time.perf_counter() - start)
        for engine in engines.values():
            engine.close()
    return seconds


def table(seconds: dict[str, list[float]]) -> str:
    """A Markdown table; the last column is against ATen."""
    lines = ["| kernels | ms a step, median | quartiles | times as fast |", "|---|---|---|---|"]
    slow = statistics.median(seconds["aten"])
    for name, all_seconds in seconds.items():
        low, median, high = (1e3 * quartile for quartile in statistics.quantiles(all_seconds, n=4, method="inclusive"))
        lines.append(f"| {name} | {median:.1f} | {low:.1f} - {high:.1f} | {slow * 1e3 / median:.2f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A step of training on compiled kernels and on ATen.")
    parser.add_argument("--rows", type=int, default=65_536, help="K")
    parser.add_argument("--batch", type=int, default=256, help="G")
    parser.add_argument("--block", type=int, default=512, help="C")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--directory", type=Path, default=Path("."), help="where the stores are, for as long as it runs"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    window = 2 * arguments.rows
    sizes = Sizes(
        size=8 * window,
        active=arguments.rows,
        window=window,
        stride=window // 8,
        batch=arguments.batch,
        block=arguments.block,
        lanes=8,
        dim=128,
    )
    print(f"{machine()}; {arguments.threads} threads; {sizes}\n")
    print(table(step_seconds(sizes, ["compiled", "aten"], arguments.steps, arguments.directory)))


if __name__ == "__main__":
    main()
