"""Sizes that a config leaves to be chosen: numbers for a run that starts, and those of its first start for a run that goes on.

Lanes follow from the batch alone, since the ranks share them out before the images are counted.
"""

from typing import Any

from configs import schema
from configs.earlier import translated
from datasets.size_choice import Asked, chosen, chosen_lanes

_OF_SCHEDULE = ("window", "stride", "block")
_EARLIER_BLOCK = 64  # of checkpoints that do not say


def lanes_of(config: schema.Config) -> int:
    """L, given or chosen."""
    return config.schedule.lanes or chosen_lanes(config.schedule.batch, config.schedule.micro_batches)


def sized(config: schema.Config, size: int) -> schema.Config:
    """The config of a run of `size` images, with a number for each size; method.active stays null where all rows are active.

    Raises ValueError, as datasets.size_choice.chosen does, where the sizes that it gives do not fit.
    """
    schedule = config.schedule
    has_rows = config.method.has_rows
    found = chosen(
        Asked(
            batch=schedule.batch,
            micro_batches=schedule.micro_batches,
            reshuffle=schedule.reshuffle,
            window=schedule.window,
            stride=schedule.stride,
            block=schedule.block,
            lanes=schedule.lanes,
            active=config.rows.active if has_rows else None,
            has_rows=has_rows,
        ),
        size,
    )
    names = (*_OF_SCHEDULE, "lanes", *(["active"] if has_rows else []))
    return config.with_sizes({name: getattr(found, name) for name in names})


def sized_as(config: schema.Config, saved: dict[str, Any]) -> schema.Config:
    """The config of a run that goes on: what it leaves to be chosen is as in `saved`, the config of the checkpoint.

    Checkpoints of earlier versions have null where a window is a whole pass, and where all rows are active.
    """
    try:
        saved = translated(saved)
    except ValueError:  # which is told where the two are compared
        return config
    sizes: dict[str, int | None] = {"lanes": lanes_of(config)}
    places = [("schedule", name, getattr(config.schedule, name)) for name in _OF_SCHEDULE]
    places += [("method", "active", config.rows.active)] if config.method.has_rows else []
    for section, name, given in places:
        values = saved.get(section)
        before = values.get(name) if isinstance(values, dict) else None
        is_size = type(before) is int and before >= 1
        if given is None:
            sizes[name] = before if is_size else _EARLIER_BLOCK if name == "block" else None
    return config.with_sizes(sizes)


def choice_in_words(given: schema.Config, config: schema.Config) -> str:
    """What was chosen, as the words that would give it; empty where nothing was left to be chosen."""
    words = [
        f"schedule.{name}={getattr(config.schedule, name)}"
        for name in (*_OF_SCHEDULE, "lanes")
        if getattr(given.schedule, name) is None
    ]
    if given.method.has_rows and given.rows.active is None:
        words.append("method.active=" + ("null (all rows)" if config.rows.active is None else str(config.rows.active)))
    return "sizes that were chosen: " + " ".join(words) if words else ""
