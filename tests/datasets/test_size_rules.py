"""Sizes that do not fit are refused together with sizes that keep every rule."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.schedule import Schedule
from datasets.size_rules import Sizes

TINY = Sizes(size=1437, window=640, stride=320, batch=64, block=16, lanes=4, reshuffle=True)


@st.composite
def sizes(draw):
    block, lanes = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    batch = draw(st.sampled_from([lanes, 2 * lanes, 4 * lanes, 3 * lanes + 1]))
    stripe = block * lanes
    return Sizes(
        draw(st.one_of(st.integers(1, 3000), st.integers(1, 10**12))),
        draw(st.one_of(st.integers(1, 400), st.integers(1, 12).map(lambda n: n * stripe))),
        draw(st.one_of(st.integers(1, 400), st.integers(1, 6).map(lambda n: n * stripe))),
        batch,
        block,
        lanes,
        draw(st.booleans()),
    )


@settings(max_examples=500, deadline=None)
@given(sizes())
def test_every_way_out_that_is_named_keeps_every_rule(given):
    if given.broken() is None:
        return
    with pytest.raises(ValueError, match="schedule: ") as told:
        given.require()
    way = str(told.value).partition("; ")[2]
    if "too few" in way:
        assert all(replace(given, window=w, stride=w).broken() for w in range(1, min(given.positions, 3000) + 1))
        return
    for one in way.removeprefix("set ").split(", or "):
        names, _, values = one.partition(" to ")
        for value in values.split(" or "):
            keys = {name.strip().removeprefix("schedule."): value for name in names.split(" and ")}
            if "batch" in keys:  # whether the window still fits is said next
                assert int(value) % given.lanes == 0
                continue
            wanted = {key: False if value == "false" else int(value) for key, value in keys.items()}
            assert replace(given, **wanted).broken() is None, (given, one)


@pytest.mark.parametrize(
    ("change", "way"),
    [
        ({"window": 700}, "set schedule.window to 640"),
        ({"stride": 300}, "set schedule.stride to 128 or 320"),
        ({"window": 1280}, "set schedule.window to 640, or schedule.reshuffle to false"),
        ({"batch": 66}, "set schedule.batch to 64 or 68"),
        ({"size": 100}, "set schedule.window and schedule.stride to 128"),
    ],
)
def test_for_instance(change, way):
    with pytest.raises(ValueError, match="schedule: ") as told:
        replace(TINY, **change).require()
    assert str(told.value).endswith(f"; {way}")


def test_a_schedule_keeps_these_rules():
    with pytest.raises(ValueError, match=r"set schedule\.stride to 128 or 320"):
        Schedule(0, 1437, 640, 300, 64, 16, 4)
