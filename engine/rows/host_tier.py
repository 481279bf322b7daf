"""The host tier: the window's blocks, those behind it that still have active rows, and those ahead that are being read.

Rows are gathered and scattered here by position, many at a time. A resident block takes one place of a pool of arrays, so that a
position becomes one index: place_of(block) * C + offset. For an active row the pool holds its slot on the device; its weight
and momentum here are out of date until it is evicted.

    ahead       `read_ahead` gives a block a place, and a thread reads it into that place. One that was never visited is not read:
                the counter-based generator makes its rows when they are admitted
    window      `slide` takes it in; a step waits there only if the read is not done, and that is counted
    behind      a block whose last row was evicted goes back to the store; with folding, T steps later

A block that is behind and ahead at once stays, unless it leaves rounded or folded: then it goes and comes like any other, so that
how far is read ahead changes no bit. The pool is planned for all of them; it grows if a ragged window leaves more behind.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import torch

from engine.rows.folding import Folding
from engine.rows.store import NEVER_VISITED, Block, Store, clear

NOT_ACTIVE = -1


class HostTier:
    """Resident blocks.

    store         where blocks come from and go to
    block         C
    size          one past the last position; offsets past it in the last block are never asked for
    dim, dtype    D, and numpy float32, as in every run, or float64
    has_momentum  whether a row has a momentum beside its weight
    places        blocks that the pool is planned for
    readers       threads that read ahead; 0: blocks are read when the window slides over them
    folding       None, or how blocks are folded before they leave
    rewrite       the store keeps of a departing block less than of one that is written exactly, so it is written again although
                  a checkpoint has it: then a checkpoint changes nothing for the run
    pinned        page-locked memory, for a GPU

    waited_seconds   spent waiting for reads, so far; whoever reports it sets it back
    blocks_read      that came from the store since the start, those of `load` too
    read_seconds     in which they were read, added up over the threads
    """

    def __init__(
        self,
        store: Store,
        *,
        block: int,
        size: int,
        dim: int,
        places: int,
        dtype: type = np.float32,
        has_momentum: bool = True,
        readers: int = 0,
        folding: Folding | None = None,
        rewrite: bool = False,
        pinned: bool = False,
    ) -> None:
        self.store, self.block, self.size = store, block, size
        self.folding, self._rewrite, self._pinned = folding, rewrite or folding is not None, pinned
        self.weight: np.ndarray = np.empty((0, dim), dtype=dtype)
        self.momentum: np.ndarray | None = np.empty((0, dim), dtype=dtype) if has_momentum else None
        self.last_step = np.empty(0, dtype=np.int64)
        self.slot = np.empty(0, dtype=np.int64)
        # Of each place: active rows; whether its rows changed since it came, and since a checkpoint took them.
        self._active_rows = np.empty(0, dtype=np.int64)
        self._changed = np.empty(0, dtype=bool)
        self._unsaved = np.empty(0, dtype=bool)
        self._place: dict[int, int] = {}
        self._free: list[int] = []
        self._window: set[int] = set()
        self._ahead: set[int] = set()
        self._reads: dict[int, tuple[int, Future[float]]] = {}
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="read-ahead") if readers else None
        self.waited_seconds = 0.0
        self.blocks_read, self.read_seconds = 0, 0.0
        self._grow(places)

    def slide(self, blocks: Iterable[int], step: int) -> None:
        """From `step` on the window holds `blocks`: bring in what is missing, send back what is behind and idle.

        Raises Damaged and OSError, as reading a block does.
        """
        self._window = {int(block) for block in blocks}
        for block in sorted(self._window - self._place.keys()):
            self._arrive(block)
        self._release_idle(list(self._place), step)

    def read_ahead(self, blocks: Iterable[int]) -> None:
        """These blocks are in the next windows: begin to read those that are stored and not here."""
        if self._readers is None:
            return
        self._ahead = {int(block) for block in blocks}
        for block in sorted(self._ahead - self._place.keys() - self._reads.keys()):
            self._begin_to_read(block)

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

    def evict(self, positions_B: np.ndarray, weight_BD: np.ndarray, momentum_BD: np.ndarray | None, step: int) -> None:
        """These rows come back from the device as they are at the start of `step`. momentum_BD: None where rows have none."""
        indices_B = self.indices(positions_B)
        self.weight[indices_B] = weight_BD
        if self.momentum is not None:
            self.momentum[indices_B] = momentum_BD
        self.last_step[indices_B] = step
        self.slot[indices_B] = NOT_ACTIVE
        places_B = indices_B // self.block
        self._changed[places_B] = self._unsaved[places_B] = True
        np.subtract.at(self._active_rows, places_B, 1)
        self._release_idle([int(block) for block in np.unique(positions_B // self.block)], step)

    def resident(self, block: int) -> Block:
        """A view of a resident block; rows that are active are out of date in it."""
        return self._rows_at(self._place[block])

    def __contains__(self, block: int) -> bool:
        return block in self._place

    def blocks(self) -> list[int]:
        """The resident blocks, ascending."""
        return sorted(self._place)

    def take_unsaved(self) -> Iterator[tuple[int, Block]]:
        """Copies of the resident blocks that changed since the last call: what a checkpoint must write."""
        for block, place in sorted(self._place.items()):
            if self._unsaved[place]:
                self._unsaved[place] = False
                yield block, self._rows_at(place).copy()

    def load(self, resident: Iterable[int], window: Iterable[int]) -> None:
        """Take in what a checkpoint kept; the store has all of it that was ever visited."""
        assert not self._place, "load comes before the first slide"
        self._window = {int(block) for block in window}
        for block in resident:
            self._arrive(block)
            # It may have changed before the checkpoint. Rounding or folding it twice is the same as once.
            self._changed[self._place[block]] = self.store.holds(block)
        self.waited_seconds = 0.0  # a start is no wait

    def close(self) -> None:
        """End the threads that read; reads that have begun are finished."""
        if self._readers is not None:
            self._readers.shutdown(cancel_futures=True)

    @property
    def bytes(self) -> int:
        """What the pool occupies."""
        momentum_bytes = 0 if self.momentum is None else self.momentum.nbytes
        return self.weight.nbytes + momentum_bytes + self.last_step.nbytes + self.slot.nbytes

    def _arrive(self, block: int) -> None:
        """Make a block resident: read ahead, or read now, or never visited."""
        if block in self._reads:
            place, read = self._reads.pop(block)
            self._take(read.result, not read.done())
        elif self.store.holds(block):
            place = self._take_place()
            self._take(lambda: self._read(block, self._rows_at(place)), self._readers is not None)
        else:
            place = self._take_place()
            clear(self._rows_at(place))
        self._place[block] = place
        self.slot[self._rows(place)] = NOT_ACTIVE
        self._active_rows[place] = 0
        self._changed[place] = self._unsaved[place] = False

    def _begin_to_read(self, block: int) -> None:
        if self._readers is not None and self.store.holds(block):
            place = self._take_place()
            self._reads[block] = place, self._readers.submit(self._read, block, self._rows_at(place))

    def _read(self, block: int, out: Block) -> float:
        """Returns the seconds that it took; on whichever thread."""
        start = time.perf_counter()
        self.store.read_block(block, out)
        return time.perf_counter() - start

    def _take(self, read: Callable[[], float], is_wait: bool) -> None:
        """Count a block that `read` reads, or has read, in the seconds that it returns."""
        start = time.perf_counter()
        self.read_seconds += read()
        self.blocks_read += 1
        if is_wait:
            self.waited_seconds += time.perf_counter() - start

    def _release_idle(self, blocks: list[int], step: int) -> None:
        """Send back those of `blocks` that are behind the window, not ahead of it, and have no active row left."""
        for block in blocks:
            place = self._place[block]
            if block in self._window or self._active_rows[place] or (block in self._ahead and not self._rewrite):
                continue
            rows = self.resident(block)
            # A block that nobody visited is still what the generator makes of it.
            if self._changed[place] and (self._unsaved[place] or self._rewrite):
                if self.folding:
                    if not self._is_old(rows, step):
                        continue
                    rows = self.folding.fold_block(rows, step)
                self.store.write_block(block, rows)
            del self._place[block]
            self._free.append(place)
            if block in self._ahead:
                self._begin_to_read(block)

    def _is_old(self, rows: Block, step: int) -> bool:
        """Whether every row of an idle block can be folded."""
        assert self.folding
        return bool((rows.last_step + self.folding.steps <= step).all())

    def _rows_at(self, place: int) -> Block:
        rows = self._rows(place)
        return Block(self.weight[rows], None if self.momentum is None else self.momentum[rows], self.last_step[rows])

    def _rows(self, place: int) -> slice:
        return slice(place * self.block, (place + 1) * self.block)

    def _take_place(self) -> int:
        if not self._free:
            self._grow(len(self._active_rows) // 2 + 1)
        return self._free.pop()

    def _grow(self, places: int) -> None:
        wait([read for _, read in self._reads.values()])  # they write into the arrays that are replaced here
        first = len(self._active_rows)
        rows, dim = places * self.block, self.weight.shape[1]
        self.weight = self._longer(self.weight, (rows, dim), 0)
        if self.momentum is not None:
            self.momentum = self._longer(self.momentum, (rows, dim), 0)
        self.last_step = self._longer(self.last_step, (rows,), NEVER_VISITED)
        self.slot = self._longer(self.slot, (rows,), NOT_ACTIVE)
        self._active_rows = np.concatenate([self._active_rows, np.zeros(places, dtype=np.int64)])
        self._changed = np.concatenate([self._changed, np.zeros(places, dtype=bool)])
        self._unsaved = np.concatenate([self._unsaved, np.zeros(places, dtype=bool)])
        # Popped from the end: lowest place first.
        self._free = list(range(first + places - 1, first - 1, -1)) + self._free

    def _longer(self, array: np.ndarray, more: tuple[int, ...], value: int) -> np.ndarray:
        shape = (len(array) + more[0], *more[1:])
        dtype = torch.from_numpy(array).dtype
        longer = torch.empty(shape, dtype=dtype, pin_memory=self._pinned).numpy()
        longer[: len(array)], longer[len(array) :] = array, value
        return longer
