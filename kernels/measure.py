"""How the ops' benches measure: interleaved repeats, and peak memory in a process of its own.

A machine is never quiet for long. So every method runs once, then all again: a busy moment hits all alike, and only figures of one
run may be compared. Peak memory counts what comes on top of the inputs: on CUDA the allocator's peak; on a CPU the growth of the
resident set (VmHWM after clearing it, Linux only), in a fresh process that ran a small problem before, so that libraries' own
buffers are not counted but their scratch for this size is.

The ops that do little but move memory (row_update, catch_up) also share their flags, their methods and their table, whose measure
is a copy.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from kernels.compiled import choose

Run = Callable[[], object]
COPY = "copy"


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(runs: dict[str, Run], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each repeat of each run, interleaved, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            if repeat > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def milliseconds(seconds: list[float]) -> list[str]:
    """Median, fastest and slowest, for a table."""
    return [f"{1e3 * figure:.3g}" for figure in (statistics.median(seconds), min(seconds), max(seconds))]


def copy_run(moved_bytes: int, device: torch.device) -> Run:
    """A copy that reads and writes so many bytes together: what memory can do."""
    source, destination = (torch.ones(max(1, moved_bytes // 8), device=device) for _ in range(2))
    return lambda: destination.copy_(source)


def peak_of(run: Run, small: Run, device: torch.device) -> int:
    """Bytes that `run` needs on top of what there is before it; `small` runs first. On a CPU: call it in a fresh process."""
    small()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to the present size
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def peak_in_fresh_process(module: str, words: list[str], threads: int) -> int:
    """What `python -m module words...` prints last: its own measurement of one method's peak, in bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", module, *words]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)
    return int(finished.stdout.splitlines()[-1])  # before it a bench may have said what cannot run here


def machine(device: torch.device, threads: int) -> str:
    """One line for the top of a table: what ran it."""
    if device.type == "cuda":
        return f"torch {torch.__version__}, {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {names[0] if names else 'CPU'} ({capability}), {threads} threads"


def methods(op: str, device: torch.device) -> list[str]:
    """What can run here: the plain line, ATen, and the compiled implementation where there is one."""
    chosen = choose(op, device).name
    return ["plain", "aten", *([chosen] if chosen != "aten" else [])]


def parser_beside_copy(description: str) -> argparse.ArgumentParser:
    """The flags of a bench whose table is `table_beside_copy`, without those for its sizes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--features", type=int, default=128, help="D")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="a small size, twice, without memory: does it run?")
    parser.add_argument("--peak-of", help="print one method's peak bytes and nothing else")
    return parser


def table_beside_copy(what: str, seconds: dict[str, list[float]], moved_bytes: int, peaks: dict[str, int]) -> str:
    """The Markdown table of one size. The fastest repeat of the run called COPY is the measure of all."""
    lines = [
        what,
        "",
        "| method | ms, median | min | max | GB/s | share of copy | peak beyond arrays, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, all_seconds in seconds.items():
        peak = f"{peaks[name] / 2**20:.1f}" if name in peaks else "-"
        cells = [*milliseconds(all_seconds), f"{moved_bytes / statistics.median(all_seconds) / 1e9:.1f}"]
        cells += [f"{min(seconds[COPY]) / min(all_seconds):.0%}", peak]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _status_bytes(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024
