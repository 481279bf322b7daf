"""Where blocks of rows go that have left the window: the interface, and the store that keeps them in memory.

The unit is a whole block: C consecutive positions with their weight, momentum and `last_step`. A block that was never
written was never visited; its rows are made by the counter-based generator and cost nothing here.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

NEVER_VISITED = -1


@dataclass
class Block:
    """weight, momentum: float32 (or float64) [C, D]; last_step: int64 [C], transitions included so far, -1 = never visited."""

    weight: np.ndarray
    momentum: np.ndarray
    last_step: np.ndarray


class Store(Protocol):
    """What the host tier asks of a store; positions and blocks are the schedule's."""

    def read_block(self, block: int) -> Block | None:
        """A copy of the block, or None where it was never written."""

    def write_block(self, block: int, rows: Block) -> None:
        """Keep a copy of the block."""

    def blocks(self) -> list[int]:
        """The blocks written so far, ascending."""

    @property
    def bytes(self) -> int:
        """What the store occupies."""


class MemoryStore:
    """Blocks in a dict. For runs whose visited rows fit the host: (8D + 8) bytes a row."""

    def __init__(self) -> None:
        self._blocks: dict[int, Block] = {}

    def read_block(self, block: int) -> Block | None:
        kept = self._blocks.get(block)
        return None if kept is None else _copy(kept)

    def write_block(self, block: int, rows: Block) -> None:
        self._blocks[block] = _copy(rows)

    def blocks(self) -> list[int]:
        return sorted(self._blocks)

    @property
    def bytes(self) -> int:
        return sum(b.weight.nbytes + b.momentum.nbytes + b.last_step.nbytes for b in self._blocks.values())


def _copy(rows: Block) -> Block:
    return Block(rows.weight.copy(), rows.momentum.copy(), rows.last_step.copy())
