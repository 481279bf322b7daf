"""Time, bandwidth and peak memory of a step for all rows, beside the plain line and a plain copy.

    python -m kernels.row_update.bench [--rows 4096 65536 1048576] [--features 128] [--threads 2] [--device cpu] [--quick]

Measured as kernels/measure.py says; the table has the median, the fastest and the slowest repeat. GB/s counts what has to move at
least: 3 arrays read and 2 written, float32. The copy is torch's, of as many bytes in all, and is the bandwidth that the last but
one column is a share of (fastest against fastest). Arrays that fit the last-level cache are there already in every repeat, those
of the copy too. Peak memory is what comes on top of the arrays.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.measure import (
    COPY,
    Run,
    copy_run,
    machine,
    methods,
    parser_beside_copy,
    peak_in_fresh_process,
    peak_of,
    seconds_of,
    table_beside_copy,
)
from kernels.row_update import row_update_

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


def inputs(rows: int, features: int, device: torch.device) -> list[Tensor]:
    """Seeded rows, momentum and gradient; every method steps on with the same."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, features, generator=generator).to(device) for _ in range(3)]


def run_of(method: str, arrays: list[Tensor]) -> Run:
    """One step on these arrays."""
    if method == "plain":
        return functools.partial(plain_, *arrays, **_STEP)
    return functools.partial(row_update_, *arrays, **_STEP, backend=method)


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_beside_copy("Benchmark of row_update.")
    parser.add_argument("--rows", type=int, nargs="+", default=[4096, 65_536, 1_048_576], help="K")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    device, features = torch.device(arguments.device), arguments.features
    if arguments.peak_of:
        small, large = (run_of(arguments.peak_of, inputs(rows, features, device)) for rows in (16, arguments.rows[0]))
        print(peak_of(large, small, device))
        return
    print(f"{machine(device, arguments.threads)}, float32\n")
    for rows in [512] if arguments.quick else arguments.rows:
        moved_bytes = 5 * 4 * rows * features
        names, peaks = methods("row_update", device), {}
        if not arguments.quick:
            size = ["--rows", str(rows), "--features", str(features)]
            where = ["--threads", str(arguments.threads), "--device", arguments.device]
            for name in names:
                words = ["--peak-of", name, *size, *where]
                peaks[name] = peak_in_fresh_process("kernels.row_update.bench", words, arguments.threads)
        arrays = inputs(rows, features, device)
        runs = {name: run_of(name, arrays) for name in names}
        runs[COPY] = copy_run(moved_bytes, device)
        seconds = seconds_of(runs, 2 if arguments.quick else arguments.repeats, device)
        what = f"K = {rows:,}, D = {features}: {moved_bytes / 2**20:.1f} MiB to move"
        print(table_beside_copy(what, seconds, moved_bytes, peaks), end="\n\n")


if __name__ == "__main__":
    main()
