"""A number of every step, in memory from the first to the last: 8 bytes a step, and no copy where the past is read."""

import numpy as np

from engine.rows.transitions import with_room

_ROOM = 1024


class Series:
    """Numbers that come one after the other; those that are there never change.

    values   float64, the first ones
    """

    def __init__(self, values: np.ndarray | None = None) -> None:
        first = np.empty(0) if values is None else np.asarray(values, dtype=np.float64)
        self._count = len(first)
        self._values = np.empty(max(_ROOM, len(first)))
        self._values[: len(first)] = first

    def append(self, value: float) -> None:
        self._values = with_room(self._values, self._count + 1)
        self._values[self._count] = value
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, steps: slice) -> np.ndarray:
        """A view, float64. What is appended meanwhile, maybe by another thread, is not in it and does not move it."""
        return self._values[: self._count][steps]

    @property
    def bytes(self) -> int:
        """With the room for steps to come."""
        return self._values.nbytes
