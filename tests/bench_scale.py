"""What a step costs when a thousand times more rows are declared: start, memory and time at N = 10^9 beside N = 10^6.

    python -m tests.bench_scale [--sizes 1000000 1000000000] [--steps 560] [--active 65536] [--directory .] ...

    start     from the start of a process to the end of its first step, imports included; fresh processes, the sizes in turn
    memory    the largest resident set (VmHWM) of a process that took --memory-steps steps, slides of the window and writes of departing
              blocks included. By default with an eighth of the active rows, which takes an eighth of the time: a window is W visits,
              each against all active rows. The pool of the host tier, which is most of the memory, is that of the full size.
              Every larger allocation is given back at once (MALLOC_MMAP_THRESHOLD_): left to itself glibc's heap grows by luck, and the
              peaks of two runs of one N are up to 100 MiB apart; the steps' row tells such peaks, and has no bar
    snapshot  in the memory's processes, after their last step: for how long a checkpoint stops the training, beside a plain copy of
              the same bytes; and what it wrote until it was there
    step      two live processes take turns of --turn steps, one works while the other waits; the first turn of each is not counted.
              A step is all of it: which positions, the slide, reading ahead, admission, softmax, update. The ratio is that of the
              medians of all steps; beside it the quartiles of the ratios of two neighbouring turns. The same in CPU time, which says
              more where other processes take the processors away

The engine is put together as launch.py does it: ZarrStore behind WriteBehind, float32, weight decay 0, two threads that read ahead. The
network is missing: features are random unit vectors keyed by the step, so that no images and no network hide what the rows cost. What
launch.py does before the engine starts (config, source, DeepSpeed) is therefore not in `start`.

With the sizes given here a window lasts 512 steps: 1100 steps slide twice, 560 once. On a machine that others use as well take
--threads 1: two threads that wait for each other lose far more than half.
VmHWM and not ru_maxrss, because the latter starts at what the parent had when it made the process.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.batch import Batch
from datasets.schedule import Schedule
from engine.disk.files import DiskFiles
from engine.disk.write_behind import WriteBehind
from engine.disk.zarr_store import ZarrStore
from engine.methods.lane_softmax import LaneSoftmax
from engine.methods.pic import Pic
from engine.methods.row_gradients import row_gradient
from engine.methods.stages import Stages
from engine.planning.rows import host_places
from engine.ranks.lanes import Lanes
from engine.ranks.ranks import Ranks
from engine.rows.active_rows import ActiveRows, Start
from engine.rows.host_tier import HostTier
from engine.rows.implementations import implementations, names
from engine.rows.row_table import RowTable
from engine.rows.transitions import TransitionLog
from engine.training.checkpoint import Checkpoints
from engine.training.step import Dealing, StepResult, train_step
from tests.bench_support import machine, scratch, spread

ALONE = Ranks(0, 1, torch.device("cpu"), 60.0)

START_BAR_SECONDS, RATIO_BAR = 15.0, 1.05
SEED, INIT_NORM, MOMENTUM, RATE = 0, 1.0, 0.9, 0.1


@dataclass(frozen=True)
class Sizes:
    """N, K, W, S, G, C, L, D."""

    size: int
    active: int
    window: int
    stride: int
    batch: int
    block: int
    lanes: int
    dim: int


class RandomFeatures:
    """A trunk without a network: unit vectors keyed by the step, and no weights."""

    def __init__(self, dim: int) -> None:
        self.dim, self.step = dim, 0

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.step)
        z_XD = torch.randn(len(views) * len(views[0]), self.dim, generator=generator)
        return torch.nn.functional.normalize(z_XD)

    def backward(self, z_XD: torch.Tensor, dz_XD: torch.Tensor) -> None:
        pass

    def update(self, lr: float) -> bool:
        return True

    def discard(self) -> None:
        pass


class Engine:
    """Schedule, store, rows and a trunk without a network; `step` does what engine/training/run.py does for each step."""

    def __init__(self, sizes: Sizes, directory: Path, read_ahead: int = 1, kernels: str = "auto") -> None:
        self.sizes = sizes
        self.schedule = Schedule(SEED, sizes.size, sizes.window, sizes.stride, sizes.batch, sizes.block, sizes.lanes)
        end = self.schedule.positions_end
        self.files = DiskFiles(directory)
        store = ZarrStore(self.files, block=sizes.block, dim=sizes.dim, positions=end, dtype=np.float32)
        self.disk = WriteBehind(store, 2 * sizes.stride * (8 * sizes.dim + 8))
        places = host_places(
            window=sizes.window,
            stride=sizes.stride,
            batch=sizes.batch,
            block=sizes.block,
            size=end,
            full=False,
            read_ahead=read_ahead,
            fold_steps=0,
        )
        self.rows = ActiveRows(
            HostTier(
                self.disk,
                block=sizes.block,
                size=end,
                dim=sizes.dim,
                dtype=np.float32,
                places=places,
                readers=2,
            ),
            TransitionLog(MOMENTUM, 0.0, nesterov=False),
            lanes=Lanes(sizes.lanes),
            capacities=[sizes.active // sizes.lanes] * sizes.lanes,
            start=Start(SEED, INIT_NORM, feature=False),
            full=False,
            norm_floor=0.0,
            device=torch.device("cpu"),
            kernels=names(implementations(torch.device("cpu"), torch.float32, sizes.dim, kernels)),
        )
        gradient = row_gradient(self.rows, ALONE, micro_batches=1, clip=0.0)
        softmax = LaneSoftmax(self.rows, ALONE, gradient, temperature=0.2)
        table = RowTable(self.rows, partitioned=None, lr_scale=1.0, clip=0.0, read_ahead=read_ahead)
        self.method = Pic(table, softmax, ALONE, self.schedule, rows_grad_V=[True])
        self.trunk = RandomFeatures(sizes.dim)
        self.images = torch.zeros(sizes.batch, 1, 1, 1)

    def step(self) -> StepResult:
        schedule = self.schedule
        step = self.trunk.step = self.rows.log.steps
        positions_G = schedule.positions(step)
        ids_G = schedule.instances(positions_G)
        self.method.prepare(step)
        return train_step(
            Batch(step, [self.images], positions_G, ids_G, ids_G >= 0),
            self.trunk,
            self.method,
            ALONE,
            lr=RATE,
            dealing=Dealing(len(self.rows.lanes), 1, [0]),
            stages=Stages(),
        )

    def snapshot(self) -> dict[str, float]:
        """Take a checkpoint: seconds that training stops, seconds of copying as many bytes, seconds and bytes until it is there."""
        checkpoints = Checkpoints(self.files, self.disk, keep=1)
        self.disk.drain()
        before, resident = self.disk.bytes, [self.rows.host.resident(block) for block in self.rows.host.blocks()]
        start = time.perf_counter()
        steps = self.rows.log.steps
        checkpoints.save(steps, self.method, ({"weight": torch.zeros(1)}, {}), [0.0] * steps, {})
        stopped = time.perf_counter()
        checkpoints.finish()
        done = time.perf_counter()
        copies = [block.copy() for block in resident], self.rows.w_KD.clone(), self.rows.u_KD.clone()
        copied = time.perf_counter() - done
        del copies
        assert checkpoints.newest
        written = self.disk.bytes - before + sum(checkpoints.newest.body.sizes.values())
        return {"stopped": stopped - start, "copy": copied, "there": done - start, "bytes": written}

    def close(self) -> None:
        self.rows.host.close()
        self.disk.close()


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


# The process that is measured: one line of JSON for each line that it reads, a number of steps.


def work(sizes: Sizes, directory: Path, threads: int, started: float) -> None:
    torch.set_num_threads(threads)
    engine = Engine(sizes, directory)
    for line in sys.stdin:
        told = engine.snapshot() if line.strip() == "snapshot" else take_steps(engine, int(line), started)
        print(json.dumps(told), flush=True)
    engine.close()


def take_steps(engine: Engine, count: int, started: float) -> dict[str, Any]:
    """Some steps; returns the seconds of each (wall, and of all threads on a processor), and what the process is like afterwards."""
    seconds, cpu_seconds = [], []
    for _ in range(count):
        start, cpu_start = time.perf_counter(), time.process_time()
        assert np.isfinite(engine.step().loss)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "since_start": time.monotonic() - started,
        "peak": peak_bytes(),
        "written": len(engine.disk.disk.blocks()),
    }


class Worker:
    """A fresh process with an engine of its own."""

    def __init__(self, sizes: Sizes, directory: Path, threads: int, environment: dict[str, str] | None = None) -> None:
        directory.mkdir()
        command = [sys.executable, "-m", "tests.bench_scale", "--threads", str(threads), "--directory", str(directory)]
        command += ["--work", json.dumps(asdict(sizes)), "--started", repr(time.monotonic())]
        root = Path(__file__).parents[1]
        self.process = subprocess.Popen(
            command,
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **(environment or {})},
        )

    def ask(self, word: str | int) -> dict[str, Any]:
        """A number of steps, or "snapshot"."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def start_seconds(
    all_sizes: list[Sizes], directory: Path, threads: int, repeats: int, worker_class: type = Worker
) -> list[list[float]]:
    """For each of the sizes: seconds until the first step is done, [repeats]."""
    seconds: list[list[float]] = [[] for _ in all_sizes]
    with scratch(directory) as place:
        for repeat in range(repeats):
            for number, sizes in enumerate(all_sizes):
                worker = worker_class(sizes, place / f"{number}-{repeat}", threads)
                seconds[number].append(worker.ask(1)["since_start"])
                worker.close()
    return seconds


def take_turns(
    all_sizes: list[Sizes],
    directory: Path,
    threads: int,
    steps: int,
    turn: int,
    worker_class: type = Worker,
    environment: dict[str, str] | None = None,
) -> list[list[dict[str, Any]]]:
    """For each of the sizes what its process told after each turn, and last of a snapshot."""
    told: list[list[dict[str, Any]]] = [[] for _ in all_sizes]
    with scratch(directory) as place:
        workers = [
            worker_class(sizes, place / str(number), threads, environment) for number, sizes in enumerate(all_sizes)
        ]
        for round_number, first in enumerate(range(0, steps, turn)):
            order = range(len(workers)) if round_number % 2 else reversed(range(len(workers)))
            for number in order:
                told[number].append(workers[number].ask(min(turn, steps - first)))
        for number, worker in enumerate(workers):
            told[number].append(worker.ask("snapshot"))
            worker.close()
    return told


def ratio_of_steps(told: list[list[dict[str, Any]]], name: str) -> tuple[list[str], float, str]:
    """(for both sizes median and quartiles in ms, ratio of the medians, quartiles of the ratios of neighbouring turns)."""
    turns = [[turn[name] for turn in one[1:-1]] for one in told]
    flat = [[second * 1e3 for turn in one for second in turn] for one in turns]
    pairs = [statistics.median(b) / statistics.median(a) for a, b in zip(*turns, strict=True)]
    low, _, high = statistics.quantiles(pairs, n=4, method="inclusive")
    ratio = statistics.median(flat[1]) / statistics.median(flat[0])
    return [_quartiles(values) for values in flat], ratio, f"{ratio:.3f} ({low:.3f} - {high:.3f})"


def main(argv: Sequence[str] | None = None, worker_class: type = Worker) -> None:
    parser = argparse.ArgumentParser(description="Start, memory and time of a step by the number of rows declared.")
    parser.add_argument("--sizes", type=int, nargs=2, default=[10**6, 10**9], help="N, two of them")
    parser.add_argument("--active", type=int, default=65536, help="K")
    parser.add_argument("--window", type=int, default=131072, help="W")
    parser.add_argument("--stride", type=int, default=16384, help="S")
    parser.add_argument("--batch", type=int, default=256, help="G")
    parser.add_argument("--block", type=int, default=2048, help="C")
    parser.add_argument("--lanes", type=int, default=8, help="L")
    parser.add_argument("--dim", type=int, default=128, help="D")
    parser.add_argument("--steps", type=int, default=560, help="for the time of a step")
    parser.add_argument("--memory-steps", type=int, default=1100)
    parser.add_argument("--memory-active", type=int, default=8192, help="K of the memory's runs")
    parser.add_argument("--turn", type=int, default=2, help="steps that a process takes at a time")
    parser.add_argument("--starts", type=int, default=5, help="processes that are started for each N")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--directory", type=Path, default=Path())
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.work:
        work(Sizes(**json.loads(arguments.work)), arguments.directory, arguments.threads, arguments.started)
        return
    if arguments.steps < 3 * arguments.turn:
        parser.error("--steps must be at least three turns")
    names = ("active", "window", "stride", "batch", "block", "lanes", "dim")
    shared = {name: getattr(arguments, name) for name in names}
    all_sizes = [Sizes(size=size, **shared) for size in arguments.sizes]
    directory, threads = arguments.directory.resolve(), arguments.threads
    starts = start_seconds(all_sizes, directory, threads, arguments.starts, worker_class)
    fewer_active = [replace(sizes, active=arguments.memory_active) for sizes in all_sizes]
    gives_back = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    sliding = take_turns(
        fewer_active, directory, threads, arguments.memory_steps, 5 * arguments.turn, worker_class, gives_back
    )
    turns = take_turns(all_sizes, directory, threads, arguments.steps, arguments.turn, worker_class)

    print(machine())
    shown = ", ".join(f"{name} {value:,}" for name, value in shared.items())
    print(f"{shown}, float32, weight decay 0; {threads} threads\n")
    head = " | ".join(f"N = {sizes.size:,}" for sizes in all_sizes)
    print(f"| | {head} | ratio | bar | |\n|---|---|---|---|---|---|")
    slow, start = max(starts[-1]), [spread(seconds, 2) for seconds in starts]
    print(
        f"| start, seconds | {' | '.join(start)} | | {START_BAR_SECONDS:.0f} s | {_holds(slow <= START_BAR_SECONDS)} |"
    )
    per_window = arguments.window // arguments.batch
    for told, active, steps in (
        (sliding, arguments.memory_active, arguments.memory_steps),
        (turns, arguments.active, arguments.steps),
    ):
        last = [one[-2] for one in told]
        ratio = last[1]["peak"] / last[0]["peak"]
        memory = " | ".join(f"{one['peak'] / 2**20:.0f} ({one['written']} blocks written)" for one in last)
        what = f"peak memory, MiB: {active:,} active, {steps} steps, {(steps - 1) // per_window} slides"
        bar = f"{RATIO_BAR} | {_holds(1 / RATIO_BAR <= ratio <= RATIO_BAR)}" if told is sliding else " | "
        print(f"| {what} | {memory} | {ratio:.3f} | {bar} |")
    snapshots = [one[-1] for one in turns]
    for what, name, unit in (
        ("snapshot: training stops, ms", "stopped", 1e-3),
        ("a copy of window and active rows, ms", "copy", 1e-3),
        ("snapshot: there after, ms", "there", 1e-3),
        ("snapshot: written, MiB", "bytes", 2**20),
    ):
        print(f"| {what} | {' | '.join(f'{one[name] / unit:.0f}' for one in snapshots)} | | | |")
    both, ratio, shown = ratio_of_steps(turns, "seconds")
    holds = _holds(1 / RATIO_BAR <= ratio <= RATIO_BAR)
    print(f"| step, ms (quartiles) | {' | '.join(both)} | {shown} | {RATIO_BAR} | {holds} |")
    both, _, shown = ratio_of_steps(turns, "cpu_seconds")
    print(f"| the same, CPU time of all threads | {' | '.join(both)} | {shown} | | |")


def _holds(good: bool) -> str:
    return "holds" if good else "does not hold"


def _quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.1f} ({low:.1f} - {high:.1f})"


if __name__ == "__main__":
    main()
