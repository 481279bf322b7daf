"""Which positions each step visits: a pure function of (seed, N, W, S, C, L, G, step).

Positions 0..N-1 are the instances in a keyed order (a Feistel network, so nothing of size N is ever in memory). C
consecutive positions are a block, block b belongs to lane b mod L, and L consecutive blocks are a stripe:

    position   0 1 2 | 3 4 5 | 6 7 8 | 9 10 11 | ...        C = 3
    block      0     | 1     | 2     | 3       | ...
    lane       0     | 1     | 0     | 1       | ...        L = 2
    stripe     0             | 1               | ...

The order is an endless sequence of stripes, pass after pass; with `reshuffle` each pass permutes whole stripes inside each
half of the pass. Window v is the stripes number v*S/(C*L) ... v*S/(C*L) + W/(C*L) - 1 of that sequence. It lasts W/G steps,
in which every position of the window is visited once; so every occurrence of a position lies in exactly W/S windows (fewer in a
run's first windows only). Inside a window each lane shuffles its own W/L positions, and a batch takes the next G/L of each lane.

Neither the number of ranks nor the past enters: any step can be asked for directly, and the step is all there is to checkpoint.
What is left out: sources that must be read in order, and instances appended later.
What it costs: two arrays of W integers while a window is current; about 1 microsecond a place for the Feistel rounds.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from datasets.keyed import keyed, shuffle

EMPTY = -1  # a place of the batch that no instance fills
_ROUNDS = 6
# Purposes, so that no two streams share keys.
_INSTANCE_ORDER, _STRIPE_ORDER, _WINDOW_ORDER = 1, 2, 3


@dataclass(frozen=True)
class Feistel:
    """A keyed bijection of range(size): position -> instance and back, for sizes up to 2**62, without a table.

    A number x < side**2 is a pair (x // side, x % side) with side = ceil(sqrt(size)). One round maps (left, right) to
    (right, (left + hash(right)) mod side); results that fall past `size` are sent through again (cycle walking; the
    square is at most 2*sqrt(size) + 1 larger than the range, so this is rare).
    """

    key: int
    size: int

    @property
    def _side(self) -> int:
        side = int(np.sqrt(self.size))
        while side * side < self.size:
            side += 1
        return side

    def forward(self, x_B: np.ndarray) -> np.ndarray:
        """int64 [B] in range(size) -> int64 [B] in range(size)."""
        return self._walk(x_B, self._rounds_forward)

    def inverse(self, y_B: np.ndarray) -> np.ndarray:
        """The argument whose `forward` is y_B."""
        return self._walk(y_B, self._rounds_inverse)

    def _walk(self, x_B: np.ndarray, rounds) -> np.ndarray:  # type: ignore[no-untyped-def]
        y_B = rounds(np.asarray(x_B, dtype=np.int64))
        while (outside_B := y_B >= self.size).any():
            y_B[outside_B] = rounds(y_B[outside_B])
        return y_B

    def _round_function(self, number: int, half_B: np.ndarray) -> np.ndarray:
        return (keyed(self.key, number, half_B) % np.uint64(self._side)).astype(np.int64)

    def _rounds_forward(self, x_B: np.ndarray) -> np.ndarray:
        side = self._side
        left_B, right_B = x_B // side, x_B % side
        for number in range(_ROUNDS):
            left_B, right_B = right_B, (left_B + self._round_function(number, right_B)) % side
        return left_B * side + right_B

    def _rounds_inverse(self, y_B: np.ndarray) -> np.ndarray:
        side = self._side
        left_B, right_B = y_B // side, y_B % side
        for number in reversed(range(_ROUNDS)):
            left_B, right_B = (right_B - self._round_function(number, left_B)) % side, left_B
        return left_B * side + right_B


@dataclass(frozen=True)
class Schedule:
    """The order of visits. All sizes are in positions (= instances); see the module's docstring for the words.

    seed       keys every shuffle
    size       N
    window     W        stride  S        batch   G
    block      C        lanes   L        reshuffle   permute the stripes anew in each pass

    Raises ValueError where the sizes do not fit together, naming the two that do not.
    """

    seed: int
    size: int
    window: int
    stride: int
    batch: int
    block: int
    lanes: int
    reshuffle: bool = True

    def __post_init__(self) -> None:
        for name in ("size", "window", "stride", "batch", "block", "lanes"):
            if getattr(self, name) < 1:
                raise ValueError(f"schedule: {name} is {getattr(self, name)}; it must be at least 1")
        stripe = self.block * self.lanes
        _divides("lanes", self.lanes, "batch", self.batch)
        _divides("block x lanes", stripe, "stride", self.stride)
        _divides("stride", self.stride, "window", self.window)
        _divides("batch", self.batch, "window", self.window)
        if self.window > self.padded_size:
            raise ValueError(
                f"schedule.window is {self.window}, but the {self.size} instances fill only {self.padded_size} positions; "
                f"set schedule.window to at most {self.padded_size // self.stride * self.stride}"
            )
        half = self.stripes // 2
        one_window_a_pass = self.window == self.stride == self.padded_size
        if self.reshuffle and half < self.window // stripe and not one_window_a_pass:
            raise ValueError(
                f"schedule.reshuffle needs halves of a pass ({half} stripes of {stripe}) at least as long as the window "
                f"({self.window // stripe} stripes); set schedule.reshuffle to false or schedule.window to at most {half * stripe}"
            )

    @property
    def stripes(self) -> int:
        """Stripes in a pass; the last one may be ragged."""
        return -(-self.size // (self.block * self.lanes))

    @property
    def padded_size(self) -> int:
        """Places in a pass: N rounded up to whole stripes."""
        return self.stripes * self.block * self.lanes

    @property
    def steps_per_window(self) -> int:
        return self.window // self.batch

    @property
    def steps_per_pass(self) -> float:
        """Steps between two visits to the same stripe: each position is visited W/S times in one pass."""
        return self.padded_size * (self.window // self.stride) / self.batch

    def lane_size(self, lane: int) -> int:
        """How many of the N positions belong to a lane."""
        whole, rest = divmod(self.size, self.block * self.lanes)
        return whole * self.block + min(max(rest - lane * self.block, 0), self.block)

    def instances(self, positions_B: np.ndarray) -> np.ndarray:
        """Positions -> instances, int64 [B]; empty places stay -1.

        >>> Schedule(0, 10, 4, 4, 2, 2, 1).instances(np.array([0, 1, -1]))
        array([ 6,  7, -1])
        """
        ids_B = np.full(len(positions_B), EMPTY, dtype=np.int64)
        filled_B = positions_B >= 0
        ids_B[filled_B] = self._order.forward(positions_B[filled_B])
        return ids_B

    def positions_of(self, ids_B: np.ndarray) -> np.ndarray:
        """Instances -> positions, int64 [B]: the inverse of `instances`."""
        return self._order.inverse(np.asarray(ids_B, dtype=np.int64))

    def window_of(self, step: int) -> int:
        return step // self.steps_per_window

    def window_stripes(self, window: int) -> np.ndarray:
        """The stripes of a window, int64 [W/(C*L)], in the order of the pass."""
        stripe = self.block * self.lanes
        first = window * (self.stride // stripe)
        return self._stripe_at(np.arange(first, first + self.window // stripe, dtype=np.int64))

    def window_blocks(self, window: int) -> np.ndarray:
        """The blocks of a window that hold at least one position, int64."""
        blocks = (self.window_stripes(window)[:, None] * self.lanes + np.arange(self.lanes)).reshape(-1)
        return blocks[blocks * self.block < self.size]

    def positions(self, step: int) -> np.ndarray:
        """The G places of a step, int64 [G], grouped by lane (the first G/L belong to lane 0), -1 where empty."""
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        window, place = divmod(step, self.steps_per_window)
        share = self.batch // self.lanes
        return _window_order(self, window)[:, place * share : (place + 1) * share].reshape(-1).copy()

    @property
    def _order(self) -> Feistel:
        return Feistel(int(keyed(self.seed, _INSTANCE_ORDER)), self.size)

    def _stripe_at(self, occurrences: np.ndarray) -> np.ndarray:
        """The stripe at each place of the endless sequence."""
        passes, places = np.divmod(occurrences, self.stripes)
        if not self.reshuffle:
            return places
        result = places.copy()
        middle = self.stripes // 2
        ragged = self.size % (self.block * self.lanes) != 0
        for start, stop in ((0, middle), (middle, self.stripes - ragged)):
            for number in np.unique(passes):
                chosen = (passes == number) & (places >= start) & (places < stop)
                half = Feistel(int(keyed(self.seed, _STRIPE_ORDER, int(number), start)), stop - start)
                if chosen.any():
                    result[chosen] = start + half.forward(places[chosen] - start)
        return result


@lru_cache(maxsize=2)
def _window_order(schedule: Schedule, window: int) -> np.ndarray:
    """Every lane's positions of a window in the order of visit, int64 [L, W/L], -1 where empty."""
    stripes = schedule.window_stripes(window)
    order = np.empty((schedule.lanes, schedule.window // schedule.lanes), dtype=np.int64)
    for lane in range(schedule.lanes):
        blocks = stripes * schedule.lanes + lane
        positions = (blocks[:, None] * schedule.block + np.arange(schedule.block)).reshape(-1)
        positions[positions >= schedule.size] = EMPTY
        key = int(keyed(schedule.seed, _WINDOW_ORDER, window, lane))
        order[lane] = positions[shuffle(key, len(positions))]
    return order


def _divides(small_name: str, small: int, large_name: str, large: int) -> None:
    if large % small:
        below, above = large // small * small, (large // small + 1) * small
        choice = f"{below} or {above}" if below else str(above)
        raise ValueError(
            f"schedule: {small_name} ({small}) does not divide {large_name} ({large}); set {large_name} to {choice}"
        )
