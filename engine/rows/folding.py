"""Folding: a row that stays away long enough keeps one vector on the disk instead of two.

While a row is away, every step multiplies (w, u) by M(eta) (engine/rows/transitions.py), and det M = m (times 1 - eta*lambda with
nesterov): the product P of many steps has rank one to the precision of the row. So after T steps the row is known by

    v = P00 w + P01 u        its weight then;  its momentum is  kappa v,  kappa = P10 / P00

and P depends on the learning rates after its departure s alone. What is kept is v, and s as -2 - s in `last_step`; the row at a step
t is then  M(s+T .. t) [1; kappa] v.  Skipped steps are identities in P like everywhere else.

T is computed from m and lambda: the momentum that v cannot tell is about m^T |u|, and has to be under half a unit in the last place
of float32 of the momentum that matters, max(|u|, lambda |w| / (1 - m), 1e-12 |w|), for rows with |u| up to 1,000 |w|. For m = 0.9 and
lambda = 1e-4 that is 290 steps, for 0.99 it is 2,804. A row for which it is not enough is not folded: the error is computed.

Whether a row is folded must not depend on when its block went to the disk, or a checkpoint would change a run. So a row that was away
for at least T steps is folded when it comes back, if its block was not: same numbers, same bits. Hence it is an option of the run
(`store.fold`), not of the files. A block waits in the host tier until it can be folded, for T steps after its last row left.

What it costs: rounding v to float32 once more, and the exactness to the bit of runs without it.
"""

import math

import numpy as np

from engine.rows.store import NEVER_VISITED, Block
from engine.rows.transitions import TransitionLog, catch_up

_HALF_ULP = 2.0**-24
_LARGEST_RATIO = 2.0**10  # |u| / |w| that T allows for


def steps_to_fold(momentum: float, weight_decay: float) -> int:
    """T; see above.

    >>> steps_to_fold(0.9, 1e-4), steps_to_fold(0.0, 1e-4)
    (290, 1)
    """
    if momentum == 0:
        return 1
    matters = max(weight_decay / (1 - momentum), 1e-12)
    return math.ceil(math.log(_HALF_ULP / _LARGEST_RATIO * matters) / math.log(momentum))


def is_folded(last_step_B: np.ndarray) -> np.ndarray:
    """bool [B]."""
    return last_step_B < NEVER_VISITED


def departure(last_step_B: np.ndarray) -> np.ndarray:
    """Transitions that (w, u) included when the row left, folded since or not."""
    return np.where(is_folded(last_step_B), -2 - last_step_B, last_step_B)


class Folding:
    """Folds and unfolds the rows of one run. log: the transitions applied so far."""

    def __init__(self, log: TransitionLog) -> None:
        self.log = log
        self.steps = steps_to_fold(float(log.momentum), float(log.weight_decay))

    def can_fold(self, last_step_B: np.ndarray, step: int) -> np.ndarray:
        """Whether a row that was visited is not folded, and away long enough at `step`, bool [B]."""
        return (last_step_B >= 0) & (last_step_B + self.steps <= step)

    def fold(self, w_BD: np.ndarray, u_BD: np.ndarray, last_step_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(v [B, D] in the rows' dtype, last_step [B] for it); a row that one vector cannot tell stays as it is."""
        product_B22 = self.log.products(last_step_B, last_step_B + self.steps)
        after_w, after_u = catch_up(w_BD.astype(np.float64), u_BD.astype(np.float64), product_B22)
        lost_B = np.linalg.norm(after_u - _kappa(product_B22)[:, None] * after_w, axis=1)
        length_B = np.linalg.norm(after_w, axis=1)
        m, decay = float(self.log.momentum), float(self.log.weight_decay)
        matters_B = np.maximum(np.linalg.norm(after_u, axis=1), max(decay / (1 - m), 1e-12) * length_B)
        is_exact_B = lost_B <= _HALF_ULP * matters_B
        v_BD = np.where(is_exact_B[:, None], after_w.astype(w_BD.dtype), w_BD)
        return v_BD, np.where(is_exact_B, -2 - last_step_B, last_step_B)

    def fold_block(self, rows: Block, step: int) -> Block:
        """The block with all its old rows folded; without momentum where that leaves no row that needs it."""
        assert rows.momentum is not None
        weight, momentum, last_step = rows.weight.copy(), rows.momentum.copy(), rows.last_step.copy()
        old = np.flatnonzero(self.can_fold(last_step, step))
        weight[old], last_step[old] = self.fold(weight[old], momentum[old], last_step[old])
        momentum[is_folded(last_step)] = 0
        return Block(weight, None if (last_step < 0).all() else momentum, last_step)

    def catch_up(
        self, w_BD: np.ndarray, u_BD: np.ndarray, last_step_B: np.ndarray, new_B: np.ndarray, step: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(w, u) at `step` of rows, folded or not; those that were away long enough go through their fold.

        new_B   bool [B], rows that come for the first time: nothing to fold
        """
        w_BD, last_step_B = w_BD.copy(), last_step_B.copy()
        old = np.flatnonzero(self.can_fold(last_step_B, step) & ~new_B)
        if len(old):
            w_BD[old], last_step_B[old] = self.fold(w_BD[old], u_BD[old], last_step_B[old])
        start_B = departure(last_step_B)
        folded = is_folded(last_step_B)
        w, u = catch_up(w_BD[~folded], u_BD[~folded], self.log.products(start_B[~folded], step))
        result_w, result_u = w_BD, np.empty_like(w_BD)
        result_w[~folded], result_u[~folded] = w, u
        if folded.any():
            start = start_B[folded]
            v = w_BD[folded].astype(np.float64)
            kappa = _kappa(self.log.products(start, start + self.steps))
            rest = self.log.products(start + self.steps, step)
            result_w[folded], result_u[folded] = catch_up(v, kappa[:, None] * v, rest)
        return result_w, result_u


def _kappa(product_B22: np.ndarray) -> np.ndarray:
    return product_B22[:, 1, 0] / product_B22[:, 0, 0]
