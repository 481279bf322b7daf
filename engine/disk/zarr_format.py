"""What lies in a generation: zarr's metadata, and a block's chunk in each column; the only module that imports zarr.

    zarr.json
    weight/zarr.json  weight/c.17.0        [positions, D] float32, chunk = block: C rows and 4 bytes of crc32c
    momentum/...                           the same; not in generations of folded blocks, or of rows that have none
    last_step/c.17                         [positions] int64

zarr writes the metadata, and any zarr reader opens a generation. Chunks are written and read without it
(engine/disk/zarr_store.py): a chunk is
its array's bytes, so zarr would only add copies and its event loop (tests/bench_store.py has both). bfloat16, which zarr 3.1 does not
know, is stored as uint16 with the same bits.

What is left out: compression (float noise shrinks by 8 % at four times the time), sharding (a block would be rewritten with its
neighbours), and partial reads.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import zarr
from zarr.buffer.cpu import Buffer as ZarrBuffer
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import MemoryStore as ZarrMemoryStore

from engine.rows.checks import as_bytes

CRC_BYTES = 4
METADATA = "zarr.json"  # of a group, and of each of its arrays


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


def has_momentum(columns: tuple[Column, ...]) -> bool:
    return any(column.name == "momentum" for column in columns)


def without_momentum(columns: tuple[Column, ...]) -> tuple[Column, ...]:
    return tuple(column for column in columns if column.name != "momentum")


def encoded(column: Column, rows: np.ndarray) -> np.ndarray:
    """The chunk's bytes, read-only uint8, without a copy where none is needed."""
    if column.dtype == "bfloat16":
        rows = torch.from_numpy(rows).to(torch.bfloat16).view(torch.uint16).numpy()
    assert rows.dtype == column.stored, (rows.dtype, column)
    return as_bytes(rows)


@lru_cache(maxsize=8)  # every generation of a run has the same, and zarr takes milliseconds
def group_metadata(columns: tuple[Column, ...], block: int, positions: int) -> Mapping[str, bytes]:
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
    files = {
        path: json.dumps(json.loads(buffer.to_bytes()), indent=1).encode() for path, buffer in store._store_dict.items()
    }
    return MappingProxyType(files)


def layouts(files: Mapping[str, bytes], columns: tuple[Column, ...]) -> list[tuple]:
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
