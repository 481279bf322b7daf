"""Time and peak memory of forward + backward, beside what one would use otherwise and beside the bare matrix products.

    python -m kernels.sampled_softmax.bench [--samples 256] [--rows 4096 65536] [--features 128] [--threads 2] ...

Each line is one way to get loss and both gradients. Repeats are interleaved (every method once, then all again), so
that a busy moment of the machine hits all alike; the table has the median, the fastest and the slowest. GFLOP/s counts
the products of that line, 2 B K D each: three where logits are kept, four where they are computed twice. The product
lines do nothing else, on buffers made beforehand; they are no full method and have no memory figure.

Peak memory counts everything beyond the inputs, gradients too. On a CPU it is the growth of the process's resident set
(VmHWM after clearing it, Linux only) in a fresh process that first ran a small problem, so that libraries' own buffers
are not counted but their scratch for this size is. On CUDA it is the allocator's peak.
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

import torch
import torch.nn.functional
from torch import Tensor

from kernels.sampled_softmax import backend, sampled_softmax
from kernels.sampled_softmax.aten import tile_rows
from kernels.sampled_softmax.reference import sampled_softmax_reference

Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def _blocked(features_BD: Tensor, rows_KD: Tensor, targets_B: Tensor, temperature: float) -> Tensor:
    return sampled_softmax(features_BD, rows_KD, targets_B, temperature=temperature).mean()


def _eager(features_BD: Tensor, rows_KD: Tensor, targets_B: Tensor, temperature: float) -> Tensor:
    return sampled_softmax_reference(features_BD, rows_KD, targets_B, temperature=temperature).mean()


def _linear_cross_entropy(features_BD: Tensor, rows_KD: Tensor, targets_B: Tensor, temperature: float) -> Tensor:
    # It tiles over samples; a quarter of the batch at a time is a compromise between its memory and its speed.
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=max(1, len(features_BD) // 4))
    scaled_BD = torch.nn.functional.normalize(features_BD) / temperature
    unit_KD = torch.nn.functional.normalize(rows_KD)
    return torch.nn.functional.linear_cross_entropy(scaled_BD, unit_KD, targets_B, options=options)


def losses() -> dict[str, Loss]:
    """The methods that this torch has, by name: (features, rows, targets, temperature) -> mean loss."""
    methods: dict[str, Loss] = {"sampled_softmax": _blocked, "eager": _eager}
    if hasattr(torch.nn.functional, "linear_cross_entropy"):  # torch >= 2.13
        methods["linear_cross_entropy"] = _linear_cross_entropy
    return methods


def products(features_BD: Tensor, rows_KD: Tensor, count: int) -> Callable[[], None]:
    """The three or four matrix products alone, tile by tile: logits (once or twice), dz, drows."""
    tile = tile_rows(features_BD.shape[0], features_BD.shape[1], features_BD.device)
    logits = features_BD.new_empty(len(features_BD) * min(tile, len(rows_KD)))
    dfeatures_BD = torch.zeros_like(features_BD)
    drows_KD = torch.empty_like(rows_KD)

    def run() -> None:
        for start in range(0, len(rows_KD), tile):
            rows_TD = rows_KD[start : start + tile]
            logits_BT = logits[: len(features_BD) * len(rows_TD)].view(len(features_BD), len(rows_TD))
            for _ in range(count - 2):
                torch.mm(features_BD, rows_TD.T, out=logits_BT)
            dfeatures_BD.addmm_(logits_BT, rows_TD, beta=0)
            torch.mm(logits_BT.T, features_BD, out=drows_KD[start : start + tile])

    return run


def inputs(samples: int, rows: int, features: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Seeded float32 features, rows (short, as trained ones are) and targets."""
    generator = torch.Generator().manual_seed(0)
    features_BD = torch.randn(samples, features, generator=generator)
    rows_KD = torch.randn(rows, features, generator=generator) * 0.01
    targets_B = torch.randint(rows, (samples,), generator=generator)
    return (
        features_BD.to(device).requires_grad_(),
        rows_KD.to(device).requires_grad_(),
        targets_B.to(device),
    )


def _run(loss: Loss, features_BD: Tensor, rows_KD: Tensor, targets_B: Tensor, temperature: float) -> None:
    features_BD.grad = rows_KD.grad = None
    loss(features_BD, rows_KD, targets_B, temperature).backward()


def seconds_of(runs: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, list[float]]:
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


def peak_bytes(name: str, samples: int, rows: int, features: int, temperature: float, device: torch.device) -> int:
    """Peak memory of one forward + backward beyond its inputs. On a CPU: call it in a fresh process."""
    loss = losses()[name]
    _run(loss, *inputs(8, 64, features, device), temperature)
    arguments = inputs(samples, rows, features, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _run(loss, *arguments, temperature)
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to the present size
    before = _status_bytes("VmRSS")
    _run(loss, *arguments, temperature)
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def _peak_in_fresh_process(name: str, rows: int, arguments: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "kernels.sampled_softmax.bench", "--peak-of", name, "--rows", str(rows)]
    for flag in ("samples", "features", "temperature", "threads", "device"):
        command += [f"--{flag}", str(getattr(arguments, flag))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    root = Path(__file__).parents[2]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)
    return int(finished.stdout)


def table(rows: int, arguments: argparse.Namespace) -> str:
    """The Markdown table for one K."""
    device = torch.device(arguments.device)
    features_BD, rows_KD, targets_B = inputs(arguments.samples, rows, arguments.features, device)
    runs: dict[str, Callable[[], None]] = {
        name: functools.partial(_run, loss, features_BD, rows_KD, targets_B, arguments.temperature)
        for name, loss in losses().items()
    }
    values = [loss(features_BD, rows_KD, targets_B, arguments.temperature).item() for loss in losses().values()]
    assert max(values) - min(values) < 1e-4, f"the methods disagree: {values}"
    peaks = {name: f"{_peak_in_fresh_process(name, rows, arguments) / 2**20:.1f}" for name in runs}
    counts = {name: 4 if name == "sampled_softmax" else 3 for name in runs}
    for count, word in ((4, "four"), (3, "three")):
        runs[f"{word} products"] = products(features_BD.detach(), rows_KD.detach(), count)
        counts[f"{word} products"] = count
    lines = [
        f"B = {arguments.samples}, K = {rows}, D = {arguments.features}, float32; both gradients are "
        f"{(arguments.samples + rows) * arguments.features * 4 / 2**20:.1f} MiB of every peak",
        "",
        "| method | ms, median | min | max | GFLOP/s | peak beyond inputs, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, seconds in seconds_of(runs, arguments.repeats, device).items():
        median = statistics.median(seconds)
        flops = counts[name] * 2 * arguments.samples * rows * arguments.features
        figures = [median * 1e3, min(seconds) * 1e3, max(seconds) * 1e3]
        cells = [f"{figure:.1f}" for figure in figures] + [f"{flops / median / 1e9:.0f}", peaks.get(name, "-")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark of sampled_softmax, forward + backward.")
    parser.add_argument("--samples", type=int, default=256, help="B")
    parser.add_argument("--rows", type=int, nargs="+", default=[4096, 65536], help="K, one or more")
    parser.add_argument("--features", type=int, default=128, help="D")
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--peak-of", choices=sorted(losses()), help="print one method's peak bytes and nothing else")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.peak_of:
        size = (arguments.samples, arguments.rows[0], arguments.features)
        print(peak_bytes(arguments.peak_of, *size, arguments.temperature, device))
        return
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {arguments.threads} threads"
    print(f"torch {torch.__version__}, {where}, backend {backend(device)}, temperature {arguments.temperature}\n")
    for rows in arguments.rows:
        print(table(rows, arguments), end="\n\n")


if __name__ == "__main__":
    main()
