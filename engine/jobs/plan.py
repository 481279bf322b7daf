"""job=plan: what a run would take, and the largest sizes that fit into what there is. Nothing is trained, and nothing is locked.

The plan is printed and not written: a run writes its own, plan.json, when it starts.
`plan.fit` asks for the largest K, micro-batch, W and N, each alone and all together (engine/planning/fit.py). Images are opened as at a
start, but for N alone they are not asked again: an answer for another N goes by those that were looked at.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from configs import schema
from datasets.batch import Probe
from datasets.schedule import Schedule
from datasets.size_rules import Sizes
from datasets.source import Source
from engine.jobs import sizes
from engine.jobs.chosen_sizes import choice_in_words, lanes_of
from engine.jobs.data import open_data, open_probe
from engine.jobs.imports import import_early, import_late
from engine.jobs.planned import Facts, disk_traffic, facts_of, planned
from engine.planning.components import Plan
from engine.planning.fit import GIB, Allowed, Choice, Limits, Question, needed, over, refusal
from engine.planning.resident import Libraries
from engine.planning.text import plan_text, traffic_text

_MOST_IMAGES = 10**12
_NAMES = {"active": "K", "micro_batches": "micro-batch", "window": "W", "size": "N"}


def run(config: schema.Config, options: argparse.Namespace) -> int:
    """Print the plan, and the answers; returns the exit code."""
    asked = config.plan
    check_ranks(config)
    libraries = Libraries()
    with libraries.importing():
        import_early(config)
        import_late(config)
    source, augmentation, schedule, sized = open_data(config, None)
    sizes.check_shrink(sized, schedule, sizes.total_steps(sized, schedule))
    probe = open_probe(sized, source, augmentation)
    facts = run_facts(sized, source, probe, libraries.bytes)
    plan = planned(sized, schedule, facts)
    print(f"{len(source):,} images of {source.name}; {sizes.end_of(sized, schedule):,} steps of {schedule.batch}")
    for note in [choice_in_words(config, sized), *source.notes]:
        if note:
            print(note)
    print(plan_text(plan))
    print(traffic_text(disk_traffic(sized, schedule, facts), sizes.end_of(sized, schedule), asked.step_seconds))
    limits = limits_of(asked.fit)
    if limits != Limits(None, None, None):
        print("\n".join(answers(sized, schedule, facts, limits, left_to_choose(config))))
    return 0


def check_ranks(config: schema.Config) -> None:
    """ValueError where the ranks that are planned for cannot run the config."""
    asked = config.plan
    lanes = lanes_of(config)
    if lanes % asked.ranks:
        raise ValueError(
            f"plan.ranks is {asked.ranks}, which does not divide schedule.lanes ({lanes}); set one of them"
        )
    if asked.ranks % asked.machines:
        raise ValueError(f"plan.machines is {asked.machines}, which does not divide plan.ranks ({asked.ranks})")


def run_facts(config: schema.Config, source: Source, probe: Probe | None, libraries_bytes: int) -> Facts:
    """A GPU is planned for where there is one, or where the memory of one is given."""
    asked = config.plan
    on_gpu = asked.fit.device_gib is not None or torch.cuda.is_available()
    return facts_of(
        config,
        source,
        probe,
        ranks=asked.ranks,
        ranks_here=asked.ranks // asked.machines,
        device="cuda" if on_gpu else "cpu",
        libraries_bytes=libraries_bytes,
    )


def limits_of(fit: schema.Fit) -> Limits:
    """In bytes."""
    given = (fit.device_gib, fit.host_gib, fit.disk_gib)
    return Limits(*(None if gib is None else int(gib * GIB) for gib in given))


def left_to_choose(config: schema.Config) -> list[str]:
    """The sizes that a config leaves to be chosen. An answer has to give them: with another window, say, others would be chosen."""
    left = [name for name in ("window", "stride", "block", "lanes") if getattr(config.schedule, name) is None]
    return left + ["active"] * (config.method.has_rows and config.rows.active is None)


def answers(
    config: schema.Config, schedule: Schedule, facts: Facts, limits: Limits, left: Sequence[str] = ()
) -> list[str]:
    """Lines for people. config: with a number for each size; left: those that were left to be chosen. ValueError where nothing fits."""
    # More steps may be added later; and a run of few steps would visit fewer rows, the wider its window is.
    facts = replace(facts, all_visited=True)
    question = Question(planner(config, schedule, facts), allowed_sizes(config, schedule), limits)
    start = choice_of(config, schedule)
    plan = question.plan(start)
    above = over(plan, limits)
    lines = [f"as configured, once all rows were visited: {'does not fit: ' + ', '.join(above) if above else 'fits'}"]
    asked = [name for name in _NAMES if name != "active" or config.method.has_rows]
    for name in asked:
        word = _NAMES[name]
        found = question.alone(name, start)
        if found is None:
            least = replace(start, **{name: getattr(question.allowed, name)(start)[0]})
            lines.append(f"{word} alone: none fits; {refusal(least, question.plan(least), limits)}")
        else:
            lines.append(f"{word} alone: {_words(found, [name], schedule, left)}")
    together = question.together(start)
    lines.append(f"together: {_words(together, asked, schedule, left)}")
    need = question.plan(together)
    gib = [f"{count / GIB:.2f} GiB of {name}" for name, count in needed(need).items()]
    lines.append(f"  which takes {', '.join(gib)}")
    return lines


def choice_of(config: schema.Config, schedule: Schedule) -> Choice:
    """The configured one."""
    active = None if not config.method.has_rows or sizes.is_full(config, schedule) else config.rows.active
    return Choice(schedule.size, schedule.window, active, config.schedule.micro_batches)


def planner(config: schema.Config, schedule: Schedule, facts: Facts) -> Callable[[Choice], Plan]:
    """Choice -> Plan."""

    def plan(choice: Choice) -> Plan:
        changed = config.with_sizes({"window": choice.window, "active": choice.active})
        changed = changed.model_copy(
            update={"schedule": changed.schedule.model_copy(update={"micro_batches": choice.micro_batches})}
        )
        order = Schedule(
            seed=config.seed,
            size=choice.size,
            window=choice.window,
            stride=stride_of(schedule, choice.window),
            batch=schedule.batch,
            block=schedule.block,
            lanes=schedule.lanes,
            reshuffle=schedule.reshuffle,
        )
        return planned(changed, order, facts)

    return plan


def stride_of(schedule: Schedule, window: int) -> int:
    """Of a window that is a whole pass, and slides by itself, the window; else as configured."""
    return window if schedule.stride == schedule.window else schedule.stride


def allowed_sizes(config: schema.Config, schedule: Schedule) -> Allowed:
    """By the rules of datasets/size_rules.py, with stride, batch, block and lanes as configured."""
    whole = schedule.stride == schedule.window  # a window that moves on by its own length

    def sizes_of(choice: Choice) -> Sizes:
        return Sizes(
            size=choice.size,
            window=choice.window,
            stride=stride_of(schedule, choice.window),
            batch=schedule.batch,
            block=schedule.block,
            lanes=schedule.lanes,
            reshuffle=schedule.reshuffle,
            micro_batches=choice.micro_batches,
            active=choice.active,
        )

    def actives(choice: Choice) -> Sequence[int | None]:
        lanes = schedule.lanes
        first = -(-schedule.batch // lanes) * lanes
        some = range(first, min(choice.window, choice.size - 1) // lanes * lanes + 1, lanes)
        return _Joined(some, None) if config.method.has_rows else [None]

    def windows(choice: Choice) -> Sequence[int]:
        at = sizes_of(choice)
        unit = math.lcm(schedule.batch, at.stripe if whole else schedule.stride)
        least = max(choice.active or 1, unit)
        most = at.half if schedule.reshuffle else at.positions
        found = range(-(-least // unit) * unit, most + 1, unit)
        if whole and at.positions % schedule.batch == 0 and at.positions not in found:
            return _Joined(found, at.positions)
        return found or [choice.window]

    def micro_batches(choice: Choice) -> Sequence[int]:
        each = schedule.batch // schedule.lanes
        if config.method.has_rows and config.rows.init == "feature":
            return [1]  # needs the features of a whole batch
        return [count for count in range(each, 0, -1) if each % count == 0]

    def image_counts(choice: Choice) -> Sequence[int]:
        at = sizes_of(choice)
        if whole and choice.window == sizes_of(replace(choice, size=schedule.size)).positions:
            return range(max(1, choice.window - at.stripe + 1), choice.window + 1)  # the window is a whole pass
        # The last stripe of a pass, or of its half, may be a ragged one.
        least = (2 if schedule.reshuffle else 1) * choice.window - at.stripe + 1
        return range(max(least, (choice.active or 0) + 1), _MOST_IMAGES + 1)

    return Allowed(actives, windows, micro_batches, image_counts)


class _Joined(Sequence[Any]):
    """A range and one value behind it, without a list of all."""

    def __init__(self, some: range, last: int | None) -> None:
        self.some, self.last = some, last

    def __len__(self) -> int:
        return len(self.some) + 1

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        number += len(self) if number < 0 else 0
        if number >= len(self):
            raise IndexError(number)
        return self.some[number] if number < len(self.some) else self.last


def _words(choice: Choice, names: Sequence[str], schedule: Schedule, left: Sequence[str]) -> str:
    """The keys that give it: the sizes `names` that were looked for, and those that were left to be chosen."""
    stride, is_whole = stride_of(schedule, choice.window), schedule.stride == schedule.window != choice.window
    words = {
        "active": f"method.active={choice.size if choice.active is None else choice.active}"
        + (" (all rows)" if choice.active is None else ""),
        "micro_batches": f"schedule.micro_batches={choice.micro_batches} (micro-batches of {schedule.batch // choice.micro_batches:,})",
        "window": f"schedule.window={choice.window}"
        + f" schedule.stride={stride}" * ("stride" not in left and is_whole),
        "stride": f"schedule.stride={stride}",
        "block": f"schedule.block={schedule.block}",
        "lanes": f"schedule.lanes={schedule.lanes}",
        "size": f"{choice.size:,} images (data.limit={choice.size} for synthetic ones)",
    }
    return " ".join(words[name] for name in dict.fromkeys((*names, *left)))
