"""The host tier: the window's blocks, and the blocks behind it that still have active rows.

Rows are gathered and scattered here by position, many at a time. A resident block takes one place of a pool of arrays, so that a
position becomes one index: place_of(block) * C + offset. For an active row the pool holds its slot on the device; its weight
and momentum here are out of date until it retires.

A block comes in when the window slides over it, and goes back to the store when the window has left it and its last row has
retired. The pool is planned for the window and the blocks behind; it grows if a ragged window leaves more behind.
"""

from collections.abc import Iterable

import numpy as np

from engine.store import NEVER_VISITED, Block, Store

NOT_ACTIVE = -1


class HostTier:
    """Resident blocks.

    store         where blocks come from and go to
    block         C
    size          N; offsets past it in the last block are never asked for
    dim, dtype    D, and numpy float32 or float64
    places        blocks that the pool is planned for
    """

    def __init__(self, store: Store, *, block: int, size: int, dim: int, dtype: type, places: int) -> None:
        self.store, self.block, self.size = store, block, size
        self.weight: np.ndarray = np.empty((0, dim), dtype=dtype)
        self.momentum: np.ndarray = np.empty((0, dim), dtype=dtype)
        self.last_step = np.empty(0, dtype=np.int64)
        self.slot = np.empty(0, dtype=np.int64)
        self._active_rows = np.empty(0, dtype=np.int64)  # of each place
        self._place: dict[int, int] = {}
        self._free: list[int] = []
        self._window: set[int] = set()
        self._grow(places)

    def slide(self, blocks: Iterable[int]) -> None:
        """The window now holds `blocks`: bring in what is missing, send back what is behind and idle."""
        self._window = {int(block) for block in blocks}
        for block in sorted(self._window - self._place.keys()):
            self._admit(block)
        self.release_idle([block for block in self._place if block not in self._window])

    def indices(self, positions_B: np.ndarray) -> np.ndarray:
        """Positions of resident blocks -> indices into weight, momentum, last_step and slot, int64 [B]."""
        blocks_B, offsets_B = np.divmod(positions_B, self.block)
        distinct, inverse = np.unique(blocks_B, return_inverse=True)
        places = np.array([self._place[int(block)] for block in distinct], dtype=np.int64)
        return places[inverse.reshape(-1)] * self.block + offsets_B

    def activate(self, indices_B: np.ndarray, slots_B: np.ndarray) -> None:
        """These rows now live on the device, in these slots."""
        self.slot[indices_B] = slots_B
        np.add.at(self._active_rows, indices_B // self.block, 1)

    def retire(self, positions_B: np.ndarray, weight_BD: np.ndarray, momentum_BD: np.ndarray, step: int) -> None:
        """These rows come back from the device as they are at the start of `step`."""
        indices_B = self.indices(positions_B)
        self.weight[indices_B] = weight_BD
        self.momentum[indices_B] = momentum_BD
        self.last_step[indices_B] = step
        self.slot[indices_B] = NOT_ACTIVE
        np.subtract.at(self._active_rows, indices_B // self.block, 1)
        self.release_idle([int(block) for block in np.unique(positions_B // self.block)])

    def release_idle(self, blocks: Iterable[int]) -> None:
        """Send back those of `blocks` that are behind the window and have no active row left."""
        for block in blocks:
            place = self._place[block]
            if block in self._window or self._active_rows[place]:
                continue
            rows = self.resident(block)
            # A block that nobody visited is still what the generator makes of it.
            if (rows.last_step != NEVER_VISITED).any():
                self.store.write_block(block, rows)
            del self._place[block]
            self._free.append(place)

    def resident(self, block: int) -> Block:
        """A view of a resident block; rows that are active are out of date in it."""
        rows = self._rows(self._place[block])
        return Block(self.weight[rows], self.momentum[rows], self.last_step[rows])

    def __contains__(self, block: int) -> bool:
        return block in self._place

    def blocks(self) -> list[int]:
        """The resident blocks, ascending."""
        return sorted(self._place)

    def load(self, resident: dict[int, Block], window: Iterable[int]) -> None:
        """Take the place of all that is here: what a checkpoint kept."""
        assert not self._place, "load comes before the first slide"
        self._window = {int(block) for block in window}
        for block in sorted(resident):
            self._admit(block, resident[block])

    @property
    def bytes(self) -> int:
        """What the pool occupies."""
        return self.weight.nbytes + self.momentum.nbytes + self.last_step.nbytes + self.slot.nbytes

    def _admit(self, block: int, rows: Block | None = None) -> None:
        if not self._free:
            self._grow(len(self._active_rows) // 2 + 1)
        place = self._free.pop()
        self._place[block] = place
        here = self._rows(place)
        rows = self.store.read_block(block) if rows is None else rows
        if rows is None:
            self.last_step[here] = NEVER_VISITED
            self.weight[here] = 0
            self.momentum[here] = 0
        else:
            self.weight[here], self.momentum[here], self.last_step[here] = rows.weight, rows.momentum, rows.last_step
        self.slot[here] = NOT_ACTIVE
        self._active_rows[place] = 0

    def _rows(self, place: int) -> slice:
        return slice(place * self.block, (place + 1) * self.block)

    def _grow(self, places: int) -> None:
        first = len(self._active_rows)
        rows, dim = places * self.block, self.weight.shape[1]
        self.weight = np.concatenate([self.weight, np.zeros((rows, dim), dtype=self.weight.dtype)])
        self.momentum = np.concatenate([self.momentum, np.zeros((rows, dim), dtype=self.weight.dtype)])
        self.last_step = np.concatenate([self.last_step, np.full(rows, NEVER_VISITED)])
        self.slot = np.concatenate([self.slot, np.full(rows, NOT_ACTIVE)])
        self._active_rows = np.concatenate([self._active_rows, np.zeros(places, dtype=np.int64)])
        # Popped from the end: lowest place first.
        self._free = list(range(first + places - 1, first - 1, -1)) + self._free
