"""The generations that blocks lie in, in 14 bytes of host memory each.

    number   uint32 [g], ascending     suffix   uint32 [g], below 2^24: number 4 and suffix 0x3fa29c are rows/000004-3fa29c
    kind     uint8 [g], which columns it has, see `kinds_of`
    shared   bool [g], whether other ranks may have blocks in it: it was written when there were fewer ranks
    blocks   int32 [g], how many of its blocks are still on the disk, as far as they are this rank's; not in files

One thread adds, counts and removes. Others may look up generations meanwhile: the arrays are replaced together.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from engine.disk.block_map import MOST_GENERATION
from engine.disk.zarr_format import Column, columns_of, without_momentum
from engine.rows.damaged import Damaged

MOST_SUFFIX = 2**24 - 1
KINDS = 4

# The arrays that a file keeps.
TYPES = {"number": "uint32", "suffix": "uint32", "kind": "uint8", "shared": "bool"}


class Generation(NamedTuple):
    """One of them: a zarr group (engine/disk/zarr_format.py)."""

    name: str
    columns: tuple[Column, ...]
    blocks: int
    shared: bool


class _Table(NamedTuple):
    number: np.ndarray
    suffix: np.ndarray
    kind: np.ndarray
    shared: np.ndarray
    blocks: np.ndarray

    def chosen(self, index: np.ndarray) -> "_Table":
        return _Table(*(part[index] for part in self))


def kinds_of(dtype: str, dim: int) -> list[tuple[Column, ...]]:
    """The columns of each kind, of rows of `dim` numbers of `dtype`: as they are, in bfloat16; then both without momentum, for folded
    blocks and for rows that have none.
    """
    whole = [columns_of(dtype, dim), columns_of("bfloat16", dim)]
    return whole + [without_momentum(columns) for columns in whole]


def kinds_with_momentum(kind_G: np.ndarray) -> np.ndarray:
    """bool [G], of kinds in the order of `kinds_of`."""
    return kind_G < KINDS // 2


def name_of(number: int, suffix: int) -> str:
    return f"{number:06d}-{suffix:06x}"


class Generations(Mapping[int, Generation]):
    """number -> Generation, ascending."""

    def __init__(self, dtype: str, dim: int, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """
        dtype, dim   of the rows
        arrays       number, suffix, kind and shared [g], as `arrays` gives them; distinct numbers
        """
        self.columns = kinds_of(dtype, dim)  # of each kind
        parts = [(arrays[name] if arrays else np.empty(0)).astype(kind) for name, kind in TYPES.items()]
        table = _Table._make([*parts, np.zeros(len(parts[0]), np.int32)])
        self._table = table.chosen(np.argsort(table.number))

    def __getitem__(self, number: int) -> Generation:
        table = self._table
        place = _place(table, number)
        if place is None:
            raise KeyError(number)
        return Generation(
            name_of(number, int(table.suffix[place])),
            self.columns[table.kind[place]],
            int(table.blocks[place]),
            bool(table.shared[place]),
        )

    def __len__(self) -> int:
        return len(self._table.number)

    def __iter__(self) -> Iterator[int]:
        return iter(self._table.number.tolist())

    def has_name(self, name: str) -> bool:
        """Whether the generation of this name is one of them; the name has the shape of one (engine/disk/shapes.py)."""
        number, _, suffix = name.partition("-")
        return int(number) in self and name_of(int(number), int(suffix, 16)) == self[int(number)].name

    def add(self, number: int, suffix: int, columns: tuple[Column, ...]) -> None:
        """A new one, of which nothing is on the disk."""
        assert number not in self and 0 < number <= MOST_GENERATION and 0 <= suffix <= MOST_SUFFIX, (number, suffix)
        table = self._table
        place = np.searchsorted(table.number, number)
        row = number, suffix, self.columns.index(columns), False, 0
        self._table = _Table(*(np.insert(part, place, value) for part, value in zip(table, row, strict=True)))

    def remove(self, number: int) -> None:
        place = _place(self._table, number)
        assert place is not None, number
        self._table = _Table(*(np.delete(part, place) for part in self._table))

    def count(self, number: int, more: int) -> None:
        """So many blocks more, or fewer, are on the disk."""
        place = _place(self._table, number)
        assert place is not None, number
        self._table.blocks[place] += more

    def with_counts(self, number_G: np.ndarray, blocks_G: np.ndarray) -> "Generations":
        """Those of these numbers alone, each with so many blocks. number_G: ascending, all of them here."""
        table = self.of(number_G)._table
        return self._of(table._replace(blocks=blocks_G.astype(np.int32)))

    def of(self, number_G: np.ndarray) -> "Generations":
        """Those of these numbers alone; ascending, all of them here."""
        place_G = np.searchsorted(self._table.number, number_G)
        assert np.array_equal(self._table.number[place_G], number_G), "a generation is not in the table"
        return self._of(self._table.chosen(place_G))

    def joined(self, other: "Generations") -> "Generations":
        """Those of both; shared, where one of the two says so. Raises Damaged where the same number stands for two."""
        both = _Table(*(np.concatenate(parts) for parts in zip(self._table, other._table, strict=True)))
        both = both.chosen(np.argsort(both.number, kind="stable"))
        twice = both.number[1:] == both.number[:-1]
        differs = twice & ((both.suffix[1:] != both.suffix[:-1]) | (both.kind[1:] != both.kind[:-1]))
        if differs.any():
            raise Damaged(f"two of its tables have another generation with the number {both.number[1:][differs][0]}")
        shared = both.shared.copy()
        shared[:-1][twice] |= both.shared[1:][twice]
        first = np.concatenate([[True], ~twice]) if len(both.number) else np.empty(0, bool)
        return self._of(both._replace(shared=shared).chosen(first))

    def copy(self) -> "Generations":
        """Another object, in which nothing is added or removed when it is here."""
        return self._of(self._table)

    def all_shared(self) -> "Generations":
        return self._of(self._table._replace(shared=np.ones(len(self), bool)))

    def kinds(self, number_N: np.ndarray) -> np.ndarray:
        """uint8 [N], of these generations, all of them here."""
        return self._table.kind[np.searchsorted(self._table.number, number_N)]

    @property
    def bytes(self) -> int:
        """What the table occupies in memory."""
        return sum(part.nbytes for part in self._table)

    def total_bytes(self, block: int) -> int:
        """Of all their blocks that are on the disk, of `block` rows each."""
        sizes = np.array([sum(column.chunk_bytes(block) for column in columns) for columns in self.columns], np.int64)
        return int((sizes[self._table.kind] * self._table.blocks).sum())

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file keeps: number and suffix uint32 [g], kind uint8 [g], shared bool [g]."""
        return {name: getattr(self._table, name) for name in TYPES}

    def _of(self, table: _Table) -> "Generations":
        made = Generations.__new__(Generations)
        made.columns, made._table = self.columns, table
        return made


def _place(table: _Table, number: int) -> int | None:
    place = int(np.searchsorted(table.number, number))
    return place if place < len(table.number) and table.number[place] == number else None
