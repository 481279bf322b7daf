"""The store on disk behind one thread that writes: the training step hands a block over and goes on.

Work is done in the order in which it was handed over, so a commit that comes after some blocks is made after they are on the disk.
Until a block is there, it is read from memory. What waits is bounded: who hands over more than `limit_bytes` waits, and
the wait is counted. After an error nothing more is written, least of all a commit; the error is raised to whoever comes next.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from engine.disk.zarr_store import ZarrStore
from engine.rows.store import Block, fill


class WriteBehind:
    """A Store over `disk`.

    limit_bytes     that may wait to be written, blocks of checkpoints not counted
    threaded        False: everything is done at once, on the caller's thread; for tests that count operations
    waited_seconds  spent waiting for room, so far; whoever reports it sets it back
    """

    def __init__(self, disk: ZarrStore, limit_bytes: int, threaded: bool = True) -> None:
        self.disk, self.limit_bytes = disk, limit_bytes
        self.waited_seconds = 0.0
        self._pending: dict[int, Block] = {}  # the newest version of what is not on the disk yet
        self._pending_bytes = 0
        self._departing_bytes = 0  # of those, what the limit is for
        self._condition = threading.Condition()
        self._error: BaseException | None = None
        self._unfinished = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write-behind") if threaded else None

    def holds(self, block: int) -> bool:
        return block in self._pending or self.disk.holds(block)

    def read_block(self, block: int, out: Block) -> None:
        rows = self._pending.get(block)
        if rows is None:
            self.disk.read_block(block, out)
        else:
            fill(out, rows)

    def write_block(self, block: int, rows: Block, exact: bool = False) -> None:
        # What is read before it is on the disk must be what is read after.
        self._write(block, self.disk.as_stored(rows, exact), exact, waits=True)

    def write_for_checkpoint(self, block: int, rows: Block) -> None:
        """In full precision and without waiting for room; `rows` are the store's from here on."""
        self._write(block, rows, exact=True, waits=False)

    def submit(self, task: Callable[[], None]) -> None:
        """Do `task` after everything that was handed over before."""
        self.check()
        if self._thread is None:
            task()
            return
        with self._condition:
            self._unfinished += 1
        self._thread.submit(self._do, task)

    def check(self) -> None:
        """Raise what went wrong on the thread, if anything did."""
        if self._error is not None:
            raise self._error

    @property
    def is_threaded(self) -> bool:
        return self._thread is not None

    def fail(self, error: BaseException) -> None:
        """Write nothing more, and raise this to whoever comes next: somebody else found that the disk is not what it should be."""
        with self._condition:
            self._error = self._error or error
            self._condition.notify_all()

    def drain(self) -> None:
        """Return when all that was handed over is done."""
        with self._condition:
            self._condition.wait_for(lambda: not self._unfinished or self._error)
        self.check()

    def close(self) -> None:
        """Stop after the task that is being done; what waits is not written. Never raises."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._unfinished = 0

    def blocks(self) -> list[int]:
        with self._condition:
            return sorted({*self.disk.blocks(), *self._pending})

    def checks(self) -> np.ndarray:
        """Waits until all blocks that were handed over are on the disk."""
        self.drain()
        return self.disk.checks()

    def unsaved(self) -> list[tuple[int, Block]]:
        return []

    @property
    def blocks_stored(self) -> int:
        """Those that are on the disk."""
        return self.disk.blocks_stored

    @property
    def blocks_written(self) -> int:
        return self.disk.blocks_written

    @property
    def write_seconds(self) -> float:
        return self.disk.write_seconds

    @property
    def bytes(self) -> int:
        return self.disk.bytes

    @property
    def host_bytes(self) -> int:
        return self._pending_bytes

    def _write(self, block: int, rows: Block, exact: bool, waits: bool) -> None:
        self.check()
        if self._thread is None:
            self.disk.write_block(block, rows, exact)
            return
        departing_bytes = rows.bytes if waits else 0
        with self._condition:
            if not self._has_room(departing_bytes):
                start = time.perf_counter()
                self._condition.wait_for(lambda: self._has_room(departing_bytes) or self._error)
                self.waited_seconds += time.perf_counter() - start
                self.check()
            self._pending[block] = rows
            self._pending_bytes += rows.bytes
            self._departing_bytes += departing_bytes

        def write() -> None:
            self.disk.write_block(block, rows, exact)
            with self._condition:
                if self._pending.get(block) is rows:  # else a newer version waits
                    del self._pending[block]
                self._pending_bytes -= rows.bytes
                self._departing_bytes -= departing_bytes

        self.submit(write)

    def _has_room(self, more_bytes: int) -> bool:
        """One block always has."""
        return not more_bytes or not self._departing_bytes or self._departing_bytes + more_bytes <= self.limit_bytes

    def _do(self, task: Callable[[], None]) -> None:
        if self._error is None:
            try:
                task()
            except BaseException as error:
                self._error = error
        with self._condition:
            self._unfinished -= 1
            self._condition.notify_all()
