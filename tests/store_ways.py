"""Ways to keep blocks of rows on a disk, with one interface: this store, plain files, and other stores."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from engine.disk.files import DiskFiles
from engine.disk.zarr_format import columns_of, group_metadata
from engine.disk.zarr_store import ROWS, ZarrStore
from engine.rows.store import Block

COLUMNS = ("weight", "momentum", "last_step")


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
