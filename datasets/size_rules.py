"""The rules that the sizes of a run keep.

    A L | G        C L | S        S | W        G | W        W <= positions of a pass
    with reshuffle: W <= half of a pass, unless W = S = a whole pass
    K >= N, or all of: L | K, G <= K <= W

`a | b`: a divides b. A pass has ceil(N / (C L)) stripes of C L positions. For instance 1,437 instances in stripes of 64 make a pass of
1,472 positions. There W = 700 does not go with S = 320 and G = 64; W = 640 does, and 960 would be more than half of a pass.

datasets/size_choice.py finds sizes that keep all rules at once.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """N of the first segment, W, S, G, C, L, whether stripes are permuted anew in each pass, A, and K (None: all N rows, or no rows)."""

    size: int
    window: int
    stride: int
    batch: int
    block: int
    lanes: int
    reshuffle: bool
    micro_batches: int = 1
    active: int | None = None

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

    @property
    def half(self) -> int:
        """Positions of the first half of a pass, in whole stripes."""
        return self.stripes // 2 * self.stripe

    def broken(self) -> str | None:
        """The first rule that does not hold, in words."""
        order = self.below_one() or self._broken_order()
        return f"schedule: {order}" if order else self._broken_rows()

    def below_one(self) -> str | None:
        """The first size that is no size at all, in words."""
        for name in ("size", "window", "stride", "batch", "block", "lanes", "micro_batches"):
            if getattr(self, name) < 1:
                return f"{name} is {getattr(self, name)}; it must be at least 1"
        return None

    def _broken_order(self) -> str | None:
        """The first rule of the order of visits that does not hold."""
        together = "lanes" if self.micro_batches == 1 else "lanes x micro_batches"
        pairs = (
            (together, self.lanes * self.micro_batches, "batch", self.batch),
            ("block x lanes", self.stripe, "stride", self.stride),
            ("stride", self.stride, "window", self.window),
            ("batch", self.batch, "window", self.window),
        )
        for small_name, small, large_name, large in pairs:
            if large % small:
                return f"{small_name} ({small}) does not divide {large_name} ({large})"
        if self.window > self.positions:
            return f"window is {self.window}, but the {self.size} instances fill only {self.positions} positions"
        one_window_a_pass = self.window == self.stride == self.positions
        if self.reshuffle and self.half < self.window and not one_window_a_pass:
            return f"reshuffle needs halves of a pass ({self.half} positions) at least as long as the window ({self.window})"
        return None

    def _broken_rows(self) -> str | None:
        """The first rule of the active rows that does not hold."""
        active = self.active
        if active is None or active >= self.size:
            return None
        if active < self.batch:
            return f"method.active ({active}) is below schedule.batch ({self.batch})"
        if active % self.lanes:
            return f"schedule.lanes ({self.lanes}) does not divide method.active ({active})"
        if active > self.window:
            return f"method.active ({active}) is above schedule.window ({self.window}): rows would be kept that no window visits"
        return None
