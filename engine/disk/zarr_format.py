"""What lies in a generation: zarr's metadata, and a block's chunk in each column; the only module that imports zarr.

    zarr.json
    weight/zarr.json  weight/c.17.0        [positions, D] float32, chunk = block: C rows and 4 bytes of crc32c
    momentum/...                           the same; not in generations of folded blocks
    last_step/c.17                         [positions] int64

zarr writes the metadata, and any zarr reader opens a generation. Chunks are written and read without it
(engine/disk/zarr_store.py): a chunk is
its array's bytes, so zarr would only add copies and its event loop (tests/bench_store.py has both). bfloat16, which zarr 3.1 does not
know, is stored as uint16 with the same bits.

What is left out: compression (float noise shrinks by 8 % at four times the time), sharding (a block would be rewritten with its
neighbours), and partial reads.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import torch
import zarr
from zarr.buffer.cpu import Buffer as ZarrBuffer
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import MemoryStore as ZarrMemoryStore

from engine.rows.checks import as_bytes

CRC_BYTES = 4


class Column(NamedTuple):
    """name: as in Block. dtype: float32, float64, bfloat16 or int64. width: numbers a row, 0 for a column without that axis."""

    name: str
    dtype: str
    width: int

    @property
    def stored(self) -> np.dtype:
        """The type in the file."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    def chunk_bytes(self, rows: int) -> int:
        """Of a file: `rows` rows and the checksum."""
        return rows * max(self.width, 1) * self.stored.itemsize + CRC_BYTES

    def file(self, block: int) -> str:
        """The chunk's file, below the generation."""
        return f"{self.name}/c.{block}" + (".0" if self.width else "")


def columns_of(float_dtype: str, dim: int) -> tuple[Column, ...]:
    return (Column("weight", float_dtype, dim), Column("momentum", float_dtype, dim), Column("last_step", "int64", 0))


def encoded(column: Column, rows: np.ndarray) -> np.ndarray:
    """The chunk's bytes, read-only uint8, without a copy where none is needed."""
    if column.dtype == "bfloat16":
        rows = torch.from_numpy(rows).to(torch.bfloat16).view(torch.uint16).numpy()
    assert rows.dtype == column.stored, (rows.dtype, column)
    return as_bytes(rows)


def bound(crc: int, generation: str, column: str, block: int) -> int:
    """The checksum of content, generation, column and block, from the content's alone."""
    return google_crc32c.extend(crc, f"{generation}/{column}/{block}".encode())


def unbound(bound_N: np.ndarray, generation_N: np.ndarray, column: str, block_N: np.ndarray) -> np.ndarray:
    """The inverse of `bound` for many blocks at once: the contents' checksums, uint32 [N], without a look at the contents.

    bound_N  uint32 [N]     generation_N  names, bytes ("S") [N]     block_N  int64 [N]

    crc32c goes on byte by byte by   state <- T[(state ^ byte) & 255] ^ (state >> 8),   and the highest byte of T[i] is another one for each
    i: so it can be gone back byte by byte as well, from the last of the text to the first.
    """
    state_N = bound_N ^ np.uint32(0xFFFFFFFF)

    def back(byte_N: np.ndarray | int, chosen_N: np.ndarray | slice) -> None:
        state = state_N[chosen_N]
        index = _INDEX[state >> np.uint32(24)]
        state_N[chosen_N] = ((state ^ _TABLE[index]) << np.uint32(8)) | (index ^ np.asarray(byte_N, np.uint32))

    power = 1
    while power <= block_N.max(initial=0) or power == 1:  # the digits of the block, the last one first
        longer = block_N >= power if power > 1 else np.ones(len(block_N), bool)
        back(block_N[longer] // power % 10 + ord("0"), longer)
        power *= 10
    for byte in reversed(f"/{column}/".encode()):
        back(byte, slice(None))
    names = np.ascontiguousarray(generation_N).view(np.uint8).reshape(-1, generation_N.dtype.itemsize)
    for letters in reversed(names.T):
        there = letters != 0  # shorter names end in zeros
        back(letters[there], there)
    return state_N ^ np.uint32(0xFFFFFFFF)


def _table() -> tuple[np.ndarray, np.ndarray]:
    """(T of crc32c, uint32 [256]; which i has a T[i] with this highest byte, uint32 [256])."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(0x82F63B78), table >> np.uint32(1))
    index = np.empty(256, np.uint32)
    index[table >> np.uint32(24)] = np.arange(256, dtype=np.uint32)
    return table, index


_TABLE, _INDEX = _table()


def group_metadata(columns: tuple[Column, ...], block: int, positions: int) -> dict[str, bytes]:
    """The zarr.json files of a generation, by path, as zarr itself writes them."""
    store = ZarrMemoryStore()
    group = zarr.create_group(store, attributes={"order": "schedule positions", "block_rows": block})
    for column in columns:
        tail = (column.width,) if column.width else ()
        group.create_array(
            column.name,
            shape=(positions, *tail),
            chunks=(block, *tail),
            dtype=column.stored,
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            filters=None,
            fill_value=float("nan") if column.stored.kind == "f" else 0,
            chunk_key_encoding={"name": "default", "separator": "."},
            attributes={"dtype": column.dtype},
        )
    return {
        path: json.dumps(json.loads(buffer.to_bytes()), indent=1).encode() for path, buffer in store._store_dict.items()
    }


def layouts(files: dict[str, bytes], columns: tuple[Column, ...]) -> list[tuple]:
    """What decides which chunk holds a row and how it is read, of a group and its arrays; from their zarr.json files, by path."""
    store = ZarrMemoryStore({path: ZarrBuffer.from_bytes(content) for path, content in files.items()})
    group = zarr.open_group(store, mode="r")
    arrays: list[Any] = [group[column.name] for column in columns]
    # Not the length: it grows with the run.
    layouts = [
        (a.shape[1:], a.chunks, a.dtype, a.metadata.codecs, a.metadata.chunk_key_encoding, dict(a.attrs))
        for a in arrays
    ]
    return [(dict(group.attrs),), *layouts]


def create_export(path: Path, shape: tuple[int, int], chunk_rows: int) -> zarr.Array:
    """A flat zarr v3 array at `path`, float32 [N, D] in chunks of whole rows, for writing."""
    return zarr.create_array(
        path,
        shape=shape,
        chunks=(min(chunk_rows, shape[0]), shape[1]),
        dtype="float32",
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=float("nan"),
        attributes={"order": "row i belongs to instance i"},
    )
