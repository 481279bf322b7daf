"""Time, bandwidth and peak memory of a step for all rows, beside the plain line and a plain copy.

    python -m kernels.row_update.bench [--rows 4096 65536 1048576] [--features 128] [--threads 2] [--device cpu] [--quick]

Repeats are interleaved (every method once, then all again), so that a busy moment of the machine hits all alike; the table has
the median, the fastest and the slowest. GB/s counts what has to move at least: 3 arrays read and 2 written, float32. The copy is
torch's, of as many bytes in all, and is the bandwidth that the last but one column is a share of (fastest against fastest).
Arrays that fit the last-level cache are there already in every repeat, those of the copy too.

Peak memory is what comes on top of the arrays: on a CPU the growth of the resident set (VmHWM, Linux only) in a fresh process
that first ran a small problem; on CUDA the allocator's peak.
"""

import argparse
import functools
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.compiled import choose
from kernels.row_update import row_update_

Run = Callable[[], object]
COPY = "copy"
_STEP: dict[str, Any] = {"eta": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": False}


def plain_(
    rows_KD: Tensor,
    momentum_KD: Tensor,
    drows_KD: Tensor,
    *,
    eta: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """The line that this op replaces, whole arrays at a time."""
    gradient_KD = drows_KD.add(rows_KD, alpha=weight_decay)
    momentum_KD.mul_(momentum).add_(gradient_KD)
    direction_KD = gradient_KD.add_(momentum_KD, alpha=momentum) if nesterov else momentum_KD
    rows_KD.add_(direction_KD, alpha=-eta)


def methods(op: str, device: torch.device) -> list[str]:
    """What can run here: the plain line, ATen, and the compiled implementation where there is one."""
    chosen = choose(op, device).name
    return ["plain", "aten", *([chosen] if chosen != "aten" else [])]


def inputs(rows: int, features: int, device: torch.device) -> list[Tensor]:
    """Seeded rows, momentum and gradient; every method steps on with the same."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, features, generator=generator).to(device) for _ in range(3)]


def run_of(method: str, arrays: list[Tensor]) -> Run:
    """One step on these arrays."""
    if method == "plain":
        return functools.partial(plain_, *arrays, **_STEP)
    return functools.partial(row_update_, *arrays, **_STEP, backend=method)


def copy_run(moved_bytes: int, device: torch.device) -> Run:
    """A copy that reads and writes so many bytes together."""
    source, destination = (torch.ones(max(1, moved_bytes // 8), device=device) for _ in range(2))
    return lambda: destination.copy_(source)


def seconds_of(runs: dict[str, Run], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each repeat of each run, interleaved, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if repeat > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(what: str, seconds: dict[str, list[float]], moved_bytes: int, peaks: dict[str, int]) -> str:
    """The Markdown table of one size. The copy's fastest repeat is the measure of all."""
    lines = [
        what,
        "",
        "| method | ms, median | min | max | GB/s | share of copy | peak beyond arrays, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, all_seconds in seconds.items():
        fastest = min(all_seconds)
        figures = [statistics.median(all_seconds), fastest, max(all_seconds)]
        peak = f"{peaks[name] / 2**20:.1f}" if name in peaks else "-"
        cells = [f"{figure * 1e3:.3g}" for figure in figures]
        cells += [f"{moved_bytes / figures[0] / 1e9:.1f}", f"{min(seconds[COPY]) / fastest:.0%}", peak]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def peak_of(run: Run, small: Run, device: torch.device) -> int:
    """Peak memory of a run beyond what there is before it. On a CPU: call it in a fresh process."""
    small()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to the present size
    before = _status_bytes("VmRSS")
    run()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def peak_in_fresh_process(module: str, method: str, arguments: argparse.Namespace, *words: str) -> int:
    """What `python -m module --peak-of method words...` prints."""
    command = [sys.executable, "-m", module, "--peak-of", method, *words]
    for flag in ("features", "threads", "device"):
        command += [f"--{flag}", str(getattr(arguments, flag))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    root = Path(__file__).parents[2]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)
    return int(finished.stdout)


def where(device: torch.device, threads: int) -> str:
    """One line on what ran."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads} threads"
    return f"torch {torch.__version__}, {name}, float32\n"


def arguments_of(description: str, argv: Sequence[str] | None, sizes: Callable[..., None]) -> argparse.Namespace:
    """The flags that benches of this kind share; `sizes` adds its own, and other defaults, to the parser."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--features", type=int, default=128, help="D")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="a small size, twice, without memory: does it run?")
    parser.add_argument("--peak-of", help="print one method's peak bytes and nothing else")
    sizes(parser)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = arguments_of(
        "Benchmark of row_update.",
        argv,
        lambda parser: parser.add_argument("--rows", type=int, nargs="+", default=[4096, 65_536, 1_048_576], help="K"),
    )
    device, features = torch.device(arguments.device), arguments.features
    if arguments.peak_of:
        small, large = (run_of(arguments.peak_of, inputs(rows, features, device)) for rows in (16, arguments.rows[0]))
        print(peak_of(large, small, device))
        return
    print(where(device, arguments.threads))
    for rows in [512] if arguments.quick else arguments.rows:
        moved_bytes = 5 * 4 * rows * features
        names, peaks = methods("row_update", device), {}
        if not arguments.quick:
            for name in names:
                peaks[name] = peak_in_fresh_process("kernels.row_update.bench", name, arguments, "--rows", str(rows))
        arrays = inputs(rows, features, device)
        runs = {name: run_of(name, arrays) for name in names}
        runs[COPY] = copy_run(moved_bytes, device)
        seconds = seconds_of(runs, 2 if arguments.quick else arguments.repeats, device)
        what = f"K = {rows:,}, D = {features}: {moved_bytes / 2**20:.1f} MiB to move"
        print(table(what, seconds, moved_bytes, peaks), end="\n\n")


if __name__ == "__main__":
    main()
