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

Instances that are appended later form a segment of their own: behind the last position, in a keyed order of their own, from the
next stripe on, so that no earlier position moves. The rest of the stripe in which the earlier segment ended stays empty for ever:

    segment    first, N = 10                      | appended, 4 more
    position   0 1 2 | 3 4 5 | 6 7 8 | 9  -  -    | 12 13 14 | 15
    stripe     0             | 1                  | 2

Passes grow at a pass boundary: an era is the time from one segment's first pass to the next segment's. Appended stripes belong
to the second half, whose beginning never moves. So the schedule is a pure function of the sizes above and of the history of
segments: neither the number of ranks nor what was visited enters, any step can be asked for directly, and the step and the
history are all there is to checkpoint.

What is left out: sources that must be read in order, and taking instances away.
What it costs: two arrays of W integers while a window is current; about 1 microsecond a place for the Feistel rounds; less than
a stripe of empty places in each pass for each time that instances were appended.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from datasets.keyed import keyed, shuffle
from datasets.size_choice import require
from datasets.size_rules import Sizes

EMPTY = -1  # a place of the batch that no instance fills
_ROUNDS = 6
# Purposes, so that no two streams share keys.
_INSTANCE_ORDER, _STRIPE_ORDER, _WINDOW_ORDER = 1, 2, 3


@dataclass(frozen=True)
class Feistel:
    """A keyed bijection of range(size): position -> instance, for sizes up to 2**62, without a table.

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
        y_B = self._rounds(np.asarray(x_B, dtype=np.int64))
        while (outside_B := y_B >= self.size).any():
            y_B[outside_B] = self._rounds(y_B[outside_B])
        return y_B

    def _round_function(self, number: int, half_B: np.ndarray) -> np.ndarray:
        return (keyed(self.key, number, half_B) % np.uint64(self._side)).astype(np.int64)

    def _rounds(self, x_B: np.ndarray) -> np.ndarray:
        side = self._side
        left_B, right_B = x_B // side, x_B % side
        for number in range(_ROUNDS):
            left_B, right_B = right_B, (left_B + self._round_function(number, right_B)) % side
        return left_B * side + right_B


@dataclass(frozen=True)
class Segment:
    """Instances that were appended together.

    size          how many
    first_place   the place of the endless sequence of stripes from which on passes visit them; 0 for the first segment
    """

    size: int
    first_place: int


@dataclass(frozen=True)
class _Eras:
    """The history as columns, int64 [E] each. Era e lasts from the first pass over segment e to that over segment e + 1."""

    sizes_E: np.ndarray
    first_ids_E: np.ndarray
    first_positions_E: np.ndarray
    stripes_E: np.ndarray  # in a pass of the era: those of segments 0..e
    first_places_E: np.ndarray
    first_passes_E: np.ndarray


@dataclass(frozen=True)
class Schedule:
    """The order of visits. All sizes are in positions (= instances); see the module's docstring for the words.

    seed       keys every shuffle
    size       N, all segments together
    window     W        stride  S        batch   G
    block      C        lanes   L        reshuffle   permute the stripes anew in each pass
    appended   the segments behind the first; `grown` adds one

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
    appended: tuple[Segment, ...] = ()

    def __post_init__(self) -> None:
        # What has to hold for every pass has to hold for the shortest, that over the first segment alone.
        first = self.segments[0].size
        assert all(segment.size >= 1 for segment in self.appended), self.history
        require(Sizes(first, self.window, self.stride, self.batch, self.block, self.lanes, self.reshuffle))
        stripe = self.block * self.lanes
        one_window_a_pass = self.window == self.stride == -(-first // stripe) * stripe
        if one_window_a_pass and self.appended:
            raise ValueError(
                f"schedule.window and schedule.stride ({self.window}) are a whole pass, which would grow with the instances; "
                "take the new images out again, or start over with --fresh and give schedule.window, at most half of the images, "
                "and method.active, at most the window"
            )
        lasted = np.diff(self._eras.first_places_E)
        assert (lasted >= 0).all(), self.history
        assert not (lasted % self._eras.stripes_E[:-1]).any(), self.history  # passes are whole

    @classmethod
    def from_history(cls, history: list[list[int]], **sizes: Any) -> "Schedule":
        """The schedule with this `history`; `sizes` are the other fields.

        >>> schedule = Schedule(0, 10, 4, 4, 2, 2, 1).grown(3, step=1)
        >>> schedule.history
        [[10, 0], [3, 5]]
        >>> schedule == Schedule.from_history([[10, 0], [3, 5]], seed=0, window=4, stride=4, batch=2, block=2, lanes=1)
        True
        """
        segments = [Segment(*fields) for fields in history]
        assert segments[0].first_place == 0, history
        return cls(size=sum(segment.size for segment in segments), appended=tuple(segments[1:]), **sizes)

    @property
    def history(self) -> list[list[int]]:
        """[size, first_place] of every segment: lists, as JSON gives them back."""
        return [[segment.size, segment.first_place] for segment in self.segments]

    @property
    def segments(self) -> tuple[Segment, ...]:
        return (Segment(self.size - sum(segment.size for segment in self.appended), 0), *self.appended)

    def grown(self, added: int, step: int) -> "Schedule":
        """The schedule by which a run that has done `step` steps goes on with `added` instances more.

        It equals this one in every window up to that of the run's last step, and in all that follow until the pass ends;
        the next pass visits the new instances as well. ValueError where nothing is added, or where a window is a whole pass.
        """
        if added < 1:
            raise ValueError(f"schedule: {added} instances cannot be appended; it takes at least 1")
        window = self.window_of(max(step - 1, 0))
        end = (window * self.stride + self.window) // (self.block * self.lanes)
        # Not before the last segment's own first pass: an era may be empty (appended twice within one pass), not negative.
        latest = self.segments[-1].first_place
        passes = max(0, -((latest - end) // self.stripes))
        segment = Segment(added, latest + passes * self.stripes)
        return replace(self, size=self.size + added, appended=(*self.appended, segment))

    @property
    def stripes(self) -> int:
        """Stripes in a pass of the latest era; the last stripe of each segment may be ragged."""
        return int(self._eras.stripes_E[-1])

    @property
    def padded_size(self) -> int:
        """Places in a pass of the latest era: every segment rounded up to whole stripes."""
        return self.stripes * self.block * self.lanes

    @property
    def positions_end(self) -> int:
        """One past the last position; N for a single segment, more where gaps lie between segments."""
        return int(self._eras.first_positions_E[-1] + self._eras.sizes_E[-1])

    @property
    def steps_per_window(self) -> int:
        return self.window // self.batch

    @property
    def steps_per_pass(self) -> float:
        """Steps between two visits to the same stripe in the latest era: a pass visits each position W/S times."""
        return self.padded_size * (self.window // self.stride) / self.batch

    def lane_size(self, lane: int) -> int:
        """How many of the N positions belong to a lane."""
        whole_E, rest_E = np.divmod(self._eras.sizes_E, self.block * self.lanes)
        return int((whole_E * self.block + np.clip(rest_E - lane * self.block, 0, self.block)).sum())

    def instances(self, positions_B: np.ndarray) -> np.ndarray:
        """Positions -> instances, int64 [B]; -1 for empty places (-1), gaps behind segments and positions past the end.

        >>> Schedule(0, 10, 4, 4, 2, 2, 1).instances(np.array([0, 1, -1]))
        array([ 6,  7, -1])
        """
        ids_B = np.full(len(positions_B), EMPTY, dtype=np.int64)
        segment_B = self._segment_at(positions_B)
        for number, first_id, first_position in self._starts_of(segment_B):
            here_B = segment_B == number
            ids_B[here_B] = first_id + self._order(number).forward(positions_B[here_B] - first_position)
        return ids_B

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
        return blocks[self._segment_at(blocks * self.block) >= 0]

    def positions(self, step: int) -> np.ndarray:
        """The G places of a step, int64 [G], grouped by lane (the first G/L belong to lane 0), -1 where empty."""
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        window, place = divmod(step, self.steps_per_window)
        share = self.batch // self.lanes
        return _window_order(self, window)[:, place * share : (place + 1) * share].reshape(-1).copy()

    @cached_property
    def _eras(self) -> _Eras:
        stripe = self.block * self.lanes
        sizes_E = np.array([segment.size for segment in self.segments], dtype=np.int64)
        first_places_E = np.array([segment.first_place for segment in self.segments], dtype=np.int64)
        stripes_E = np.cumsum(-(-sizes_E // stripe))
        first_positions_E = np.concatenate(([0], stripes_E[:-1] * stripe))
        first_passes_E = np.concatenate(([0], np.cumsum(np.diff(first_places_E) // stripes_E[:-1])))
        return _Eras(
            sizes_E, np.cumsum(sizes_E) - sizes_E, first_positions_E, stripes_E, first_places_E, first_passes_E
        )

    def _order(self, segment: int) -> Feistel:
        # The first segment has the key that it had before there were others.
        number = (segment,) if segment else ()
        return Feistel(int(keyed(self.seed, _INSTANCE_ORDER, *number)), int(self._eras.sizes_E[segment]))

    def _segment_at(self, positions_B: np.ndarray) -> np.ndarray:
        """The segment of each position, int64 [B]; -1 where no instance is."""
        firsts_E = self._eras.first_positions_E
        segment_B = np.searchsorted(firsts_E, positions_B, side="right") - 1
        segment_B[positions_B >= (firsts_E + self._eras.sizes_E)[segment_B]] = EMPTY
        return segment_B

    def _starts_of(self, segment_B: np.ndarray) -> list[tuple[int, int, int]]:
        """(segment, its first instance, its first position) of the segments that occur."""
        numbers = np.unique(segment_B[segment_B >= 0])
        starts = numbers, self._eras.first_ids_E[numbers], self._eras.first_positions_E[numbers]
        return list(zip(*(column.tolist() for column in starts), strict=True))

    def _stripe_at(self, occurrences: np.ndarray) -> np.ndarray:
        """The stripe at each place of the endless sequence."""
        eras = self._eras
        # Of eras that begin at one place, all but the last are empty; side="right" finds the last.
        era_B = np.searchsorted(eras.first_places_E, occurrences, side="right") - 1
        passes, places = np.divmod(occurrences - eras.first_places_E[era_B], eras.stripes_E[era_B])
        if not self.reshuffle:
            return places
        passes += eras.first_passes_E[era_B]
        result = places.copy()
        # Stripes never cross the middle, which stays that of the first segment for ever. Either side of it has room for a
        # window in every era, so the last W places of a pass lie behind it and the first W of the next before it, even if
        # that pass is longer: no window holds a stripe twice. (Where a window is a whole pass, none lies across two.)
        middle = int(eras.stripes_E[0]) // 2
        for era, number in sorted(set(zip(era_B.tolist(), passes.tolist(), strict=True))):
            ragged = int(eras.sizes_E[era]) % (self.block * self.lanes) != 0
            for start, stop in ((0, middle), (middle, int(eras.stripes_E[era]) - ragged)):
                chosen = (passes == number) & (places >= start) & (places < stop)
                if chosen.any():
                    side = Feistel(int(keyed(self.seed, _STRIPE_ORDER, number, start)), stop - start)
                    result[chosen] = start + side.forward(places[chosen] - start)
        return result


@lru_cache(maxsize=2)
def _window_order(schedule: Schedule, window: int) -> np.ndarray:
    """Every lane's positions of a window in the order of visit, int64 [L, W/L], -1 where empty."""
    stripes = schedule.window_stripes(window)
    order = np.empty((schedule.lanes, schedule.window // schedule.lanes), dtype=np.int64)
    for lane in range(schedule.lanes):
        blocks = stripes * schedule.lanes + lane
        positions = (blocks[:, None] * schedule.block + np.arange(schedule.block)).reshape(-1)
        positions[schedule._segment_at(positions) < 0] = EMPTY
        key = int(keyed(schedule.seed, _WINDOW_ORDER, window, lane))
        order[lane] = positions[shuffle(key, len(positions))]
    return order
