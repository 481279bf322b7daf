"""Not tests: rows that come back with another correction than the exact one, to see what the correction is worth.

    python -m tests.engine.rows.other_corrections none --config configs/fashion_mnist.json output=runs/none ...

trains as launch.py does, with these products in the place of M(eta_last) ... M(eta_first):

    exact      as they are
    power      M(eta_last) to the power of the missed steps: one matrix, as if the rate had been the same all the time
    momentum   the exact product without weight decay
    none       the identity: a row comes back as it left
"""

import sys
from typing import ClassVar

import numpy as np

import launch
from engine.jobs import row_table
from engine.rows.transitions import TransitionLog, multiply, transition


class PowerLog(TransitionLog):
    def products(self, starts_M: np.ndarray, end: int | np.ndarray) -> np.ndarray:
        ends_M = np.broadcast_to(np.asarray(end, dtype=np.int64), starts_M.shape)
        eta_M = self._eta_T[np.maximum(ends_M - 1, 0)]
        square, missed_M = transition(eta_M, self.momentum, self.weight_decay, self.nesterov), ends_M - starts_M
        product = np.tile(np.eye(2, dtype=square.dtype), (len(starts_M), 1, 1))
        for bit in range(int(missed_M.max(initial=0)).bit_length()):
            is_odd = (missed_M >> bit) & 1 == 1
            product[is_odd] = multiply(square[is_odd], product[is_odd])
            square = multiply(square, square)
        return product.astype(np.float64)


class MomentumLog(TransitionLog):
    """Updates decay rows as ever; missed steps do not."""

    def __init__(self, momentum: float, weight_decay: float, nesterov: bool) -> None:
        super().__init__(momentum, weight_decay, nesterov)
        self._without_decay = TransitionLog(momentum, 0.0, nesterov)

    def extend(self, eta_T: np.ndarray) -> None:
        super().extend(eta_T)
        self._without_decay.extend(eta_T)

    def products(self, starts_M: np.ndarray, end: int | np.ndarray) -> np.ndarray:
        return self._without_decay.products(starts_M, end)


class IdentityLog(TransitionLog):
    identity: ClassVar[np.ndarray] = np.eye(2)

    def products(self, starts_M: np.ndarray, end: int | np.ndarray) -> np.ndarray:
        return np.tile(self.identity, (len(starts_M), 1, 1))


LOGS: dict[str, type[TransitionLog]] = {
    "exact": TransitionLog,
    "power": PowerLog,
    "momentum": MomentumLog,
    "none": IdentityLog,
}


if __name__ == "__main__":
    row_table.TransitionLog = LOGS[sys.argv[1]]
    sys.exit(launch.main(sys.argv[2:]))
