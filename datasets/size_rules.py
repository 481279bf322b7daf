"""The rules that the sizes of a schedule keep, and the nearest sizes that keep all of them at once.

    L | G        C L | S        S | W        G | W        W <= positions of a pass
    with reshuffle: W <= half of a pass, unless W = S = a whole pass

`a | b`: a divides b. A pass has ceil(N / (C L)) stripes of C L positions. A size that breaks a rule is refused together with sizes
that would do, one key changed where that is enough. For instance 1,437 instances in stripes of 64 make a pass of 1,472 positions. There
W = 700 does not go with S = 320 and G = 64; W = 640 does, and 960 would be more than half of a pass.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sizes:
    """N of the first segment, W, S, G, C, L and whether stripes are permuted anew in each pass."""

    size: int
    window: int
    stride: int
    batch: int
    block: int
    lanes: int
    reshuffle: bool

    @property
    def stripe(self) -> int:
        return self.block * self.lanes

    @property
    def stripes(self) -> int:
        """Of a pass."""
        return -(-self.size // self.stripe)

    @property
    def positions(self) -> int:
        """Of a pass."""
        return self.stripes * self.stripe

    def require(self) -> None:
        """Raises ValueError, naming the rule that is broken, the values, and what to set."""
        for name in ("size", "window", "stride", "batch", "block", "lanes"):
            if getattr(self, name) < 1:
                raise ValueError(f"schedule: {name} is {getattr(self, name)}; it must be at least 1")
        broken = self.broken()
        if broken:
            raise ValueError(f"schedule: {broken}; {self._way_out()}")

    def broken(self) -> str | None:
        """The first rule that does not hold, in words."""
        pairs = (
            ("lanes", self.lanes, "batch", self.batch),
            ("block x lanes", self.stripe, "stride", self.stride),
            ("stride", self.stride, "window", self.window),
            ("batch", self.batch, "window", self.window),
        )
        for small_name, small, large_name, large in pairs:
            if large % small:
                return f"{small_name} ({small}) does not divide {large_name} ({large})"
        if self.window > self.positions:
            return f"window is {self.window}, but the {self.size} instances fill only {self.positions} positions"
        half = self.stripes // 2
        one_window_a_pass = self.window == self.stride == self.positions
        if self.reshuffle and half < self.window // self.stripe and not one_window_a_pass:
            return (
                f"reshuffle needs halves of a pass ({half} stripes of {self.stripe}) at least as long as the window "
                f"({self.window // self.stripe} stripes)"
            )
        return None

    def _way_out(self) -> str:
        """What to set: the nearest sizes that keep every rule, the first of the keys that is enough."""
        if self.batch % self.lanes:
            return f"set schedule.batch to {_either(_near(self.batch, range(self.lanes, 2 * self.batch + self.lanes, self.lanes)))}"
        ways = []
        if self.stride % self.stripe and (found := self._strides_that_hold()):
            ways.append(f"schedule.stride to {_either(found)}")
        if found := self._windows_that_hold():
            ways.append(f"schedule.window to {_either(found)}")
        if not ways:
            both = self._multiples(math.lcm(self.stripe, self.batch))
            if both := _near(self.window, (window for window in both if not self._with_both(window).broken())):
                ways.append(f"schedule.window and schedule.stride to {_either(both)}")
        if self.reshuffle and not replace(self, reshuffle=False).broken():
            ways.append("schedule.reshuffle to false")
        if not ways:
            return f"{self.size} instances are too few for these: set schedule.batch and schedule.block lower"
        return "set " + ", or ".join(ways)

    def _multiples(self, step: int) -> list[int]:
        """Those of `step` that may be the window nearest to the one that is wanted: near it, and at the limits that rules set."""
        half = self.stripes // 2 * self.stripe
        below = [limit // step * step for limit in (self.window, half, self.positions)]
        return [window for window in (*below, below[0] + step) if window]

    def _with_both(self, window: int) -> "Sizes":
        return replace(self, window=window, stride=window)

    def _strides_that_hold(self) -> list[int]:
        """The nearest strides with which every rule holds."""
        whole, rest = divmod(self.window, self.stripe)
        strides = [] if rest else [self.stripe * part for part in _divisors(whole)]
        return _near(self.stride, (stride for stride in strides if not replace(self, stride=stride).broken()))

    def _windows_that_hold(self) -> list[int]:
        """The nearest windows with which every rule holds."""
        windows = self._multiples(math.lcm(self.stride, self.batch))
        return _near(self.window, (window for window in windows if not replace(self, window=window).broken()))


def _divisors(number: int) -> list[int]:
    small = [part for part in range(1, math.isqrt(number) + 1) if number % part == 0]
    return sorted({*small, *(number // part for part in small)})


def _near(wanted: int, values: Iterable[int]) -> list[int]:
    """The nearest value below, and the nearest above."""
    below, above = None, None
    for value in values:
        if value <= wanted:
            below = value if below is None else max(below, value)
        else:
            above = value if above is None else min(above, value)
    return [value for value in (below, above) if value is not None]


def _either(values: list[int]) -> str:
    return " or ".join(str(value) for value in values)
