"""Time and peak memory of the op beside what one would use otherwise, and beside the bare matrix products.

    python -m kernels.sampled_softmax.bench [--samples 256 1024 4096] [--rows 4096 65536 ...] [--device cuda] ...

One table a size, every line timed in one interleaved run (kernels/measure.py). Forward and backward, loss and both gradients:

    cpu / cuda, aten        sampled_softmax by its implementations
    eager                   reference.py: the plain line
    linear_cross_entropy    torch's, at the fastest of its chunk sizes, on normalised rows; cce_exact and liger where installed
    four products           what never holding the logits costs, at the fastest of several tile sizes; no other work at all
    three products          what an op that holds the logits pays: z W^T, p W, p^T z on whole matrices
    step, ...               the same and one step of SGD for all rows: fused (also with the own row left out of the sum), written
                            and applied, eager with torch.optim.SGD

GFLOP/s counts the products of the line, 2 B K D each: four where logits are computed twice, else three. GB/s counts what has to
move at least: features and rows read twice, gradients written. The limit is the four products, or those bytes at the speed
of a plain copy, whichever takes longer; a step moves rows and momentum instead of a gradient. Rivals get the same K rows.
Sizes with more work than --gflop are left out, and so is what would hold more than 4 GiB of logits; both are said.
"""

import argparse
import functools
import importlib
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional
from torch import Tensor

from kernels.compiled import NotCompiled, load
from kernels.measure import (
    Run,
    copy_run,
    machine,
    milliseconds,
    peak_in_fresh_process,
    peak_of,
    seconds_of,
)
from kernels.row_update import row_update_
from kernels.sampled_softmax import (
    combine,
    features_gradient,
    sampled_softmax,
    softmax_forward_negatives,
    softmax_rows_gradient,
    softmax_rows_update_,
)
from kernels.sampled_softmax.reference import sampled_softmax_reference

Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
MOST_LOGITS_BYTES = 4 << 30
TILES = (512, 1024, 2048, 4096)


def _sampled(backend: str, products: str) -> Loss:
    def loss(features_BD: Tensor, rows_KD: Tensor, targets_B: Tensor, temperature: float) -> Tensor:
        return sampled_softmax(
            features_BD, rows_KD, targets_B, temperature=temperature, backend=backend, products=products
        ).mean()

    return loss


def _eager(features_BD: Tensor, rows_KD: Tensor, targets_B: Tensor, temperature: float) -> Tensor:
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=features_BD.device.type == "cuda"):
        return sampled_softmax_reference(features_BD, rows_KD, targets_B, temperature=temperature).mean()


def _on_normalised(function: Callable[[Tensor, Tensor, Tensor], Tensor], half: bool) -> Loss:
    """A cross entropy of features @ rows.T, given unit rows and unit features over the temperature."""

    def loss(features_BD: Tensor, rows_KD: Tensor, targets_B: Tensor, temperature: float) -> Tensor:
        scaled_BD = torch.nn.functional.normalize(features_BD) / temperature
        unit_KD = torch.nn.functional.normalize(rows_KD)
        if half and features_BD.device.type == "cuda":
            scaled_BD, unit_KD = scaled_BD.bfloat16(), unit_KD.bfloat16()
        return function(scaled_BD, unit_KD, targets_B)

    return loss


def _linear_cross_entropy(chunk: int) -> Loss:
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
    function = functools.partial(torch.nn.functional.linear_cross_entropy, options=options)
    return _on_normalised(function, half=True)


def losses(samples: int, rows: int, device: torch.device) -> dict[str, Loss]:
    """What can run here, by name: (features, rows, targets, temperature) -> mean loss. linear_cross_entropy is one a chunk size."""
    methods: dict[str, Loss] = {}
    try:
        load("sampled_softmax", device.type)
        if device.type == "cuda":
            methods |= {f"cuda, {p}": _sampled("cuda", p) for p in ("bfloat16", "tf32", "float32")}
        else:
            methods["cpu"] = _sampled("cpu", "float32")
    except NotCompiled as error:
        print(f"no compiled implementation: {error}")
    methods["aten"] = _sampled("aten", "float32")
    if samples * rows * 4 <= MOST_LOGITS_BYTES:
        methods["eager"] = _eager
    if hasattr(torch.nn.functional, "linear_cross_entropy"):  # torch >= 2.13
        for parts in (1, 2, 4, 8, 16):
            chunk = max(1, samples // parts)
            if chunk * rows * 4 <= MOST_LOGITS_BYTES:
                methods[f"linear_cross_entropy, chunks of {chunk}"] = _linear_cross_entropy(chunk)
    if device.type == "cuda" and importlib.util.find_spec("cut_cross_entropy"):
        cce = importlib.import_module("cut_cross_entropy").linear_cross_entropy
        methods["cce_exact"] = _on_normalised(functools.partial(cce, impl="cce_exact"), half=True)
    if device.type == "cuda" and importlib.util.find_spec("liger_kernel"):
        liger = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
        methods["liger"] = _on_normalised(lambda z, w, t: liger(w, z, t), half=True)
    return methods


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


def _both_gradients(loss: Loss, features_BD: Tensor, rows_KD: Tensor, targets_B: Tensor, temperature: float) -> None:
    features_BD.grad = rows_KD.grad = None
    loss(features_BD, rows_KD, targets_B, temperature).backward()


def four_products(features_BD: Tensor, rows_KD: Tensor, tile: int) -> Run:
    """Logits twice, dz and drows, tile by tile on buffers made beforehand."""
    dtype = torch.bfloat16 if features_BD.device.type == "cuda" else features_BD.dtype
    features_BD, rows_KD = features_BD.to(dtype), rows_KD.to(dtype)
    logits = features_BD.new_empty(len(features_BD) * min(tile, len(rows_KD)))
    dfeatures_BD, drows_KD = torch.zeros_like(features_BD), torch.empty_like(rows_KD)

    def run() -> None:
        for start in range(0, len(rows_KD), tile):
            rows_TD = rows_KD[start : start + tile]
            logits_BT = logits[: len(features_BD) * len(rows_TD)].view(len(features_BD), len(rows_TD))
            torch.mm(features_BD, rows_TD.T, out=logits_BT)
            torch.mm(features_BD, rows_TD.T, out=logits_BT)
            dfeatures_BD.addmm_(logits_BT, rows_TD, beta=0)
            torch.mm(logits_BT.T, features_BD, out=drows_KD[start : start + tile])

    return run


def three_products(features_BD: Tensor, rows_KD: Tensor) -> Run:
    """z W^T, p W and p^T z on whole matrices made beforehand."""
    dtype = torch.bfloat16 if features_BD.device.type == "cuda" else features_BD.dtype
    features_BD, rows_KD = features_BD.to(dtype), rows_KD.to(dtype)
    logits_BK = features_BD.new_empty(len(features_BD), len(rows_KD))
    dfeatures_BD, drows_KD = torch.empty_like(features_BD), torch.empty_like(rows_KD)

    def run() -> None:
        torch.mm(features_BD, rows_KD.T, out=logits_BK)
        torch.mm(logits_BK, rows_KD, out=dfeatures_BD)
        torch.mm(logits_BK.T, features_BD, out=drows_KD)

    return run


def steps(
    loss_names: Sequence[str], features_BD: Tensor, rows_KD: Tensor, targets_B: Tensor, temperature: float
) -> dict[str, Run]:
    """Loss, the features' gradient and one step of SGD for all rows, as engine/training/step.py does it and as plain torch does."""
    device = features_BD.device
    backend = device.type if any(name.startswith(device.type) for name in loss_names) else "aten"
    products = "bfloat16" if backend == "cuda" else "float32"
    z_BD, rows_KD, momentum_KD = features_BD.detach(), rows_KD.detach().clone(), torch.zeros_like(rows_KD)
    weight_B = torch.full((len(z_BD),), 1 / len(z_BD), device=device)

    hyper: dict[str, Any] = {"eta": 1e-3, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": False}

    def ours(fused: bool, leave_own_out: bool = False) -> None:
        shared: dict[str, Any] = {"temperature": temperature}
        kind: dict[str, Any] = {"backend": backend, "products": products}
        forward = softmax_forward_negatives(z_BD, rows_KD, targets_B, leave_own_out=leave_own_out, **shared, **kind)
        lse_B = combine([(forward.max_B, forward.sumexp_B)])
        shared["own_B"] = torch.full_like(lse_B, -1.0) if leave_own_out else None
        features_gradient(forward, z_BD, rows_KD, targets_B, lse_B, weight_B, **shared)
        if fused:
            softmax_rows_update_(z_BD, rows_KD, momentum_KD, targets_B, lse_B, weight_B, **shared, **hyper, **kind)
        else:
            drows_KD = softmax_rows_gradient(z_BD, rows_KD, targets_B, lse_B, weight_B, **shared, **kind)
            row_update_(rows_KD, momentum_KD, drows_KD, **hyper)

    runs: dict[str, Run] = {
        f"step, fused ({backend})": lambda: ours(True),
        f"step, fused, own row left out ({backend})": lambda: ours(True, True),
        f"step, written and applied ({backend})": lambda: ours(False),
    }
    if "eager" in loss_names:
        parameter = torch.nn.Parameter(rows_KD.clone())
        sgd = torch.optim.SGD([parameter], lr=1e-3, momentum=0.9, weight_decay=1e-4)

        def eager() -> None:
            _both_gradients(_eager, features_BD, parameter, targets_B, temperature)
            sgd.step()

        runs["step, eager and torch.optim.SGD"] = eager
    return runs


def _fastest(runs: dict[str, Run], device: torch.device) -> str:
    """The name of the fastest of several settings, by two repeats."""
    seconds = seconds_of(runs, 2, device)
    return min(seconds, key=lambda name: min(seconds[name]))


def table(samples: int, rows: int, arguments: argparse.Namespace) -> str:
    """The Markdown table for one B and K."""
    device, features = torch.device(arguments.device), arguments.features
    z_BD, rows_KD, targets_B = inputs(samples, rows, features, device)
    methods = losses(samples, rows, device)
    with torch.no_grad():
        values = {name: loss(z_BD, rows_KD, targets_B, arguments.temperature).item() for name, loss in methods.items()}
    tolerance = 1e-4 if device.type == "cpu" else 0.1
    assert max(values.values()) - min(values.values()) < tolerance, f"the methods disagree: {values}"
    runs: dict[str, Run] = {
        name: functools.partial(_both_gradients, loss, z_BD, rows_KD, targets_B, arguments.temperature)
        for name, loss in methods.items()
    }
    chunked = {name: run for name, run in runs.items() if name.startswith("linear")}
    for name in set(chunked) - ({_fastest(chunked, device)} if chunked else set()):
        del runs[name]
    peaks = {name: _peak(name, samples, rows, arguments) for name in runs}
    runs |= steps(list(runs), z_BD, rows_KD, targets_B, arguments.temperature)
    tiled = {str(tile): four_products(z_BD.detach(), rows_KD.detach(), tile) for tile in TILES}
    four = f"four products (tiles of {_fastest(tiled, device)})"
    runs[four] = tiled[four.split()[-1].rstrip(")")]
    if samples * rows * 4 <= MOST_LOGITS_BYTES:
        runs["three products"] = three_products(z_BD.detach(), rows_KD.detach())
    moved_bytes = 4 * features * (3 * samples + 3 * rows)
    runs["copy"] = copy_run(moved_bytes, device)

    seconds = seconds_of(runs, arguments.repeats, device)
    limit = max(statistics.median(seconds[four]), statistics.median(seconds["copy"]))
    gradients = (samples + rows) * features * 4
    lines = [
        f"B = {samples}, K = {rows}, D = {features}, float32; a matrix of logits has {samples * rows * 4 / 2**20:.1f} MiB",
        "",
        "| method | ms, median | min | max | GFLOP/s | GB/s | limit / time | peak beyond inputs and gradients, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, all_seconds in seconds.items():
        median = statistics.median(all_seconds)
        twice = name.startswith(("cpu", "cuda", "aten", "four", "step, fused", "step, written"))
        flops = 0 if name == "copy" else (4 if twice else 3) * 2 * samples * rows * features
        peak = f"{(peaks[name] - gradients) / 2**20:.1f}" if name in peaks else "-"
        cells = [*milliseconds(all_seconds), f"{flops / median / 1e9:.0f}" if flops else "-"]
        cells += [f"{moved_bytes / median / 1e9:.1f}", f"{limit / median:.2f}", peak]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _peak(name: str, samples: int, rows: int, arguments: argparse.Namespace) -> int:
    device = torch.device(arguments.device)
    if device.type == "cuda":
        return peak_bytes(name, samples, rows, arguments)
    words = ["--peak-of", name, "--samples", str(samples), "--rows", str(rows)]
    for flag in ("features", "temperature", "threads", "device"):
        words += [f"--{flag}", str(getattr(arguments, flag))]
    return peak_in_fresh_process("kernels.sampled_softmax.bench", words, arguments.threads)


def peak_bytes(name: str, samples: int, rows: int, arguments: argparse.Namespace) -> int:
    """Peak of one method beyond its inputs, gradients included. On a CPU: call it in a fresh process."""
    device, features = torch.device(arguments.device), arguments.features
    loss = losses(samples, rows, device)[name]
    small = functools.partial(_both_gradients, loss, *inputs(samples, 64, features, device), arguments.temperature)
    run = functools.partial(_both_gradients, loss, *inputs(samples, rows, features, device), arguments.temperature)
    return peak_of(run, small, device)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark of sampled_softmax, forward + backward.")
    parser.add_argument("--samples", type=int, nargs="+", default=[256, 1024, 4096], help="B, one or more")
    parser.add_argument("--rows", type=int, nargs="+", default=[4096, 65536, 262144, 1048576], help="K, one or more")
    parser.add_argument("--features", type=int, default=128, help="D")
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--gflop", type=float, help="leave out sizes with more work; default: 100 on a CPU, 20000 on CUDA"
    )
    parser.add_argument("--peak-of", help="print one method's peak bytes at the first B and K, and nothing else")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.peak_of:
        print(peak_bytes(arguments.peak_of, arguments.samples[0], arguments.rows[0], arguments))
        return
    print(f"{machine(device, arguments.threads)}, temperature {arguments.temperature}\n")
    most_gflop = arguments.gflop or (100 if device.type == "cpu" else 20_000)
    for samples in arguments.samples:
        for rows in arguments.rows:
            gflop = 8 * samples * rows * arguments.features / 1e9
            if gflop > most_gflop:
                print(f"left out: B = {samples}, K = {rows}, {gflop:.0f} GFLOP (--gflop {most_gflop:.0f})\n")
                continue
            print(table(samples, rows, arguments), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
