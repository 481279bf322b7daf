"""Sizes of a run that nobody gave, chosen so that every rule of datasets/size_rules.py holds; and ways out of sizes that do not fit.

    >>> chosen(Asked(batch=256), 6_000)          # up to 131,072 images: one window a pass, all rows active
    Sizes(size=6000, window=6144, stride=6144, batch=256, block=64, lanes=8, reshuffle=True, micro_batches=1, active=None)
    >>> chosen(Asked(batch=256), 10**9)          # more: the paper's window, an eighth of it as stride, half of it as active rows
    Sizes(size=1000000000, window=131072, stride=16384, batch=256, block=1024, lanes=8, reshuffle=True, micro_batches=1, active=65536)

Both questions are one: some sizes are fixed, each other one has a value that is wanted, and what is sought is the first assignment that
breaks no rule, with each free size as near to the wanted one as it can be. For a choice the wanted values are those above. For a way
out they are the user's own, and few sizes are set free: one where that is enough, then two, then all.

What is left out: the best of all assignments. Sizes are set one after the other (lanes, block, window, stride, active rows), each is tried
in the order of its distance, and the search stops at the first that fits.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import combinations, islice

from datasets.size_rules import Sizes

FULL_UP_TO = 131_072  # images: so many rows of 128 numbers, with momentum, are 128 MiB
WINDOW, SLIDES = 131_072, 8  # the paper's window, and the slides after which it has moved on by its length
_LANES, _BLOCK, _LARGE_BLOCK = 8, 64, 1024  # of 128 numbers a row, with momentum, 1,024 rows are a MiB
_FREE = ("stride", "window", "active", "block", "lanes", "batch")  # in the order in which a way out sets them free
_SHOWN = ("window", "stride", "active", "block", "lanes")
_MOST = 2**53  # of a whole number in a config
_TRIED = 24  # values of a size that are tried, the nearest ones


@dataclass(frozen=True)
class Asked:
    """Sizes as a config has them; None is to be chosen. has_rows False: the method keeps no rows, and active stays None."""

    batch: int
    micro_batches: int = 1
    reshuffle: bool = True
    window: int | None = None
    stride: int | None = None
    block: int | None = None
    lanes: int | None = None
    active: int | None = None
    has_rows: bool = True

    def fixed(self) -> dict[str, int]:
        names = ("window", "stride", "block", "lanes", "active", "batch")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def chosen(asked: Asked, size: int) -> Sizes:
    """Sizes for `size` images in which what was asked for stands, and the rest is chosen.

    Raises ValueError, naming the rule that is broken, the values, and the nearest sizes that keep every rule.
    """
    if size < asked.batch:
        way = _one(asked, size, "batch", asked.fixed()) or _others_chosen(asked, size)
        raise ValueError(f"{size} images do not fill one batch ({asked.batch}); set {way}")
    found = next(_fitting(asked, size, asked.fixed(), {}), None)
    if found is None:
        raise ValueError(f"{_reason(asked, size)}; {_way_out(asked, size)}")
    return found


def require(sizes: Sizes) -> None:
    """Raises ValueError where a rule does not hold, with the nearest sizes that keep all."""
    broken = sizes.broken()
    if broken and sizes.below_one():  # the message says what to change
        raise ValueError(broken)
    if broken:
        given = {field.name: getattr(sizes, field.name) for field in fields(sizes) if field.name != "size"}
        raise ValueError(f"{broken}; {_way_out(Asked(**given, has_rows=sizes.active is not None), sizes.size)}")


def chosen_lanes(batch: int, micro_batches: int) -> int:
    """L: as near to 8 as the batch allows. Nothing else enters, so that it is known before the images are counted."""
    return math.gcd(batch // micro_batches, _LANES) if batch % micro_batches == 0 else 1


def _fitting(asked: Asked, size: int, fixed: dict[str, int], wanted: dict[str, int]) -> Iterator[Sizes]:
    """Assignments that keep every rule, the preferred ones first. fixed, wanted: by the names of fields; others are the choice."""
    batch = fixed.get("batch", asked.batch)
    for lanes in _lanes(asked, batch, fixed, wanted):
        for block in _blocks(size, batch, lanes, fixed, wanted):
            base = Sizes(size, 1, 1, batch, block, lanes, asked.reshuffle, asked.micro_batches)
            for window in _windows(base, fixed, wanted):
                for stride in _strides(replace(base, window=window), fixed, wanted):
                    partial = replace(base, window=window, stride=stride)
                    for active in _actives(partial, asked.has_rows, fixed, wanted):
                        sizes = replace(partial, active=active)
                        if sizes.broken() is None:
                            yield sizes


def _lanes(asked: Asked, batch: int, fixed: dict[str, int], wanted: dict[str, int]) -> list[int]:
    if "lanes" in fixed:
        return [fixed["lanes"]]
    if batch % asked.micro_batches:
        return []
    if "lanes" not in wanted:
        return [chosen_lanes(batch, asked.micro_batches)]
    return _nearest(wanted["lanes"], _divisors(batch // asked.micro_batches))


def _blocks(size: int, batch: int, lanes: int, fixed: dict[str, int], wanted: dict[str, int]) -> list[int]:
    """A stride that is fixed allows divisors of itself; else blocks go with the batch: one stripe of them a batch, or whole parts of it."""
    if "block" in fixed:
        return [fixed["block"]]
    near = wanted.get("block", _BLOCK if size <= FULL_UP_TO else _LARGE_BLOCK)
    if "stride" in fixed:
        whole, rest = divmod(fixed["stride"], lanes)
        return [] if rest else _nearest(near, _divisors(whole))
    if "window" in fixed and not {"stride", "block"} & wanted.keys():  # room for so many slides in it
        near = min(near, max(1, fixed["window"] // (SLIDES * lanes)))
    share = max(1, batch // lanes)
    parts = _nearest(near, [share * 2**power for power in range(12)] + _divisors(share))
    full = [block for block in (near, *parts) if 8 * (-size % (block * lanes)) <= size]  # few places stay empty
    return list(dict.fromkeys([*full, share, near, *parts]))


def _windows(base: Sizes, fixed: dict[str, int], wanted: dict[str, int]) -> list[int]:
    if "window" in fixed:
        return [fixed["window"]]
    unit = math.lcm(base.batch, fixed.get("stride", base.stripe))
    whole = [base.positions] if "stride" not in fixed or fixed["stride"] == base.positions else []
    if "window" in wanted:
        return _nearest(wanted["window"], [*_multiples(unit, wanted["window"], base), *whole])
    if base.size <= FULL_UP_TO and "stride" not in {**fixed, **wanted}:
        return [*whole, *(_halvings(unit, base.half) if "block" in fixed else [])]
    rows = fixed.get("active", 0)
    strides = {**wanted, **fixed}.get("stride", 0)
    goal = max(WINDOW, SLIDES * strides, 2 * rows if rows < base.size else 0)
    return [*_halvings(unit, min(goal, base.half if base.reshuffle else base.positions)), *whole]


def _strides(base: Sizes, fixed: dict[str, int], wanted: dict[str, int]) -> list[int]:
    if "stride" in fixed:
        return [fixed["stride"]]
    # The first configs gave window and block, and no stride where that was the window.
    if base.window == base.positions or ({"window", "block"} <= fixed.keys() and "stride" not in wanted):
        return [base.window]
    whole, rest = divmod(base.window, base.stripe)
    near = wanted.get("stride", max(1, base.window // SLIDES))
    return [] if rest else _nearest(near, [base.stripe * part for part in _divisors(whole)])


def _actives(base: Sizes, has_rows: bool, fixed: dict[str, int], wanted: dict[str, int]) -> list[int | None]:
    if not has_rows:
        return [None]
    if "active" in fixed:
        return [fixed["active"]]
    if "active" not in wanted and base.size <= FULL_UP_TO:
        return [None]
    near = wanted.get("active", max(1, base.window // 2))
    low, high = base.batch, base.window // base.lanes * base.lanes
    return [*_nearest(near, {min(max(near // base.lanes * base.lanes + more, low), high) for more in (0, base.lanes)})]


def _reason(asked: Asked, size: int) -> str:
    """The first rule that is broken, and what it names that nobody gave."""
    fixed = asked.fixed()
    lanes = fixed.get("lanes", chosen_lanes(asked.batch, asked.micro_batches))
    block = fixed.get("block", _BLOCK if size <= FULL_UP_TO else _LARGE_BLOCK)
    window = fixed.get("window", fixed.get("stride", 0) or -(-size // (block * lanes)) * block * lanes)
    sizes = Sizes(
        size, window, fixed.get("stride", window), asked.batch, block, lanes, asked.reshuffle, asked.micro_batches
    )
    sizes = replace(sizes, active=asked.active if asked.has_rows else None)
    broken = (
        sizes.broken() or f"schedule: no window and stride go with batch {asked.batch}, block {block} and lanes {lanes}"
    )
    choices = [f"{name} {getattr(sizes, name)}" for name in _SHOWN if name in broken.split() and name not in fixed]
    return f"{broken} (chosen: {', '.join(choices)})" if choices else broken


def _way_out(asked: Asked, size: int) -> str:
    """What to set: the nearest sizes that keep every rule, one size changed where that is enough."""
    given = asked.fixed()
    names = [name for name in _FREE if name in given]
    ways = [way for name in names if (way := _one(asked, size, name, given))]
    if asked.reshuffle and next(_fitting(replace(asked, reshuffle=False), size, given, {}), None):
        ways.append("schedule.reshuffle to false")
    if ways:
        return "set " + ", or ".join(ways[:3])
    for count in range(2, len(names)):
        for free in combinations([name for name in names if name != "batch"], count):
            fixed = {name: value for name, value in given.items() if name not in free}
            wanted = {name: given[name] for name in free}
            if found := next(_fitting(asked, size, fixed, wanted), None):
                return "set " + " and ".join(
                    f"{_key(name)} to {getattr(found, name)}" for name in sorted(free, key=_SHOWN.index)
                )
    return "set " + _others_chosen(asked, size)


def _others_chosen(asked: Asked, size: int) -> str:
    """A batch that does, where the given one does not, and the given sizes that are to be null with it."""
    free = Asked(asked.batch, asked.micro_batches, asked.reshuffle, has_rows=asked.has_rows)
    others = [f"{_key(name)} to null" for name in _SHOWN if getattr(asked, name) is not None]
    if asked.batch <= size and next(_fitting(free, size, {"batch": asked.batch}, {}), None):
        return " and ".join(others)
    batch = _one(free, size, "batch", {"batch": asked.batch})
    if not batch:  # fewer images than micro-batches
        return f"schedule.micro_batches to at most {size}, and schedule.batch to a multiple of it"
    return " and ".join([batch, *others])


def _one(asked: Asked, size: int, name: str, given: dict[str, int]) -> str | None:
    """The nearest values of this size, below and above, with which every rule holds while the others stay."""
    fixed = {key: value for key, value in given.items() if key != name}
    if name == "batch":
        unit = asked.micro_batches * fixed.get("lanes", 1)
        near = [*_around(given[name], unit), size // unit * unit]
        tried = _nearest(given[name], _divisors(fixed["window"]) if "window" in fixed else near)
        found = [
            batch for batch in tried if batch <= size and next(_fitting(asked, size, {**fixed, name: batch}, {}), None)
        ]
    else:
        found = [getattr(sizes, name) for sizes in islice(_fitting(asked, size, fixed, {name: given[name]}), _TRIED)]
    below = max((value for value in found if value <= given[name]), default=None)
    above = min((value for value in found if value > given[name]), default=None)
    values = [str(value) for value in (below, above) if value is not None and value <= _MOST]
    if name == "active" and size <= FULL_UP_TO and next(_fitting(asked, size, fixed, {}), None):
        values.append("null (all rows)")
    return f"{_key(name)} to {' or '.join(values)}" if values else None


def _key(name: str) -> str:
    return f"method.{name}" if name == "active" else f"schedule.{name}"


def _around(value: int, unit: int) -> list[int]:
    return [multiple for multiple in (value // unit * unit, (value // unit + 1) * unit) if multiple]


def _multiples(unit: int, near: int, base: Sizes) -> list[int]:
    """Of `unit`: those around the window that is wanted, and the last ones that the rules allow."""
    return [*_around(near, unit), *(limit // unit * unit for limit in (base.half, base.positions) if limit >= unit)]


def _halvings(unit: int, most: int) -> list[int]:
    """unit x 2^n up to `most`, the largest first."""
    return [unit * 2**power for power in reversed(range((most // unit).bit_length()))]


def _nearest(wanted: int, values: Iterable[int]) -> list[int]:
    """The values in the order of their ratio to the one that is wanted."""
    return sorted(
        {value for value in values if value >= 1}, key=lambda value: (max(value / wanted, wanted / value), value)
    )[:_TRIED]


def _divisors(number: int) -> list[int]:
    """All of them, but of a factor that has no divisor under a million only 1 and itself."""
    divisors, rest, prime = [1], number, 2
    while prime * prime <= rest and prime < 10**6:
        power, new = 1, []
        while rest % prime == 0:
            rest, power = rest // prime, power * prime
            new += [divisor * power for divisor in divisors]
        divisors += new
        prime += 1
    return divisors if rest == 1 else divisors + [divisor * rest for divisor in divisors]
