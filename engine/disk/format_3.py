"""Checkpoints of format 3, as this version reads them: the only place that knows what was different.

In format 3 the manifest has the generations, by part: {"4": {"name": "000004-3fa29c", "columns": [[name, dtype, width], ...],
"shared": false}}; and a checksum of the block map goes over content, generation, column and block. From format 4 on the map's own file
has the generations as arrays, and the checksums are those of the contents alone.

A run that goes on from such a checkpoint writes format 4 from its next checkpoint on. That one has a full map, since a delta must not lie
over a file of another format. Taking a million checksums back to those of the contents takes 2 s, once.
"""

from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np

from engine.disk import shapes
from engine.disk.block_map import COLUMNS, MOST_GENERATION, BlockMap
from engine.disk.generations import Generations, kinds_of, name_of
from engine.rows.damaged import Damaged

NUMBER = 3

Json = dict[str, Any]


def generations_of(part: Json, dtype: str, dim: int) -> Generations:
    """What the manifest says of a part's generations; dtype, dim: of the rows. Raises Damaged where it may not say so."""
    said, kinds = part.get("generations"), [[list(column) for column in kind] for kind in kinds_of(dtype, dim)]
    if not isinstance(said, dict):
        raise Damaged("its manifest has no table of generations")
    found = [_row(key, generation, kinds) for key, generation in said.items()]
    columns = zip(*found, strict=True) if found else [[]] * 4
    return Generations(
        dtype, dim, dict(zip(("number", "suffix", "kind", "shared"), map(np.array, columns), strict=True))
    )


def _row(key: str, generation: Any, kinds: list[list[list[Any]]]) -> tuple[int, int, int, bool]:
    name, columns, shared = (
        (generation.get(one) for one in ("name", "columns", "shared")) if isinstance(generation, dict) else [None] * 3
    )
    name = name if isinstance(name, str) else ""
    number = shapes.generation_number(name)
    suffix = 0 if number is None else int(name.rpartition("-")[2], 16)
    if not number or number > MOST_GENERATION or str(number) != key or name != name_of(number, suffix):
        raise Damaged(f"its manifest has {shapes.shown(repr(name), 60)} for generation {shapes.shown(key)}")
    if columns not in kinds or any(type(column[2]) is not int for column in columns):  # Python takes False for 0
        raise Damaged(f"its manifest has {shapes.shown(repr(columns), 60)} for columns")
    if type(shared) not in (bool, type(None)):
        raise Damaged(f"its manifest has {shapes.shown(repr(shared), 60)} for shared")
    return number, suffix, kinds.index(columns), bool(shared)


def map_of(arrays: Mapping[str, np.ndarray], generations: Generations) -> BlockMap:
    """A file of the block map. Entries of generations that are not in the table are left out: a delta has those blocks anew."""
    known_N = np.isin(arrays["generation"], list(generations))
    table = {name: array[known_N] for name, array in arrays.items()}
    numbers, inverse_N = np.unique(table["generation"], return_inverse=True)
    of_map = [generations[number] for number in numbers.tolist()]
    name_N = np.array([generation.name.encode() for generation in of_map], np.bytes_)[inverse_N]
    checks = np.zeros_like(table["checks"])
    for place, name in enumerate(COLUMNS):
        has_N = np.array([any(column.name == name for column in one.columns) for one in of_map], bool)[inverse_N]
        checks[has_N, place] = unbound(table["checks"][has_N, place], name_N[has_N], name, table["block"][has_N])
    return BlockMap({**table, "checks": checks})


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
