"""Sizes that nobody gave keep every rule; sizes that do not fit are refused together with sizes that do."""

import re
from dataclasses import fields, replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.schedule import Schedule
from datasets.size_choice import FULL_UP_TO, Asked, chosen, chosen_lanes, require
from datasets.size_rules import Sizes

TINY = Asked(batch=64, window=640, stride=320, block=16, lanes=4)
COUNTS = st.one_of(st.integers(1, 3000), st.integers(1, 2 * FULL_UP_TO), st.integers(1, 10**12))


def rules_that_are_broken(sizes: Sizes) -> list[str]:
    """The rules once more, each in a line of its own."""
    stripe, stripes = sizes.block * sizes.lanes, -(-sizes.size // (sizes.block * sizes.lanes))
    whole = sizes.window == sizes.stride == stripes * stripe
    active = sizes.size if sizes.active is None else sizes.active
    rules = {
        "A L | G": sizes.batch % (sizes.micro_batches * sizes.lanes) == 0,
        "C L | S": sizes.stride % stripe == 0,
        "S | W": sizes.window % sizes.stride == 0,
        "G | W": sizes.window % sizes.batch == 0,
        "W <= pass": sizes.window <= stripes * stripe,
        "W <= half": not sizes.reshuffle or whole or sizes.window <= stripes // 2 * stripe,
        "L | K": active >= sizes.size or active % sizes.lanes == 0,
        "G <= K <= W": active >= sizes.size or sizes.batch <= active <= sizes.window,
        "at least 1": min(sizes.window, sizes.stride, sizes.block, sizes.lanes, active) >= 1,
    }
    return [name for name, holds in rules.items() if not holds]


@settings(max_examples=1000, deadline=None)
@given(COUNTS, st.integers(1, 8192), st.integers(1, 8), st.booleans(), st.booleans())
def test_sizes_that_nobody_gave_keep_every_rule_for_any_number_of_images(
    size, per_part, micro_batches, reshuffle, has_rows
):
    batch = per_part * micro_batches
    asked = Asked(batch=batch, micro_batches=micro_batches, reshuffle=reshuffle, has_rows=has_rows)
    if size < batch:
        with pytest.raises(ValueError, match=f"^{size} images do not fill one batch"):
            chosen(asked, size)
        return
    sizes = chosen(asked, size)
    assert (sizes.size, sizes.batch, sizes.micro_batches) == (size, batch, micro_batches)
    assert rules_that_are_broken(sizes) == []
    assert sizes.broken() is None
    assert sizes.lanes == chosen_lanes(batch, micro_batches)
    if size <= FULL_UP_TO:
        assert sizes.active is None
        assert sizes.window == sizes.stride == sizes.positions < size + max(size // 8 + 1, batch)
    else:
        assert sizes.active is None or sizes.active <= sizes.window
        assert sizes.window <= max(2**17, 2 * batch) or sizes.window == sizes.positions
    Schedule(0, size, sizes.window, sizes.stride, batch, sizes.block, sizes.lanes, reshuffle)


@st.composite
def askings(draw):
    """Some sizes given, near such as fit or not, the others null."""
    lanes = draw(st.integers(1, 8))
    batch = draw(st.sampled_from([lanes, 2 * lanes, 4 * lanes, 3 * lanes + 1, 64]))
    block = draw(st.integers(1, 12))
    stripe = block * lanes
    near = st.one_of(st.integers(1, 400), st.integers(1, 12).map(lambda count: count * stripe))
    given_sizes = {
        "window": draw(near),
        "stride": draw(near),
        "block": block,
        "lanes": lanes,
        "active": draw(st.one_of(st.integers(1, 400), st.integers(1, 60).map(lambda count: count * lanes))),
    }
    kept = draw(st.sets(st.sampled_from(sorted(given_sizes))))
    return Asked(
        batch=batch,
        micro_batches=draw(st.sampled_from([1, 1, 2, 7])),
        reshuffle=draw(st.booleans()),
        **{name: value for name, value in given_sizes.items() if name in kept},
    )


WORDS = {"false": False, "null": None, "null (all rows)": None}


def ways_of(message):
    """Of `set a to 1 or 2, or b to 3 and c to 4`: each way as {name: value}."""
    for way in message.partition("; set ")[2].split(", or "):
        parts = [re.fullmatch(r"(?:schedule|method)\.(\w+) to (.+)", part).groups() for part in way.split(" and ")]
        if len(parts) > 1:
            choices = [
                [(name, WORDS[value] if value in WORDS else int(value)) for value in values.split(" or ")]
                for name, values in parts
            ]
            yield from map(dict, product(*choices))
            continue
        ((name, values),) = parts
        for value in values.split(" or "):
            yield {name: WORDS[value] if value in WORDS else int(value)}


@settings(max_examples=1000, deadline=None)
@given(askings(), COUNTS)
def test_what_was_given_stands_and_every_way_out_that_is_named_keeps_every_rule(asked, size):
    try:
        sizes = chosen(asked, size)
    except ValueError as error:
        message = str(error)
    else:
        assert rules_that_are_broken(sizes) == []
        assert {name: getattr(sizes, name) for name in asked.fixed()} == asked.fixed()
        return
    if "micro_batches to at most" in message:
        assert size < asked.micro_batches
        return
    for way in ways_of(message):
        found = chosen(replace(asked, **way), size)
        assert rules_that_are_broken(found) == [], (message, way)


@settings(max_examples=300, deadline=None)
@given(askings(), COUNTS)
def test_leaving_all_to_be_chosen_is_a_way_out_wherever_the_batch_fits(asked, size):
    lanes = chosen_lanes(asked.batch, asked.micro_batches)
    if size >= asked.batch and asked.batch % (asked.micro_batches * lanes) == 0:
        none = dict.fromkeys(("window", "stride", "block", "lanes", "active"))
        assert rules_that_are_broken(chosen(replace(asked, **none), size)) == []


@pytest.mark.parametrize(
    ("change", "size", "way"),
    [
        ({"window": 700}, 1437, "set schedule.window to 640"),
        ({"stride": 300}, 1437, "set schedule.stride to 128 or 320"),
        ({"window": 1280}, 1437, "set schedule.window to 640, or schedule.reshuffle to false"),
        ({"batch": 66}, 1437, "set schedule.batch to 64 or 80"),
        ({}, 100, "set schedule.window to 128 and schedule.stride to 128"),
        ({"active": 130}, 1437, "set method.active to 128 or 132 or null (all rows), or schedule.lanes to 2"),
        ({"active": 768}, 1437, "set method.active to 640 or null (all rows)"),
        (
            {"batch": 60, "block": 12, "lanes": 5, "window": 2048, "stride": 1024},
            10_000,
            "set schedule.window to 2040 and schedule.stride to 1020",
        ),
    ],
)
def test_for_instance(change, size, way):
    with pytest.raises(ValueError, match=r"^(schedule: |schedule\.lanes|method\.active)") as caught:
        chosen(replace(TINY, **change), size)
    assert str(caught.value).endswith(f"; {way}")


def test_a_window_of_old_configs_is_a_whole_pass_with_all_rows_up_to_the_limit():
    for size in (600 * 8, 43_523, FULL_UP_TO):
        sizes = chosen(Asked(batch=256), size)
        assert (sizes.block, sizes.lanes, sizes.active) == (64, 8, None)
        assert sizes.window == sizes.stride == -(-size // 512) * 512
    assert chosen(Asked(batch=256, window=4096, block=64, lanes=8), 43_523).stride == 4096


@pytest.mark.parametrize(("size", "window"), [(301, 128), (1505, 512), (4300, 2048), (200_000, 16_384)])
def test_a_window_that_alone_is_given_slides_by_an_eighth_and_such_a_run_may_grow(size, window):
    sizes = chosen(Asked(batch=64, window=window, active=window // 2), size)
    assert (sizes.window, sizes.stride, sizes.active) == (window, window // 8, window // 2)
    schedule = Schedule(0, size, sizes.window, sizes.stride, sizes.batch, sizes.block, sizes.lanes)
    assert schedule.grown(100, step=10).size == size + 100


def test_a_schedule_keeps_these_rules():
    with pytest.raises(ValueError, match=r"set schedule\.stride to 128 or 320"):
        Schedule(0, 1437, 640, 300, 64, 16, 4)


@pytest.mark.parametrize("field", [field.name for field in fields(Sizes) if field.name not in ("reshuffle", "active")])
def test_a_size_below_one_is_refused(field):
    sizes = Sizes(1437, 640, 320, 64, 16, 4, True)
    with pytest.raises(ValueError, match=f"schedule: {field} is 0; it must be at least 1"):
        require(replace(sizes, **{field: 0}))
