"""The largest sizes that fit: the answer does, the next larger one does not, and what cannot work is refused with numbers."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.size_rules import Sizes
from engine.planning.components import DEVICE, DISK, HOST, Component, Plan, plan_of
from engine.planning.fit import Allowed, Choice, Limits, Question, last_that, refusal

BATCH, LANES, STRIDE, BLOCK = 32, 4, 64, 8
STRIPE = BLOCK * LANES
MOST = 200_000


def plan(choice: Choice) -> Plan:
    active = choice.active or choice.size
    parts = [
        Component(DEVICE, "rows", 1000 * active + 50_000 * BATCH // choice.micro_batches),
        Component(HOST, "window", 700 * choice.window),
        Component(DISK, "stored", 500 * choice.size),
    ]
    return plan_of(parts, libraries_bytes=10_000, ranks=2, ranks_here=2, device_is_host=False)


def sizes(choice: Choice) -> Sizes:
    return Sizes(choice.size, choice.window, STRIDE, BATCH, BLOCK, LANES, True, choice.micro_batches, choice.active)


ALLOWED = Allowed(
    active=lambda choice: [*range(BATCH, min(choice.window, choice.size - 1) + 1, LANES), None],
    window=lambda choice: range(-(-(choice.active or 1) // STRIDE) * STRIDE, sizes(choice).half + 1, STRIDE),
    micro_batches=lambda choice: [8, 4, 2, 1],
    size=lambda choice: range(2 * choice.window - STRIPE + 1, MOST + 1),
)


@given(
    device=st.integers(100_000, 30_000_000),
    host=st.integers(100_000, 30_000_000),
    disk=st.integers(100_000, 60_000_000),
)
def test_together_fits_keeps_every_rule_and_no_size_can_be_raised_alone(device: int, host: int, disk: int) -> None:
    question = Question(plan, ALLOWED, Limits(device, host, disk))
    if not question.fits(Choice(2 * STRIDE - STRIPE + 1, STRIDE, BATCH, 8)):
        with pytest.raises(ValueError, match="GiB"):
            question.together(Choice(20_000, 1024, 256, 2))
        return
    found = question.together(Choice(20_000, 1024, 256, 2))
    assert question.fits(found) and sizes(found).broken() is None
    for name in Allowed._fields:
        values = list(getattr(ALLOWED, name)(found))
        place = values.index(getattr(found, name))
        if place + 1 < len(values):
            assert not question.fits(replace(found, **{name: values[place + 1]})), name


@given(device=st.integers(100_000, 3_000_000), host=st.integers(100_000, 3_000_000))
def test_together_has_the_most_active_rows_that_any_window_allows(device: int, host: int) -> None:
    question = Question(plan, ALLOWED, Limits(device, host, 500 * 4000))
    start = question.smallest(Choice(4000, 1024, 256, 2))
    if not question.fits(start):
        return
    every = [question.alone("active", replace(start, window=window)) for window in ALLOWED.window(start)]
    most = max(one.active or one.size for one in every if one)
    found = question.together(Choice(4000, 1024, 256, 2))
    assert (found.active or found.size) >= most


@given(name=st.sampled_from(Allowed._fields), limit=st.integers(1_000, 100_000_000))
def test_a_size_alone_fits_and_the_next_larger_does_not(name: str, limit: int) -> None:
    question = Question(plan, ALLOWED, Limits(limit, limit, limit))
    start = Choice(20_000, 1024, 256, 2)
    values = list(getattr(ALLOWED, name)(start))
    found = question.alone(name, start)
    if found is None:
        assert not question.fits(replace(start, **{name: values[0]}))
        return
    assert question.fits(found) and replace(found, **{name: getattr(start, name)}) == start
    place = values.index(getattr(found, name))
    assert place + 1 == len(values) or not question.fits(replace(start, **{name: values[place + 1]}))


@given(count=st.integers(0, 200), bound=st.integers(-5, 205))
def test_the_last_number_that_holds_is_found(count: int, bound: int) -> None:
    expected = min(bound, count) - 1
    assert last_that(count, lambda number: number < bound) == (None if expected < 0 else expected)


def test_a_refusal_tells_what_there_is_what_is_needed_and_how_much_of_it_are_libraries() -> None:
    choice = Choice(20_000, 1024, 256, 2)
    tight = Limits(None, 2**20, None)
    text = refusal(choice, plan(choice), tight)
    assert "K = 256, W = 1,024, N = 20,000" in text and "libraries of 2 ranks" in text
    assert "plan.fit.host_gib=0.01" in text and "device" not in text


def test_what_a_refusal_proposes_does_fit() -> None:
    least = Choice(2 * STRIDE - STRIPE + 1, STRIDE, BATCH, 8)
    with pytest.raises(ValueError, match=r"plan\.fit\.disk_gib=0\.01"):
        Question(plan, ALLOWED, Limits(None, None, 1000)).together(least)
    assert Question(plan, ALLOWED, Limits(None, None, int(0.01 * 2**30))).together(least)
