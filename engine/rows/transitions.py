"""What SGD does to a row that gets no gradient, for any number of steps at once.

One step of torch.optim.SGD (no dampening) on a row w with momentum u and zero gradient is linear in (w, u):

    [w; u] <- M(eta) [w; u],    M(eta) = [[1 - eta*lambda,         -eta*m  ], [lambda, m]]
    with nesterov                M(eta) = [[1 - eta*lambda*(1+m),   -eta*m*m], [lambda, m]]

A row last touched before step s and needed again at step t is therefore M(eta_{t-1}) ... M(eta_s) [w; u], whatever the
learning rates were. The matrices do not commute, and their product underflows, so prefix products cannot be divided; the log keeps
the products of dyadic segments [i*2^j, (i+1)*2^j) and puts any [s, t) together from at most 2*log2(T) of them.

Products are formed in extended precision: 1 - eta*lambda rounded once to float64 and multiplied 10^5 times would be off by
3e-12. A step that was skipped is the identity. Products of segments shorter than 2^4 steps are kept for the latest steps alone; others are
formed anew, in the same order, so to the same bits: the log costs 8 bytes a step for the learning rates and 8 for the products.
"""

import numpy as np

EXTENDED = np.longdouble
_SKIPPED = np.nan
_LOWEST = 4  # segments of 2^4 steps are the shortest whose products are all kept
_RECENT = 4096  # latest steps, of which the products of shorter segments are kept as well: half a MB
_AT_ONCE = 4096  # segments whose products are formed together, where there are many: some MB


class TransitionLog:
    """The transitions really applied, in order, and the products over any run of them.

    >>> log = TransitionLog(momentum=0.9, weight_decay=0.0, nesterov=False)
    >>> for eta in (0.1, 0.2):
    ...     log.append(eta)
    >>> log.products(np.array([0, 1, 2]), 2)[:, 0, 1].round(3)  # how far one unit of momentum moves the row
    array([-0.252, -0.18 ,  0.   ])
    """

    def __init__(self, momentum: float, weight_decay: float, nesterov: bool) -> None:
        if np.finfo(EXTENDED).eps > 1e-18:
            raise ValueError(
                "this platform's numpy.longdouble is no wider than float64, so missed steps cannot be replayed exactly; "
                "run on Linux on x86-64 or aarch64"
            )
        self.momentum, self.weight_decay, self.nesterov = EXTENDED(momentum), EXTENDED(weight_decay), nesterov
        self._eta_T = np.empty(1024, dtype=np.float64)
        self._levels: list[np.ndarray] = []  # _levels[j - 4][i] is the product over [i * 2^j, (i + 1) * 2^j), [2, 2]
        # For j < 4 that of the latest segments, at [j][i mod _RECENT / 2^j]; as long as there are few steps, it is shorter.
        self._recent = [np.empty((64 >> level, 2, 2), dtype=EXTENDED) for level in range(_LOWEST)]
        self.steps = 0

    @property
    def bytes(self) -> int:
        """What the log occupies."""
        return self._eta_T.nbytes + sum(level.nbytes for level in [*self._levels, *self._recent])

    def append(self, eta: float | None) -> None:
        """Log one step: its learning rate, or None where the step was skipped."""
        self.extend(np.array([_SKIPPED if eta is None else eta]))

    def etas(self, first: int = 0) -> np.ndarray:
        """The learning rates from step `first` on, float64 [steps - first], NaN where skipped: what a checkpoint keeps. A view."""
        return self._eta_T[first : self.steps]  # what is appended is written behind it, or into a longer array

    def extend(self, eta_T: np.ndarray) -> None:
        """Log many steps, float64 [T], NaN where skipped: what a checkpoint kept. The same, to the bit, as one after the other."""
        before, self.steps = self.steps, self.steps + len(eta_T)
        self._eta_T = with_room(self._eta_T, self.steps)
        self._eta_T[before : self.steps] = eta_T
        for level in range(_LOWEST):
            most, end = _RECENT >> level, self.steps >> level
            self._recent[level] = with_room(self._recent[level], min(end, most))
            indices = np.arange(max(before >> level, self._oldest(level)), end)
            if len(indices):
                self._recent[level][indices % most] = self._formed(level, indices)
        level = _LOWEST
        while self.steps >> level > before >> level:
            self._append_products(level, before >> level, self.steps >> level)
            level += 1

    def products(self, starts_M: np.ndarray, end: int | np.ndarray) -> np.ndarray:
        """M(eta_{end-1}) ... M(eta_s) for every s of starts_M (int64 [M], 0 <= s <= end), float64 [M, 2, 2].

        end   one step for all, or int64 [M]: as many steps after each start
        """
        ends_M = np.broadcast_to(np.asarray(end, dtype=np.int64), starts_M.shape)
        assert ((starts_M >= 0) & (starts_M <= ends_M) & (ends_M <= self.steps)).all(), (starts_M, end, self.steps)
        # Rows of one batch left at few different steps; a start has one end here.
        distinct, first, inverse = np.unique(starts_M, return_index=True, return_inverse=True)
        product = np.tile(np.eye(2, dtype=EXTENDED), (len(distinct), 1, 1))
        step_M, end = distinct.astype(np.int64), ends_M[first]
        assert (end[inverse.reshape(-1)] == ends_M).all()
        height = max(int(end.max(initial=0)).bit_length(), 1)
        # Climb while the segment that starts here is the left end of nothing larger, then come down towards `end`.
        for level in range(height):
            odd = (step_M >> level) & 1 == 1
            aligned = step_M & ((1 << level) - 1) == 0
            self._advance(step_M, product, level, odd & aligned & (step_M + (1 << level) <= end))
        for level in reversed(range(height)):
            self._advance(step_M, product, level, step_M + (1 << level) <= end)
        assert (step_M == end).all()
        return product.astype(np.float64)[inverse.reshape(-1)]

    def _advance(self, step_M: np.ndarray, product: np.ndarray, level: int, chosen: np.ndarray) -> None:
        if chosen.any():
            product[chosen] = multiply(self._segments(level, step_M[chosen] >> level), product[chosen])
            step_M[chosen] += 1 << level

    def _segments(self, level: int, indices: np.ndarray) -> np.ndarray:
        """The products of the given segments of 2^level steps, extended [n, 2, 2]."""
        if level >= _LOWEST:
            return self._levels[level - _LOWEST][indices]
        if indices.min() >= self._oldest(level):
            return self._recent[level][indices % (_RECENT >> level)]
        return self._formed(level, indices)

    def _oldest(self, level: int) -> int:
        """The first segment of 2^level steps that lies in the latest steps."""
        return max(0, -((_RECENT - self.steps) >> level))

    def _formed(self, level: int, indices: np.ndarray) -> np.ndarray:
        """The same from the learning rates."""
        steps = (indices[:, None] << level) + np.arange(1 << level)
        product = transition(self._eta_T[steps.reshape(-1)], self.momentum, self.weight_decay, self.nesterov)
        for _ in range(level):
            product = multiply(product[1::2], product[::2])
        return product

    def _append_products(self, level: int, first: int, end: int) -> None:
        """Of the segments first .. end - 1 of a level; those below are there."""
        if level - _LOWEST == len(self._levels):
            self._levels.append(np.empty((1, 2, 2), dtype=EXTENDED))
        kept = self._levels[level - _LOWEST] = with_room(self._levels[level - _LOWEST], end)
        for start in range(first, end, _AT_ONCE):
            stop = min(start + _AT_ONCE, end)
            halves = self._segments(level - 1, np.arange(2 * start, 2 * stop))
            kept[start:stop] = multiply(halves[1::2], halves[::2])


def still_log() -> TransitionLog:
    """The log of rows that nothing moves while they are not visited: it keeps learning rates, and its products are the identity on w."""
    return TransitionLog(momentum=0.0, weight_decay=0.0, nesterov=False)


def with_room(array: np.ndarray, count: int) -> np.ndarray:
    """The array, or a longer one that begins with it: of 2^n times its length, so that to append costs little on the whole.

    The room behind it is not written, so the system gives it no memory before steps come.
    """
    if count <= len(array):
        return array
    longer = np.empty((len(array) << (-(-count // len(array)) - 1).bit_length(), *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


def transition(eta_M: np.ndarray, momentum: np.longdouble, weight_decay: np.longdouble, nesterov: bool) -> np.ndarray:
    """M(eta) for every eta, extended [M, 2, 2]; the identity where eta is NaN (a skipped step)."""
    eta = eta_M.astype(EXTENDED)
    factor = momentum if nesterov else EXTENDED(0)
    result = np.empty((len(eta), 2, 2), dtype=EXTENDED)
    result[:, 0, 0] = 1 - eta * weight_decay * (1 + factor)
    result[:, 0, 1] = -eta * momentum * (momentum if nesterov else 1)
    result[:, 1, 0] = weight_decay
    result[:, 1, 1] = momentum
    result[np.isnan(eta)] = np.eye(2, dtype=EXTENDED)
    return result


def multiply(later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """later @ earlier for stacks of 2x2 matrices (numpy's matmul has no fast path for extended precision).

    The sum over two is written out: `sum(axis=2)` gives the same bits and takes three times as long.
    """
    return later[:, :, :1] * earlier[:, :1] + later[:, :, 1:] * earlier[:, 1:]


def catch_up(w_BD: np.ndarray, u_BD: np.ndarray, product_B22: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[w; u] <- product [w; u] for each row, computed in float64, returned in the rows' dtype."""
    w, u = w_BD.astype(np.float64), u_BD.astype(np.float64)
    p = product_B22[:, :, :, None]
    caught_w = p[:, 0, 0] * w + p[:, 0, 1] * u
    caught_u = p[:, 1, 0] * w + p[:, 1, 1] * u
    return caught_w.astype(w_BD.dtype), caught_u.astype(u_BD.dtype)
