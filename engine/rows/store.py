"""Where blocks of rows go that have left the host tier: the interface, and the store that keeps them in memory.

The unit is a whole block: C consecutive positions with their weight, momentum and `last_step`. A block that was never
written was never visited; its rows are made by the counter-based generator and cost nothing here.

There are three stores with one contract (tests/engine/store_contract.py): `MemoryStore` here, the store on disk
(engine/disk/zarr_store.py), and the store on disk behind a thread that writes (engine/disk/write_behind.py).
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.rows.checks import CHECKED, checks_of

NEVER_VISITED = -1


@dataclass
class Block:
    """C rows.

    weight      float32 (or float64) [C, D]
    momentum    the same; None where rows have none, or where every visited row is folded (engine/rows/folding.py) and needs none
    last_step   int64 [C], transitions included so far; -1 = never visited; -2 - s = folded, transitions included before: s
    """

    weight: np.ndarray
    momentum: np.ndarray | None
    last_step: np.ndarray

    def copy(self) -> "Block":
        momentum = None if self.momentum is None else self.momentum.copy()
        return Block(self.weight.copy(), momentum, self.last_step.copy())

    def checks(self) -> tuple[int, int, int]:
        """See engine/rows/checks.py."""
        return checks_of(self.weight, self.momentum, self.last_step)

    @property
    def bytes(self) -> int:
        return self.weight.nbytes + self.last_step.nbytes + (0 if self.momentum is None else self.momentum.nbytes)


class Store(Protocol):
    """What the host tier asks of a store; positions and blocks are the schedule's."""

    @property
    def blocks_stored(self) -> int:
        """How many were written at least once, those of a checkpoint that was loaded too."""

    @property
    def blocks_written(self) -> int:
        """Since the start, those of checkpoints too. A block that is written twice counts twice."""

    @property
    def write_seconds(self) -> float:
        """In which they were written, on whichever thread."""

    def holds(self, block: int) -> bool:
        """Whether the block was ever written."""

    def read_block(self, block: int, out: Block) -> None:
        """Fill `out` with a block that is held; its momentum, where `out` has room for one and the block has none, with zeros.

        Raises Damaged where the bytes are not those that were written.
        """

    def write_block(self, block: int, rows: Block, exact: bool = False) -> None:
        """Keep a copy of the block. exact: in full precision, whatever the store does with blocks by default."""

    def write_for_checkpoint(self, block: int, rows: Block) -> None:
        """An exact write of a block that stays with the host tier; `rows` are the store's from here on."""

    def blocks(self) -> list[int]:
        """The blocks written so far, ascending."""

    def checks(self) -> np.ndarray:
        """The checksums of the blocks written so far, CHECKED [n], ascending (engine/rows/checks.py). Reads nothing from a disk."""

    def unsaved(self) -> Iterable[tuple[int, Block]]:
        """Blocks written since the last call that the disk will not see unless a checkpoint takes them from here."""

    @property
    def bytes(self) -> int:
        """What the store occupies on its tier."""

    @property
    def host_bytes(self) -> int:
        """What of it is host memory."""


class MemoryStore:
    """Blocks in a dict. For runs whose visited rows fit the host: (8D + 8) bytes a row, (4D + 8) without momentum."""

    def __init__(self) -> None:
        self._blocks: dict[int, Block] = {}
        self._unsaved: set[int] = set()
        self.bytes = 0
        self.blocks_written, self.write_seconds = 0, 0.0

    @property
    def blocks_stored(self) -> int:
        return len(self._blocks)

    def holds(self, block: int) -> bool:
        return block in self._blocks

    def read_block(self, block: int, out: Block) -> None:
        fill(out, self._blocks[block])

    def write_block(self, block: int, rows: Block, exact: bool = False) -> None:
        start = time.perf_counter()
        copy = rows.copy()
        self.write_seconds += time.perf_counter() - start
        self.write_for_checkpoint(block, copy)

    def write_for_checkpoint(self, block: int, rows: Block) -> None:
        self.load(block, rows)
        self._unsaved.add(block)
        self.blocks_written += 1

    def blocks(self) -> list[int]:
        return sorted(self._blocks)

    def checks(self) -> np.ndarray:
        return np.array([(block, self._blocks[block].checks()) for block in self.blocks()], CHECKED)

    def unsaved(self) -> list[tuple[int, Block]]:
        # No copies: what is in the dict is replaced, never changed.
        found = [(block, self._blocks[block]) for block in sorted(self._unsaved)]
        self._unsaved.clear()
        return found

    def load(self, block: int, rows: Block) -> None:
        """Take up a block that a checkpoint holds already."""
        before = self._blocks.get(block)
        self.bytes += rows.bytes - (before.bytes if before else 0)
        self._blocks[block] = rows

    @property
    def host_bytes(self) -> int:
        return self.bytes


def fill(out: Block, rows: Block) -> None:
    """Copy `rows` into `out`."""
    assert out.momentum is not None or rows.momentum is None
    out.weight[:], out.last_step[:] = rows.weight, rows.last_step
    if out.momentum is not None:
        out.momentum[:] = 0 if rows.momentum is None else rows.momentum


def clear(out: Block) -> None:
    """A block of which no row was visited."""
    out.weight[:], out.last_step[:] = 0, NEVER_VISITED
    if out.momentum is not None:
        out.momentum[:] = 0


def empty_block(rows: int, dim: int, dtype: np.dtype | type, momentum: bool = True) -> Block:
    """Room for a block. momentum: whether its rows have one."""
    u_CD = np.empty((rows, dim), dtype) if momentum else None
    return Block(np.empty((rows, dim), dtype), u_CD, np.empty(rows, np.int64))
