"""Which slots of a lane were visited longest ago, at a cost that depends on the batch and not on K.

Every visit is appended to a queue as (slot, stamp). The front of the queue is the oldest visit; if the slot was visited
again since, its stamp has moved on and the entry is passed over. So a visit costs O(1) amortised, where looking for the smallest of
K/L stamps would cost O(K/L) a step. The queue is rewritten without its stale entries when it has grown to twice the lane.
"""

import numpy as np


class VisitQueue:
    """The visits to one lane's slots, oldest first. `stamp_K` is the engine's array of latest stamps; it is only read here."""

    def __init__(self, stamp_K: np.ndarray, slots: np.ndarray, room: int) -> None:
        """slots: the occupied slots of the lane, in any order.

        room: at least the lane's slots plus its places of a batch; the queue holds twice that.
        """
        self._stamp_K = stamp_K
        order = slots[np.argsort(stamp_K[slots], kind="stable")]
        self._slot = np.empty(2 * room, dtype=np.int64)
        self._stamp = np.empty(2 * room, dtype=np.int64)
        self._head, self._tail = 0, 0
        self.push(order)

    @property
    def bytes(self) -> int:
        """What the queue occupies."""
        return self._slot.nbytes + self._stamp.nbytes

    def push(self, slots: np.ndarray) -> None:
        """These slots were just visited, in this order; their stamps are already the latest."""
        if self._tail + len(slots) > len(self._slot):
            self._compact()
        stop = self._tail + len(slots)
        self._slot[self._tail : stop] = slots
        self._stamp[self._tail : stop] = self._stamp_K[slots]
        self._tail = stop

    def pop(self, count: int) -> np.ndarray:
        """Take the `count` least recently visited slots, oldest first, int64 [count]."""
        head, taken = self._head, 0
        found = np.empty(count, dtype=np.int64)
        while taken < count:
            stop = min(head + 2 * (count - taken), self._tail)
            assert head < stop, "more slots asked for than were ever visited"
            slots = self._slot[head:stop]
            latest = np.flatnonzero(self._stamp_K[slots] == self._stamp[head:stop])[: count - taken]
            found[taken : taken + len(latest)] = slots[latest]
            taken += len(latest)
            head = head + latest[-1] + 1 if taken == count else stop
        self._head = int(head)
        return found

    def _compact(self) -> None:
        slots, stamps = self._slot[self._head : self._tail], self._stamp[self._head : self._tail]
        latest = self._stamp_K[slots] == stamps
        count = int(latest.sum())
        self._slot[:count], self._stamp[:count] = slots[latest], stamps[latest]
        self._head, self._tail = 0, count
