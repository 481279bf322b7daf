"""Time, bandwidth and peak memory of catching up M rows, beside the plain line and a plain copy.

    python -m kernels.catch_up.bench [--count 256 4096] [--pool 262144] [--rows 65536] [--threads 2] [--device cpu] [--quick]

Every repeat of every method takes other rows of the pool and other slots, so that none finds them in the cache because somebody
was there before. GB/s counts 2 M rows read and 2 M written. The copy moves as many bytes, one after another, from the cache if
they fit: a row far away costs more than its bytes. On CUDA the pool is pinned; "plain" computes on the host and then copies.

Measured as kernels/measure.py says; the table has the median, the fastest and the slowest repeat. The last but one column is the
share of the copy's bandwidth (fastest against fastest). Peak memory is what comes on top of the rows and the pool.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.catch_up import catch_up_
from kernels.catch_up.reference import catch_up_reference_
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

_DRAWS = 64


def pools(rows: int, pool: int, features: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(rows, momentum, source rows, source momentum), seeded."""
    generator = torch.Generator().manual_seed(0)
    sources = [torch.randn(pool, features, generator=generator) for _ in range(2)]
    if device.type == "cuda":
        sources = [source.pin_memory() for source in sources]
    targets = [torch.zeros(rows, features, device=device) for _ in range(2)]
    return targets[0], targets[1], sources[0], sources[1]


def run_of(method: str, count: int, arrays: tuple[Tensor, Tensor, Tensor, Tensor]) -> Run:
    """A run that takes the next of the method's own, seeded draws of rows and slots every time."""
    rows_KD, momentum_KD, source_rows_PD, source_momentum_PD = arrays
    generator = torch.Generator().manual_seed(sum(method.encode()))
    draws = itertools.cycle(
        [
            (
                torch.randperm(len(rows_KD), generator=generator)[:count],
                torch.randint(len(source_rows_PD), (count,), generator=generator),
                torch.randn(count, 2, 2, generator=generator, dtype=torch.float64),
            )
            for _ in range(_DRAWS)
        ]
    )

    def run() -> None:
        slots_M, indices_M, products_M22 = next(draws)
        parts = (rows_KD, momentum_KD, slots_M, source_rows_PD, source_momentum_PD, indices_M, products_M22)
        if method == "plain":
            catch_up_reference_(*parts)
        else:
            catch_up_(*parts, backend=method)

    return run


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_beside_copy("Benchmark of catch_up.")
    parser.add_argument("--count", type=int, nargs="+", default=[256, 4096], help="M, one or more")
    parser.add_argument("--pool", type=int, default=262_144, help="P")
    parser.add_argument("--rows", type=int, default=65_536, help="K")
    parser.set_defaults(repeats=_DRAWS - 1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    device, features = torch.device(arguments.device), arguments.features
    rows, pool = (512, 1024) if arguments.quick else (arguments.rows, arguments.pool)
    arrays = pools(rows, pool, features, device)
    if arguments.peak_of:
        small = run_of(arguments.peak_of, 4, arrays)
        print(peak_of(run_of(arguments.peak_of, arguments.count[0], arrays), small, device))
        return
    print(f"{machine(device, arguments.threads)}, float32\n")
    for count in [64] if arguments.quick else arguments.count:
        moved_bytes = 4 * 4 * count * features
        names, peaks = methods("catch_up", device), {}
        if not arguments.quick:
            size = ["--count", str(count), "--pool", str(pool), "--rows", str(rows), "--features", str(features)]
            where = ["--threads", str(arguments.threads), "--device", arguments.device]
            for name in names:
                words = ["--peak-of", name, *size, *where]
                peaks[name] = peak_in_fresh_process("kernels.catch_up.bench", words, arguments.threads)
        runs = {name: run_of(name, count, arrays) for name in names}
        runs[COPY] = copy_run(moved_bytes, device)
        seconds = seconds_of(runs, 2 if arguments.quick else arguments.repeats, device)
        what = f"M = {count:,} of P = {pool:,}, D = {features}: {moved_bytes / 2**20:.2f} MiB to move"
        print(table_beside_copy(what, seconds, moved_bytes, peaks), end="\n\n")


if __name__ == "__main__":
    main()
