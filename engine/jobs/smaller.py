"""Changes of a config that would make its run smaller, each planned: for job=profile, should memory end."""

from collections.abc import Iterator
from dataclasses import replace

from configs import schema
from datasets.schedule import Schedule
from engine.jobs.plan import allowed_sizes, choice_of, planner, stride_of
from engine.jobs.planned import Facts, planned, zero_stage
from engine.planning.components import Plan
from engine.planning.fit import Choice
from engine.profiling.changes import Change

_FEWER_NEGATIVES = "half of the negatives"


def smaller(config: schema.Config, schedule: Schedule, facts: Facts) -> list[Change]:
    """Those that save something, in the order of what they cost the user. config: with a number for each size."""
    base = planned(config, schedule, facts)
    found = [
        _change(words, cost, base, planned(_with(config, words), schedule, facts))
        for words, cost in _settings(config, facts)
    ]
    if config.method.has_rows:
        plan = planner(config, schedule, facts)
        found += [_change(words, cost, base, plan(choice)) for words, cost, choice in _sizes(config, schedule)]
    return [change for change in found if any(count > 0 for count in change.saved.values())]


def _with(config: schema.Config, words: str) -> schema.Config:
    return schema.with_words(config, words.split())


def _change(words: str, cost: str, base: Plan, plan: Plan) -> Change:
    device = base.device_peak() - plan.device_peak()
    return Change(words, cost, {"device": device, "host": base.machine_peak() - plan.machine_peak()})


def _settings(config: schema.Config, facts: Facts) -> Iterator[tuple[str, str]]:
    """(words, cost) of what does not change the order of visits."""
    each = config.schedule.batch // (config.schedule.lanes or 1)
    workers, limit = config.data.workers, config.evaluate.limit
    if config.method.has_rows and config.store.kind == "memory":
        yield "store.kind=zarr", "rows are written to the disk"
    if config.data.cache:
        yield "data.cache=false", "images are decoded in every pass"
    if workers > 1:
        yield f"data.workers={workers // 2}", "images may come later"
    if facts.network and limit > 1000:
        yield f"evaluate.limit={max(1000, limit // 4)}", "the evaluation has fewer images"
    if facts.network and facts.ranks > 1 and zero_stage(config) < 2:
        yield "deepspeed.zero_optimization.stage=2", "gradients travel in another way"
    micro_batches = config.schedule.micro_batches
    may_split = not config.method.has_rows or config.rows.init != "feature"
    if facts.network and may_split and each % (2 * micro_batches) == 0:
        yield f"schedule.micro_batches={2 * micro_batches}", "batch statistics are over half as many images"


def _sizes(config: schema.Config, schedule: Schedule) -> Iterator[tuple[str, str, Choice]]:
    """(words, cost, choice) of smaller K and W, by the rules of the sizes."""
    now, allowed = choice_of(config, schedule), allowed_sizes(config, schedule)
    windows = [window for window in _halves(now.window) if window in allowed.window(now)]
    if windows and now.active is not None:
        yield _order(schedule, windows[0]), "a window of half the length", replace(now, window=windows[0])
    rows = now.active or now.size
    actives = [active for active in _halves(rows // schedule.lanes * schedule.lanes) if active in allowed.active(now)]
    if actives:
        fewer = replace(now, active=actives[0])
        yield f"method.active={actives[0]} {_order(schedule, now.window)}", _FEWER_NEGATIVES, fewer
        windows = [window for window in _halves(now.window) if window in allowed.window(fewer)]
        if windows:
            words = f"method.active={actives[0]} {_order(schedule, windows[0])}"
            yield words, f"{_FEWER_NEGATIVES}, and a window of half the length", replace(fewer, window=windows[0])


def _order(schedule: Schedule, window: int) -> str:
    """A window in words, with what a config may leave to be chosen: with another window others would be."""
    stride = stride_of(schedule, window)
    return f"schedule.window={window} schedule.stride={stride} schedule.block={schedule.block} schedule.lanes={schedule.lanes}"


def _halves(size: int) -> list[int]:
    """Half of it, and what lies a little above: the first that a rule allows is taken."""
    return [size // 2 + more for more in range(size // 2 // 2)]
