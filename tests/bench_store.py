"""How fast blocks go to the disk and come back, beside plain files and beside other stores.

    python -m tests.bench_store [--blocks 64] [--block 2048] [--dim 128] [--rounds 7] [--directory .]

Two questions, two tables. All figures of one table come from one run, in which the ways take turns; compare within it only.

1. What does `ZarrStore` cost over the system calls that it cannot do without? The raw writer makes the same files (names, sizes, a
   temporary name first, fsync, rename, fsync of the directories at the end) and computes no checksum; it takes turns with the store block
   by block. The raw reader reads the same files with os.preadv into the same kind of arrays: of each block one of the two is timed in
   one half of a round and the other in the other half. A ratio is the store's throughput over the raw one's, of one round.
2. What would another store give? Every way writes all blocks, drops them from the page cache, reads them, and reads them again, before
   the next way does; everything is read into given arrays, as the host tier needs it. The column `durable` says what a power cut may
   take: the ways do not promise the same.

Cold means: fsync, then posix_fadvise(DONTNEED) on each file; mincore then says what share of the pages is still there, and
the line under the table tells the largest that was seen. Below it nothing is dropped: a virtual machine's host may have a cache.
lmdb and tensorstore are no dependencies of this project (pip install lmdb tensorstore); without them their lines say so.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.disk.zarr_store import ROWS
from engine.rows.store import Block, empty_block
from tests.bench_support import drop_from_cache, files_below, machine, scratch, share_in_cache, spread
from tests.store_ways import COLUMNS, NEEDS, WAYS, RawFiles, ThisStore, random_blocks

WRITE_BAR, READ_BAR = 0.8, 0.7  # of the raw throughput


def seconds_of(run: Callable[..., None], *arguments: Any) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def ratios_to_raw(blocks: list[Block], directory: Path, rounds: int) -> tuple[dict[str, list[float]], float]:
    """The store's throughput over the raw one's for write, cold read and warm read, [rounds] each; largest share not dropped."""
    ratios: dict[str, list[float]] = {"write": [], "read, cold": [], "read, warm": []}
    left = 0.0
    rows, dim = blocks[0].weight.shape
    outs = [empty_block(rows, dim, np.float32) for _ in blocks]
    for round_number in range(rounds + 1):  # the first is not counted
        with scratch(directory) as place:
            ways = [kind(place / kind.__name__, len(blocks), rows, dim) for kind in (ThisStore, RawFiles)]
            spent = [0.0, 0.0]
            for number, block in enumerate(blocks):
                for way in (0, 1) if (number + round_number) % 2 else (1, 0):
                    spent[way] += seconds_of(ways[way].write, number, block)
            for way in (0, 1) if round_number % 2 else (1, 0):
                spent[way] += seconds_of(ways[way].finish)
            figures = {"write": spent}

            store, raw = ways
            generation = next(iter(store.store.generations.values()))
            raw.root = f"{place}/{ThisStore.__name__}/{ROWS}/{generation.name}"  # both read the store's files
            for name in ("read, cold", "read, warm"):
                figures[name] = spent = [0.0, 0.0]
                for half in (0, 1):
                    paths = files_below(place)
                    if name == "read, cold":
                        drop_from_cache(paths)
                        left = max(left, share_in_cache(paths))
                    for number, out in enumerate(outs):
                        way = (number + half + round_number) % 2
                        spent[way] += seconds_of(ways[way].read, number, out)
                check_equal(blocks, outs)
        if round_number:
            for name, (ours, plain) in figures.items():
                ratios[name].append(plain / ours)
    return ratios, left


def megabytes_a_second(
    blocks: list[Block], directory: Path, rounds: int
) -> tuple[dict[str, dict[str, list[float]]], float]:
    """By way: MB/s of write, read cold, read warm, [rounds] each; and the largest share that was not dropped."""
    found: dict[str, dict[str, list[float]]] = {}
    rows, dim = blocks[0].weight.shape
    total, left = sum(block.bytes for block in blocks) / 1e6, 0.0
    installed = {name: kind for name, kind in WAYS.items() if importlib.util.find_spec(NEEDS.get(name, "numpy"))}
    outs = [empty_block(rows, dim, np.float32) for _ in blocks]
    order = np.random.default_rng(1).permutation(len(blocks)).tolist()
    for round_number in range(rounds + 1):
        turn = list(installed.items())
        turn = turn[round_number % len(turn) :] + turn[: round_number % len(turn)]
        for name, kind in turn:
            with scratch(directory) as place:
                way = kind(place, len(blocks), rows, dim)

                seconds = {"write": seconds_of(write_all, way, blocks)}
                way.close()
                paths = files_below(place)
                drop_from_cache(paths)
                left = max(left, share_in_cache(paths))
                way.open()
                seconds["read, cold"] = seconds_of(read_all, way, outs, order)
                check_equal(blocks, outs)
                seconds["read, warm"] = seconds_of(read_all, way, outs, order)
                way.close()
            if round_number:
                for what, spent in seconds.items():
                    found.setdefault(name, {}).setdefault(what, []).append(total / spent)
    return found, left


def write_all(way: Any, blocks: list[Block]) -> None:
    for number, block in enumerate(blocks):
        way.write(number, block)
    way.finish()


def read_all(way: Any, outs: list[Block], order: list[int]) -> None:
    for number in order:
        way.read(number, outs[number])


def check_equal(blocks: list[Block], outs: list[Block]) -> None:
    """That what was read is what was written; and wipe it, so that the next read cannot pass by doing nothing."""
    for block, out in zip(blocks, outs, strict=True):
        for name in COLUMNS:
            assert np.array_equal(getattr(block, name), getattr(out, name)), name
            getattr(out, name)[:] = 0


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Throughput of the block store beside raw files and other stores.")
    parser.add_argument("--blocks", type=int, default=64)
    parser.add_argument("--block", type=int, default=2048, help="C, rows of a block")
    parser.add_argument("--dim", type=int, default=128, help="D")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory", type=Path, default=Path(), help="the disk that is measured")
    arguments = parser.parse_args(argv)
    blocks = random_blocks(arguments.blocks, arguments.block, arguments.dim)

    print(machine())
    print(
        f"{len(blocks)} blocks of {arguments.block} x {arguments.dim} float32, twice, and int64: "
        f"{blocks[0].bytes / 2**20:.2f} MiB each; {arguments.rounds} rounds: median (min - max)\n"
    )
    ratios, left = ratios_to_raw(blocks, arguments.directory, arguments.rounds)
    print("| this store / raw system calls | throughput | bar | |\n|---|---|---|---|")
    for name, values in ratios.items():
        bar = WRITE_BAR if name == "write" else READ_BAR
        holds = "holds" if statistics.median(values) >= bar else "does not hold"
        print(f"| {name} | {spread(values, 2)} | {bar} | {holds} |")
    print(f"\nin the page cache before cold reads: at most {left:.1%}\n")

    found, left = megabytes_a_second(blocks, arguments.directory, arguments.rounds)
    print("| MB/s | write | read, cold | read, warm | durable |\n|---|---|---|---|---|")
    for name, kind in WAYS.items():
        cells = [spread(values, 0) for values in found[name].values()] if name in found else ["not installed"] * 3
        print(f"| {name} | {' | '.join(cells)} | {kind.durable} |")
    print(f"\nin the page cache before cold reads: at most {left:.1%}")


if __name__ == "__main__":
    main()
