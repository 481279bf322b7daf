"""The schedule's promises: who is visited when, without memory, without ranks, without history."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.schedule import Feistel, Schedule


@st.composite
def schedules(draw):
    lanes = draw(st.sampled_from([1, 2, 3, 4]))
    block = draw(st.integers(1, 5))
    stripe = lanes * block
    stride = stripe * draw(st.integers(1, 3))
    window = stride * draw(st.integers(1, 4))
    size = draw(st.integers(window + 1, 4 * window + 3))
    shares = [b for b in range(lanes, window + 1, lanes) if window % b == 0]
    reshuffle = -(-size // stripe) // 2 >= window // stripe and draw(st.booleans())
    return Schedule(
        draw(st.integers(0, 2**40)), size, window, stride, draw(st.sampled_from(shares)), block, lanes, reshuffle
    )


def visits_of_window(schedule, window):
    steps = range(window * schedule.steps_per_window, (window + 1) * schedule.steps_per_window)
    places = np.concatenate([schedule.positions(step) for step in steps])
    return places[places >= 0]


@settings(max_examples=80, deadline=None)
@given(schedule=schedules(), window=st.integers(0, 50))
def test_every_position_of_a_window_is_visited_exactly_once_in_it(schedule, window):
    visits = visits_of_window(schedule, window)
    held = [
        p
        for block in schedule.window_blocks(window)
        for p in range(block * schedule.block, min((block + 1) * schedule.block, schedule.size))
    ]
    assert Counter(visits.tolist()) == Counter(held)
    assert len(set(held)) == len(held)


@settings(max_examples=80, deadline=None)
@given(schedule=schedules(), window=st.integers(0, 50))
def test_consecutive_windows_overlap_by_one_minus_stride_over_window(schedule, window):
    now, following = schedule.window_stripes(window), schedule.window_stripes(window + 1)
    slide = schedule.stride // (schedule.block * schedule.lanes)
    np.testing.assert_array_equal(now[slide:], following[: len(now) - slide])
    assert len(now) * schedule.block * schedule.lanes == schedule.window


@settings(max_examples=60, deadline=None)
@given(schedule=schedules(), occurrence=st.integers(0, 200))
def test_every_occurrence_of_a_stripe_lies_in_window_over_stride_windows(schedule, occurrence):
    stripe_positions = schedule.block * schedule.lanes
    slide, length = schedule.stride // stripe_positions, schedule.window // stripe_positions
    occurrence += length  # behind a run's first windows
    holding = [v for v in range(occurrence + 1) if v * slide <= occurrence < v * slide + length]
    assert len(holding) == schedule.window // schedule.stride
    stripes = {int(schedule.window_stripes(v)[occurrence - v * slide]) for v in holding}
    assert len(stripes) == 1


@settings(max_examples=60, deadline=None)
@given(schedule=schedules(), step=st.integers(0, 500))
def test_a_batch_takes_its_share_of_every_lane(schedule, step):
    places = schedule.positions(step).reshape(schedule.lanes, -1)
    for lane, positions in enumerate(places):
        filled = positions[positions >= 0]
        assert (filled // schedule.block % schedule.lanes == lane).all()
        assert (filled < schedule.size).all()


@settings(max_examples=40, deadline=None)
@given(schedule=schedules(), step=st.integers(0, 200))
def test_batches_do_not_depend_on_how_many_ranks_share_them(schedule, step):
    whole = schedule.positions(step).reshape(schedule.lanes, -1)
    for ranks in [r for r in range(1, schedule.lanes + 1) if schedule.lanes % r == 0]:
        parts = {rank: whole[rank::ranks] for rank in range(ranks)}  # rank r works for the lanes l with l mod R = r
        together = np.empty_like(whole)
        for rank, part in parts.items():
            together[rank::ranks] = part
        np.testing.assert_array_equal(together, whole)
        assert all(part.size == schedule.batch // ranks for part in parts.values())


def test_any_step_can_be_asked_for_without_the_ones_before():
    schedule = Schedule(1, 10_000, 1024, 256, 64, 8, 8)
    forward = [schedule.positions(step) for step in range(200)]
    for step in (199, 3, 57, 0, 150):
        np.testing.assert_array_equal(schedule.positions(step), forward[step])


def test_a_trillion_instances_cost_no_memory():
    schedule = Schedule(0, 10**12, 8192, 1024, 256, 64, 8)
    schedule.positions(0)
    tracemalloc.start()
    places = schedule.positions(10**12 // 256 * 5)
    ids = schedule.instances(places)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 * 2**20
    assert ids.max() > 10**11
    np.testing.assert_array_equal(schedule.positions_of(ids), places)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 2000), key=st.integers(0, 2**63))
def test_the_order_is_a_bijection(size, key):
    order = Feistel(key, size)
    there = order.forward(np.arange(size))
    assert np.array_equal(np.sort(there), np.arange(size))
    np.testing.assert_array_equal(order.inverse(there), np.arange(size))


@pytest.mark.parametrize("size", [2**40 + 1, 2**62 - 5])
def test_the_order_is_a_bijection_of_huge_ranges(size):
    order = Feistel(7, size)
    sample = np.random.default_rng(0).integers(0, size, 5000)
    there = order.forward(sample)
    assert ((there >= 0) & (there < size)).all()
    np.testing.assert_array_equal(order.inverse(there), sample)


def test_the_order_looks_random():
    order = Feistel(3, 100_000).forward(np.arange(100_000))
    neighbours = np.abs(np.diff(order))
    assert 0.9 < neighbours.mean() / (100_000 / 3) < 1.1  # two random places are a third of the range apart
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02


def test_two_seeds_and_two_windows_are_shuffled_differently():
    one, other = Schedule(1, 4096, 512, 512, 64, 8, 8, False), Schedule(2, 4096, 512, 512, 64, 8, 8, False)
    assert not np.array_equal(one.positions(0), other.positions(0))
    assert not np.array_equal(one.positions(0) % 512, one.positions(8) % 512)


def test_reshuffled_passes_visit_the_same_stripes_in_another_order():
    schedule = Schedule(5, 4000, 256, 256, 64, 8, 8, True)
    first, second = (schedule._stripe_at(np.arange(schedule.stripes) + schedule.stripes * p) for p in (0, 1))
    assert sorted(first) == sorted(second) == list(range(schedule.stripes))
    assert not np.array_equal(first, second)
    assert first[-1] == second[-1] == schedule.stripes - 1  # the ragged one stays last


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"stride": 300}, "block x lanes"),
        ({"window": 1000}, "stride"),
        ({"batch": 60}, "lanes"),
        ({"batch": 96}, "batch"),
        ({"window": 8192}, "fill only"),
        ({"size": 2000, "window": 1536}, "reshuffle"),
        ({"lanes": 0}, "at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_what_to_change(sizes, words):
    with pytest.raises(ValueError, match=words) as error:
        Schedule(
            **{"seed": 0, "size": 4096, "window": 1024, "stride": 512, "batch": 64, "block": 8, "lanes": 8, **sizes}
        )
    assert len(str(error.value).splitlines()) <= 3
