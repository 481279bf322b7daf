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
import importlib.metadata
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from engine.disk.files import DiskFiles
from engine.disk.zarr_format import columns_of, group_metadata
from engine.disk.zarr_store import ROWS, ZarrStore
from engine.rows.store import Block, empty_block
from tests.bench_support import drop_from_cache, files_below, machine, scratch, share_in_cache, spread

WRITE_BAR, READ_BAR = 0.8, 0.7  # of the raw throughput
COLUMNS = ("weight", "momentum", "last_step")


# The ways


def random_blocks(count: int, rows: int, dim: int) -> list[Block]:
    generator = np.random.default_rng(0)
    return [
        Block(
            generator.standard_normal((rows, dim), dtype=np.float32),
            generator.standard_normal((rows, dim), dtype=np.float32),
            generator.integers(0, 10**6, rows, dtype=np.int64),
        )
        for _ in range(count)
    ]


class ThisStore:
    """engine/disk/zarr_store.py."""

    durable = "yes: fsync a file, directories at the end; checksums at each read"

    def __init__(self, directory: Path, count: int, rows: int, dim: int) -> None:
        self.store = ZarrStore(DiskFiles(directory), block=rows, dim=dim, positions=count * rows, dtype=np.float32)
        self.write, self.finish, self.read = self.store.write_block, self.store.sync, self.store.read_block

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass


class RawFiles:
    """The files of `ThisStore` by system calls alone: 4 bytes of nothing where the checksum is, and none in a map."""

    durable = "yes: fsync a file, directories at the end; no checksums"

    def __init__(self, directory: Path, count: int, rows: int, dim: int) -> None:
        self.columns = columns_of("float32", dim)
        self.root = f"{directory}/{ROWS}/000001-000000"
        self.metadata = group_metadata(self.columns, rows, count * rows)
        self.begun = False

    def begin(self) -> None:
        for column in self.columns:
            os.makedirs(f"{self.root}/{column.name}", exist_ok=True)
        for path, content in self.metadata.items():
            self._create(f"{self.root}/{path}", [content])
        self.begun = True

    def write(self, block: int, rows: Block) -> None:
        if not self.begun:
            self.begin()
        for column in self.columns:
            content = getattr(rows, column.name).reshape(-1).view(np.uint8).data
            self._create(f"{self.root}/{column.file(block)}", [content, b"\0\0\0\0"])

    def finish(self) -> None:
        for path in (*(f"{self.root}/{column.name}" for column in self.columns), self.root, os.path.dirname(self.root)):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(handle)
            os.close(handle)

    def open(self) -> None:
        pass

    def read(self, block: int, out: Block) -> None:
        for column in self.columns:
            content = getattr(out, column.name).reshape(-1).view(np.uint8).data
            handle = os.open(f"{self.root}/{column.file(block)}", os.O_RDONLY)
            done = os.preadv(handle, [content, bytearray(4)], 0)
            os.close(handle)
            assert done == content.nbytes + 4

    def close(self) -> None:
        pass

    def _create(self, path: str, parts: Sequence[bytes | memoryview]) -> None:
        handle = os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        done = os.writev(handle, parts)
        assert done == sum(memoryview(part).nbytes for part in parts)
        os.fsync(handle)
        os.close(handle)
        os.rename(path + ".part", path)


class MemoryMap:
    """One file, its three regions mapped."""

    durable = "at the end (msync); overwrites in place, so a power cut can leave halves"

    def __init__(self, directory: Path, count: int, rows: int, dim: int) -> None:
        self.path, self.rows = directory / "rows.bin", rows
        self.shapes = {"weight": (count * rows, dim), "momentum": (count * rows, dim), "last_step": (count * rows,)}
        size = count * rows * (8 * dim + 8)
        with open(self.path, "wb") as file:
            file.truncate(size)
        self.open()

    def open(self) -> None:
        self.maps, offset = {}, 0
        for name, shape in self.shapes.items():
            dtype = np.dtype(np.int64 if name == "last_step" else np.float32)
            self.maps[name] = np.memmap(self.path, dtype, "r+", offset, shape)
            offset += self.maps[name].nbytes

    def write(self, block: int, rows: Block) -> None:
        for name in COLUMNS:
            self.maps[name][block * self.rows : (block + 1) * self.rows] = getattr(rows, name)

    def finish(self) -> None:
        for mapped in self.maps.values():
            mapped.flush()

    def read(self, block: int, out: Block) -> None:
        for name in COLUMNS:
            getattr(out, name)[:] = self.maps[name][block * self.rows : (block + 1) * self.rows]

    def close(self) -> None:
        self.maps.clear()  # a mapped page cannot be dropped from the cache


class Lmdb:
    """A key for each column of each block; a transaction a block."""

    durable = "yes: fdatasync a block (a transaction); no checksums"

    def __init__(self, directory: Path, count: int, rows: int, dim: int) -> None:
        self.path, self.size = str(directory), 2 * count * rows * (8 * dim + 8) + 2**24
        self.open()

    def open(self) -> None:
        import lmdb

        self.environment = lmdb.open(self.path, map_size=self.size)

    def write(self, block: int, rows: Block) -> None:
        with self.environment.begin(write=True) as transaction:
            for name in COLUMNS:
                transaction.put(f"{name}/{block}".encode(), getattr(rows, name).reshape(-1).view(np.uint8).data)

    def finish(self) -> None:
        pass

    def read(self, block: int, out: Block) -> None:
        with self.environment.begin(buffers=True) as transaction:
            for name in COLUMNS:
                array = getattr(out, name)
                found = transaction.get(f"{name}/{block}".encode())
                array.reshape(-1)[:] = np.frombuffer(found, array.dtype)

    def close(self) -> None:
        self.environment.close()


class TensorStore:
    """The format of `ThisStore` (its zarr.json files), written and read by TensorStore; three columns at a time."""

    durable = "files yes (fsync); checksums at each read"

    def __init__(self, directory: Path, count: int, rows: int, dim: int) -> None:
        self.path, self.rows = directory, rows
        _write_metadata(directory, count, rows, dim)
        self.open()

    def open(self) -> None:
        import tensorstore

        specs = [{"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{self.path}/{name}/"}} for name in COLUMNS]
        self.arrays = [tensorstore.open(spec, open=True).result() for spec in specs]

    def write(self, block: int, rows: Block) -> None:
        part = slice(block * self.rows, (block + 1) * self.rows)
        begun = [array[part].write(getattr(rows, name)) for name, array in zip(COLUMNS, self.arrays, strict=True)]
        for writing in begun:
            writing.result()

    def finish(self) -> None:
        pass

    def read(self, block: int, out: Block) -> None:
        part = slice(block * self.rows, (block + 1) * self.rows)
        begun = [array[part].read() for array in self.arrays]
        for name, reading in zip(COLUMNS, begun, strict=True):
            getattr(out, name)[:] = reading.result()

    def close(self) -> None:
        self.arrays = []


class PlainZarr:
    """The format of `ThisStore`, written and read by zarr-python."""

    durable = "no: nothing is synced; checksums at each read"

    def __init__(self, directory: Path, count: int, rows: int, dim: int) -> None:
        self.path, self.rows = directory, rows
        _write_metadata(directory, count, rows, dim)
        self.open()

    def open(self) -> None:
        group = zarr.open_group(self.path, mode="r+")
        self.arrays: dict[str, Any] = {name: group[name] for name in COLUMNS}

    def write(self, block: int, rows: Block) -> None:
        for name, array in self.arrays.items():
            array[block * self.rows : (block + 1) * self.rows] = getattr(rows, name)

    def finish(self) -> None:
        pass

    def read(self, block: int, out: Block) -> None:
        for name, array in self.arrays.items():
            getattr(out, name)[:] = array[block * self.rows : (block + 1) * self.rows]

    def close(self) -> None:
        self.arrays = {}


def _write_metadata(directory: Path, count: int, rows: int, dim: int) -> None:
    for path, content in group_metadata(columns_of("float32", dim), rows, count * rows).items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)


WAYS = {
    "this store": ThisStore,
    "raw files": RawFiles,
    "np.memmap": MemoryMap,
    "LMDB": Lmdb,
    "TensorStore": TensorStore,
    "zarr-python": PlainZarr,
}
NEEDS = {"LMDB": "lmdb", "TensorStore": "tensorstore"}


# The tables


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
