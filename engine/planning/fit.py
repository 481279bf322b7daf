"""The largest sizes that fit into given memory: of the active rows (K), the window (W), the micro-batch (G/A) and the images (N).

Each is asked for alone, with the others as they are, and all are asked for together. Bytes only grow with a size, so the largest one
that fits is found by halving the range of those that the rules allow (datasets/size_rules.py, which the caller asks). Together they
are raised one after the other, each as far as it goes, from the smallest sizes that the rules allow: first K, and with it the window
where K has to be below it; then the micro-batch; then the window; then N. So no size of the answer can be raised alone.

Left out: other batches, strides, blocks and lanes than the configured ones, and which trade between the four is the best one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from engine.planning.components import Plan

GIB = 2**30


class Limits(NamedTuple):
    """Bytes that there are: of one device, of the host memory of a machine, of the disk; None: any."""

    device: int | None
    host: int | None
    disk: int | None


@dataclass(frozen=True)
class Choice:
    """N, W, K (None: all rows) and A."""

    size: int
    window: int
    active: int | None
    micro_batches: int


class Allowed(NamedTuple):
    """The values that a size may have beside the others of a choice, ascending; micro_batches descending: micro-batches ascend."""

    active: Callable[[Choice], Sequence[int | None]]
    window: Callable[[Choice], Sequence[int]]
    micro_batches: Callable[[Choice], Sequence[int]]
    size: Callable[[Choice], Sequence[int]]


@dataclass(frozen=True)
class Question:
    """
    plan      of a choice that the rules allow
    allowed   see Allowed
    limits    what there is
    """

    plan: Callable[[Choice], Plan]
    allowed: Allowed
    limits: Limits

    def fits(self, choice: Choice) -> bool:
        return not over(self.plan(choice), self.limits)

    def alone(self, name: str, choice: Choice) -> Choice | None:
        """`choice` with the largest value of the size `name` that fits; None where not even the smallest does."""
        values = getattr(self.allowed, name)(choice)
        place = last_that(len(values), lambda number: self.fits(replace(choice, **{name: values[number]})))
        return None if place is None else replace(choice, **{name: values[place]})

    def smallest(self, choice: Choice) -> Choice:
        """The smallest K and window, and the smallest micro-batch, for the N of `choice`."""
        narrow = replace(choice, active=self.allowed.active(choice)[0])
        narrow = replace(narrow, window=self.allowed.window(narrow)[0])
        return replace(narrow, micro_batches=self.allowed.micro_batches(narrow)[0])

    def together(self, choice: Choice) -> Choice:
        """All four. Raises ValueError, with numbers, where nothing that the rules allow fits."""
        start = self.smallest(choice)
        if not self.fits(start):
            fewer = self.alone("size", start)
            if fewer is None:
                least = replace(start, size=self.allowed.size(start)[0])
                raise ValueError(refusal(least, self.plan(least), self.limits))
            start = fewer
        found, before = self._most_active(start), None
        while found != before:  # more images allow a wider window, and that more active rows
            before = found
            for name in ("micro_batches", "window", "size", "active"):
                found = self.alone(name, found) or found
        return found

    def _most_active(self, start: Choice) -> Choice:
        """All rows where they fit, else the largest K, with the smallest window that allows it."""
        if None in self.allowed.active(start)[-1:] and self.fits(whole := replace(start, active=None)):
            return whole
        windows = self.allowed.window(start)

        def widest(number: int) -> Choice:
            """With as many rows as a window allows that are not all."""
            wide = replace(start, window=windows[number])
            rows = [one for one in self.allowed.active(wide)[-2:] if one is not None]
            return replace(wide, active=rows[-1]) if rows else wide

        # A wider window allows more rows and takes more itself, so the most rows are in the widest window in which all allowed rows fit,
        # or in the next one.
        full = last_that(len(windows), lambda number: self.fits(widest(number)))
        tried = [0] if full is None else [full, min(full + 1, len(windows) - 1)]
        found = [one for number in tried if (one := self.alone("active", replace(start, window=windows[number])))]
        return max(found, key=lambda choice: choice.active or choice.size)


def last_that(count: int, holds: Callable[[int], bool]) -> int | None:
    """The largest number below `count` of which `holds` is true, as of all before it and of none behind it; None where there is none."""
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return None if low < 0 else low


def needed(plan: Plan) -> dict[str, int]:
    """What a plan takes of each."""
    return {"device": plan.device_peak(), "host": plan.machine_peak(), "disk": plan.disk_bytes()}


def over(plan: Plan, limits: Limits) -> list[str]:
    """The names of the limits that a plan is above."""
    there = limits._asdict()
    return [name for name, count in needed(plan).items() if there[name] is not None and count > there[name]]


def refusal(choice: Choice, plan: Plan, limits: Limits) -> str:
    """Why not even this choice fits, and what would."""
    need, above = needed(plan), over(plan, limits)
    rows = "" if choice.active is None else f"K = {choice.active:,}, "
    # Rounded up, so that what is told is enough.
    gib = {name: f"{-(-need[name] * 100 // GIB) / 100:.2f}" for name in above}
    told = ", ".join(f"{gib[name]} GiB of {name}, and there are {getattr(limits, name) / GIB:.2f}" for name in above)
    libraries = plan.ranks_here * plan.libraries_bytes / GIB
    note = f" ({libraries:.2f} GiB of the host are libraries of {plan.ranks_here} ranks)" if "host" in above else ""
    keys = " and ".join(f"plan.fit.{name}_gib={gib[name]}" for name in above)
    return (
        f"even {rows}W = {choice.window:,}, N = {choice.size:,} in {choice.micro_batches} micro-batches takes {told}{note}; "
        f"it would fit with {keys}, or with fewer ranks on a machine, a smaller schedule.batch or another backbone"
    )
