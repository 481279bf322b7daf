"""Is the disk really read, and does a step wait for it? A run whose rows lie on a cold disk, in less memory than they take.

    python -m tests.bench_disk [--rows 2097152] [--milliseconds 5 10 20 50] [--windows 20] [--limit 1024] [--directory .] ...

1. A checkpoint in which every row was visited. To train for that long would take hours, so it is written as a run could have left it:
   every block through the store, random weight and momentum, last_step = the end of the last window that held the block; a log of as
   many steps; no active row, all having retired; the blocks of the current window resident. Then Checkpoints.save, as always. The step
   is the middle of a window of the second pass: whatever enters from there on was visited before and is on the disk.
2. For each step time: all files are dropped from the page cache (fsync, posix_fadvise DONTNEED, checked with mincore), and a fresh process
   with a limit on its memory recovers the checkpoint and goes on. It reads ahead, slides, admits, catches up, retires and writes as any run
   does; a step that is done early sleeps until its time is over. In place of a network there are random features.

Told for each step time: blocks that entered windows, which must be the blocks that were read (asserted); what the device was asked for
(/proc/self/io); steps that waited for the disk (for a read, or for room to write), as a share of all steps and of those that slide;
seconds waited in all and at most. Bar: under 1 % of steps wait at some step time up to 50 ms. A window lasts 64 steps with these
sizes, so that if every slide waited, 1.6 % of steps would. A step slower than its time is `late` and not padded.

The limit is a child of this process's memory cgroup where one can be made (it counts the page cache too), else RLIMIT_DATA (which
does not); the output says which.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.disk import manifest
from engine.disk.files import DiskFiles
from engine.disk.restored_rows import load_rows
from engine.rows.store import Block
from engine.training.checkpoint import Checkpoints
from tests.bench_scale import RATE, Engine, Sizes, peak_bytes
from tests.bench_support import drop_from_cache, files_below, machine, scratch, share_in_cache, spread

BAR_SHARE, BAR_MILLISECONDS = 0.01, 50.0
TRUNK = ({"none": torch.zeros(1)}, {"none": torch.zeros(1)})  # a checkpoint has a trunk


def build(sizes: Sizes, directory: Path) -> int:
    """Write the checkpoint; returns its step."""
    engine = Engine(sizes, directory)
    checkpoints = Checkpoints(engine.files, engine.disk, keep=1)
    checkpoints.restore([], sweep=True)
    schedule, rows = engine.schedule, engine.rows
    length = schedule.steps_per_window
    now = int(-(-schedule.steps_per_pass // length))  # the window after the first pass
    step = now * length + length // 2
    held = {
        int(block): min((window + 1) * length, step)
        for window in range(now + 1)
        for block in schedule.window_blocks(window)
    }
    assert len(held) == -(-schedule.positions_end // sizes.block), "some block was never in a window"
    generator = np.random.default_rng(0)
    shape = (sizes.block, sizes.dim)
    for block, last_step in held.items():
        weight = generator.standard_normal(shape, dtype=np.float32)
        momentum = 0.01 * generator.standard_normal(shape, dtype=np.float32)
        engine.disk.write_block(block, Block(weight, momentum, np.full(sizes.block, last_step)))
    engine.disk.drain()
    rows.log.extend(np.full(step, RATE))
    rows.visited = sizes.size
    current = schedule.window_blocks(now)
    rows.host.load(sorted(current.tolist()), current)
    checkpoints.save(step, engine.method, TRUNK, [0.0] * step, {})
    checkpoints.finish()
    engine.close()
    return step


def work(sizes: Sizes, directory: Path, windows: int, step_seconds: float, confine: str) -> dict[str, Any]:
    """`go_on` in a process that is fresh; `confine` as `memory_limit` tells it."""
    kind, _, value = confine.partition(":")
    if kind == "cgroup":
        Path(value, "cgroup.procs").write_text(str(os.getpid()))
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (int(value), int(value)))
    torch.set_num_threads(1)
    return go_on(sizes, directory, windows, step_seconds)


def go_on(sizes: Sizes, directory: Path, windows: int, step_seconds: float) -> dict[str, Any]:
    """Recover the checkpoint and train for some windows; returns what was counted."""
    engine = Engine(sizes, directory)
    schedule, host = engine.schedule, engine.rows.host
    kept, complaints = manifest.recover(DiskFiles(directory))
    assert kept and not complaints, complaints
    Checkpoints(engine.files, engine.disk, keep=1).restore(kept, sweep=True)
    load_rows(
        kept[-1], engine.rows, schedule.window_blocks(schedule.window_of(kept[-1].step - 1)), kept[-1].log()["eta"]
    )
    host.waited_seconds, host.blocks_read = 0.0, 0

    first, device = engine.rows.log.steps, bytes_from_device()
    entered = slides = waiting_slides = late = 0
    waits, seconds = [], []
    for step in range(first, (schedule.window_of(first) + windows + 1) * schedule.steps_per_window):
        start = time.perf_counter()
        if slides_here := step % schedule.steps_per_window == 0:
            entered += sum(int(block) not in host for block in schedule.window_blocks(schedule.window_of(step)))
        assert np.isfinite(engine.step().loss)
        waited = host.waited_seconds + engine.disk.waited_seconds
        host.waited_seconds = engine.disk.waited_seconds = 0.0
        if waited:
            waits.append(waited)
        slides, waiting_slides = slides + slides_here, waiting_slides + (slides_here and waited > 0)
        seconds.append(time.perf_counter() - start)
        late += seconds[-1] > step_seconds
        time.sleep(max(0.0, step_seconds - seconds[-1]))
    engine.disk.check()
    assert host.blocks_read == entered, (host.blocks_read, entered)
    assert engine.rows.visited == sizes.size, "a row was admitted that was never visited"
    told = {
        "steps": len(seconds),
        "slides": slides,
        "waiting_slides": waiting_slides,
        "entered": entered,
        "device": bytes_from_device() - device,
        "waits": waits,
        "late": late,
        "work": seconds,
        "readmitted": engine.rows.readmitted,
        "peak": peak_bytes(),
    }
    engine.close()
    return told


def bytes_from_device() -> int:
    """What this process made the kernel read from a block device so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


@contextlib.contextmanager
def memory_limit(limit_bytes: int) -> Iterator[str]:
    """How a process is to confine itself: "cgroup:directory", with the limit set there, or "rlimit:bytes"."""
    for root, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(f"{root}{_own_group()}/bench-{os.getpid()}")
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                if not (group / file).exists():
                    continue
                (group / file).write_text(str(limit_bytes))
                yield f"cgroup:{group}"
                return
            finally:
                group.rmdir()
    yield f"rlimit:{limit_bytes}"


def _own_group() -> str:
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    by_memory = [path for _, controllers, path in lines if "memory" in controllers.split(",")]
    return by_memory[0] if by_memory else next((path for number, _, path in lines if number == "0"), "")


def in_fresh_process(sizes: Sizes, directory: Path, windows: int, step_seconds: float, confine: str) -> dict[str, Any]:
    arguments = [json.dumps(asdict(sizes)), str(directory), str(windows), str(step_seconds), confine]
    command = [sys.executable, "-m", "tests.bench_disk", "--work", *arguments]
    root, environment = Path(__file__).parents[1], {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)
    return json.loads(finished.stdout)


def main(argv: Sequence[str] | None = None, run: Callable[..., dict[str, Any]] = in_fresh_process) -> None:
    parser = argparse.ArgumentParser(description="Steps that wait for the disk, by step time.")
    parser.add_argument("--rows", type=int, default=2**21, help="N, all visited")
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[5, 10, 20, 50], help="step times")
    parser.add_argument("--windows", type=int, default=20, help="slides of the window")
    parser.add_argument("--limit", type=int, default=1024, help="memory of the process that trains, MiB")
    parser.add_argument("--active", type=int, default=512, help="K")
    parser.add_argument("--window", type=int, default=16384, help="W")
    parser.add_argument("--stride", type=int, default=4096, help="S")
    parser.add_argument("--batch", type=int, default=256, help="G")
    parser.add_argument("--block", type=int, default=512, help="C")
    parser.add_argument("--lanes", type=int, default=8, help="L")
    parser.add_argument("--dim", type=int, default=128, help="D")
    parser.add_argument("--directory", type=Path, default=Path())
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.work:
        shape, directory, windows, step_seconds, confine = arguments.work
        told = work(Sizes(**json.loads(shape)), Path(directory), int(windows), float(step_seconds), confine)
        print(json.dumps(told))
        return
    names = ("active", "window", "stride", "batch", "block", "lanes", "dim")
    sizes = Sizes(size=arguments.rows, **{name: getattr(arguments, name) for name in names})
    rows_bytes = sizes.size * (8 * sizes.dim + 8)

    print(machine())
    with scratch(arguments.directory.resolve()) as place, memory_limit(arguments.limit * 2**20) as confine:
        start = time.perf_counter()
        step = build(sizes, place)
        print(
            f"{sizes.size:,} rows, all visited ({rows_bytes / 2**20:,.0f} MiB in {sizes.size // sizes.block:,} blocks), "
            f"W {sizes.window:,}, S {sizes.stride:,}, G {sizes.batch}, C {sizes.block}, K {sizes.active:,}, D {sizes.dim}; "
            f"checkpoint of step {step:,} written in {time.perf_counter() - start:.0f} s\n"
            f"memory limit {arguments.limit} MiB by {'memory cgroup' if confine.startswith('cgroup') else 'RLIMIT_DATA'}\n\n"
            "| step, ms | work of a step, ms | late | steps | waited | of slides | waited, s | longest, ms | blocks entered = read "
            "| from the device, MiB | peak, MiB |\n|---|---|---|---|---|---|---|---|---|---|---|",
            flush=True,
        )
        good, left = [], 0.0
        for milliseconds in arguments.milliseconds:
            drop_from_cache(paths := files_below(place))
            left = max(left, share_in_cache(paths))
            told = run(sizes, place, arguments.windows, milliseconds / 1e3, confine)
            waits, steps = told["waits"], told["steps"]
            if len(waits) / steps < BAR_SHARE and told["late"] < steps / 2:  # else the step time is another
                good.append(milliseconds)
            cells = [
                f"{milliseconds:g}",
                spread([second * 1e3 for second in told["work"]], 1),
                f"{told['late'] / steps:.1%}",
                f"{steps}",
                f"{len(waits) / steps:.2%}",
                f"{told['waiting_slides']} of {told['slides']}",
                f"{sum(waits):.3f}",
                f"{max(waits, default=0) * 1e3:.1f}",
                f"{told['entered']}",
                f"{told['device'] / 2**20:.0f}",
                f"{told['peak'] / 2**20:.0f}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\nin the page cache before a run: at most {left:.1%} of the files")
    if good and min(good) <= BAR_MILLISECONDS:
        print(
            f"under {BAR_SHARE:.0%} of steps waited from {min(good):g} ms on; bar: at some step time up to {BAR_MILLISECONDS:g} ms: holds"
        )
    else:
        print(
            f"at no step time up to {BAR_MILLISECONDS:g} ms did under {BAR_SHARE:.0%} of steps wait: the bar does not hold"
        )


if __name__ == "__main__":
    main()
