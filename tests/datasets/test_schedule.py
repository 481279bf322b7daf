"""The schedule's promises: who is visited when, without memory, without ranks, without history."""

import hashlib
import json
import tracemalloc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.schedule import Feistel, Schedule, Segment
from tests.datasets.schedule_inverse import inverse, positions_of


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


@st.composite
def grown_schedules(draw):
    """Appended to one to three times, at steps that do not decrease: twice in one pass, passes apart, and at once."""
    schedule, step = draw(schedules()), 0
    if schedule.size >= 2 * schedule.window:
        schedule = replace(schedule, reshuffle=True)  # `schedules` alone draws it too seldom
    for _ in range(draw(st.integers(1, 3))):
        step += draw(st.one_of(st.integers(0, 10), st.integers(0, int(3 * schedule.steps_per_pass))))
        schedule = schedule.grown(draw(st.integers(1, schedule.window + 3)), step)
    return schedule


def all_schedules():
    return st.one_of(schedules(), grown_schedules())


def visits_of_window(schedule, window):
    steps = range(window * schedule.steps_per_window, (window + 1) * schedule.steps_per_window)
    places = np.concatenate([schedule.positions(step) for step in steps])
    return places[places >= 0]


@settings(max_examples=80, deadline=None)
@given(schedule=all_schedules(), window=st.integers(0, 50))
def test_every_position_of_a_window_is_visited_exactly_once_in_it(schedule, window):
    visits = visits_of_window(schedule, window)
    blocks = [schedule.block * block + np.arange(schedule.block) for block in schedule.window_blocks(window)]
    filled = [block[schedule.instances(block) >= 0].tolist() for block in blocks]
    assert all(filled)
    held = [p for positions in filled for p in positions]
    assert Counter(visits.tolist()) == Counter(held)
    assert len(set(held)) == len(held)


@settings(max_examples=80, deadline=None)
@given(schedule=all_schedules(), window=st.integers(0, 50))
def test_consecutive_windows_overlap_by_one_minus_stride_over_window(schedule, window):
    now, following = schedule.window_stripes(window), schedule.window_stripes(window + 1)
    slide = schedule.stride // (schedule.block * schedule.lanes)
    np.testing.assert_array_equal(now[slide:], following[: len(now) - slide])
    assert len(now) * schedule.block * schedule.lanes == schedule.window


@settings(max_examples=60, deadline=None)
@given(schedule=all_schedules(), occurrence=st.integers(0, 200))
def test_every_occurrence_of_a_stripe_lies_in_window_over_stride_windows(schedule, occurrence):
    stripe_positions = schedule.block * schedule.lanes
    slide, length = schedule.stride // stripe_positions, schedule.window // stripe_positions
    occurrence += length  # behind a run's first windows
    holding = [v for v in range(occurrence + 1) if v * slide <= occurrence < v * slide + length]
    assert len(holding) == schedule.window // schedule.stride
    stripes = {int(schedule.window_stripes(v)[occurrence - v * slide]) for v in holding}
    assert len(stripes) == 1


@settings(max_examples=60, deadline=None)
@given(schedule=all_schedules(), step=st.integers(0, 500))
def test_a_batch_takes_its_share_of_every_lane(schedule, step):
    places = schedule.positions(step).reshape(schedule.lanes, -1)
    for lane, positions in enumerate(places):
        filled = positions[positions >= 0]
        assert (filled // schedule.block % schedule.lanes == lane).all()
        assert (filled < schedule.positions_end).all()


@settings(max_examples=40, deadline=None)
@given(schedule=all_schedules(), step=st.integers(0, 200))
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


@pytest.mark.parametrize("appended", [(), (10**11, 10**12)])
def test_a_trillion_instances_cost_no_memory(appended):
    schedule = Schedule(0, 10**12, 8192, 1024, 256, 64, 8)
    for added in appended:
        schedule = schedule.grown(added, step=10**6)
    schedule.positions(0)
    tracemalloc.start()
    places = schedule.positions(10**12 // 256 * 50)
    ids = schedule.instances(places)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 * 2**20
    assert ids.max() > 10**11
    np.testing.assert_array_equal(positions_of(schedule, ids), places)


def test_the_batches_of_a_schedule_are_the_same_in_every_version_of_this_program():
    digest = hashlib.sha256()
    for schedule in (Schedule(1, 4000, 256, 128, 64, 8, 8), Schedule(2, 999, 300, 100, 50, 5, 2, False)):
        for step in range(0, 1000, 7):
            digest.update(schedule.instances(schedule.positions(step)).astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "840327bfdd3b420e"


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 2000), key=st.integers(0, 2**63))
def test_the_order_is_a_bijection(size, key):
    order = Feistel(key, size)
    there = order.forward(np.arange(size))
    assert np.array_equal(np.sort(there), np.arange(size))
    np.testing.assert_array_equal(inverse(order, there), np.arange(size))


@pytest.mark.parametrize("size", [2**40 + 1, 2**62 - 5])
def test_the_order_is_a_bijection_of_huge_ranges(size):
    order = Feistel(7, size)
    sample = np.random.default_rng(0).integers(0, size, 5000)
    there = order.forward(sample)
    assert ((there >= 0) & (there < size)).all()
    np.testing.assert_array_equal(inverse(order, there), sample)


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


# ---- instances that are appended


@settings(max_examples=80, deadline=None)
@given(schedule=all_schedules())
def test_every_instance_has_a_position_of_its_own(schedule):
    positions = np.arange(-1, schedule.positions_end + 50)
    ids = schedule.instances(positions)
    assert sorted(ids[ids >= 0]) == list(range(schedule.size))
    np.testing.assert_array_equal(positions_of(schedule, ids[ids >= 0]), positions[ids >= 0])
    assert ids[schedule.positions_end] >= 0  # element i is position i - 1: the last one is filled, nothing behind it is
    assert (ids[schedule.positions_end + 1 :] == -1).all()
    lanes = positions[ids >= 0] // schedule.block % schedule.lanes
    assert [schedule.lane_size(lane) for lane in range(schedule.lanes)] == [
        int((lanes == lane).sum()) for lane in range(schedule.lanes)
    ]


@settings(max_examples=80, deadline=None)
@given(schedule=all_schedules(), added=st.integers(1, 60), step=st.integers(0, 300))
def test_appending_moves_no_earlier_instance(schedule, added, step):
    grown = schedule.grown(added, step)
    assert grown.size == schedule.size + added
    positions = np.arange(-1, schedule.positions_end)
    np.testing.assert_array_equal(grown.instances(positions), schedule.instances(positions))
    new = positions_of(grown, np.arange(schedule.size, grown.size))
    assert sorted(new) == list(range(new.min(), new.min() + added))
    assert new.min() >= schedule.positions_end
    assert new.min() % (schedule.block * schedule.lanes) == 0
    assert new.max() + 1 == grown.positions_end


@settings(max_examples=80, deadline=None)
@given(schedule=all_schedules(), added=st.integers(1, 60), step=st.integers(0, 300))
def test_appending_changes_no_window_before_the_next_pass(schedule, added, step):
    grown = schedule.grown(added, step)
    slide, length = (places // (schedule.block * schedule.lanes) for places in (schedule.stride, schedule.window))
    first_place = grown.segments[-1].first_place
    windows = [v for v in range(first_place // slide + 1) if v * slide + length <= first_place]
    assert schedule.window_of(max(step - 1, 0)) in windows
    for window in windows[-3:]:
        np.testing.assert_array_equal(grown.window_blocks(window), schedule.window_blocks(window))
        for place in range(schedule.steps_per_window):
            at = window * schedule.steps_per_window + place
            np.testing.assert_array_equal(grown.positions(at), schedule.positions(at))


def passes_of(schedule):
    """The slow twin: (first place, stripes) pass by pass, until two have visited everything."""
    place, passes = 0, []
    counts = [-(-segment.size // (schedule.block * schedule.lanes)) for segment in schedule.segments]
    while len(passes) < 2 or passes[-2][1] < sum(counts):
        count = sum(c for c, s in zip(counts, schedule.segments, strict=True) if s.first_place <= place)
        passes.append((place, count))
        place += count
    return passes


@settings(max_examples=80, deadline=None)
@given(schedule=all_schedules())
def test_every_pass_visits_every_stripe_that_is_there_once(schedule):
    passes = passes_of(schedule)
    firsts = {place for place, _ in passes}
    assert all(segment.first_place in firsts for segment in schedule.segments)
    for place, count in passes:
        stripes = schedule._stripe_at(np.arange(place, place + count))
        assert sorted(stripes) == list(range(count))
        latest = [segment for segment in schedule.segments if segment.first_place <= place][-1]
        if latest.size % (schedule.block * schedule.lanes):
            assert stripes[-1] == count - 1  # a ragged one at the end of the order is the last of its pass


@settings(max_examples=80, deadline=None)
@given(schedule=all_schedules())
def test_no_window_holds_a_stripe_twice(schedule):
    last_place, stripes = passes_of(schedule)[-1]
    for window in range((last_place + stripes) * schedule.block * schedule.lanes // schedule.stride):
        assert len(np.unique(schedule.window_stripes(window))) == schedule.window // (schedule.block * schedule.lanes)


@settings(max_examples=80, deadline=None)
@given(schedule=all_schedules(), added=st.integers(1, 60), step=st.integers(0, 300))
def test_the_pass_after_they_were_appended_visits_the_new_instances(schedule, added, step):
    grown = schedule.grown(added, step)
    slide, length = (places // (schedule.block * schedule.lanes) for places in (schedule.stride, schedule.window))
    first_place = grown.segments[-1].first_place
    end_of_window = schedule.window_of(max(step - 1, 0)) * slide + length
    assert first_place - max(end_of_window, schedule.segments[-1].first_place) < schedule.stripes
    windows = range((first_place - length) // slide, (first_place + grown.stripes) // slide + 1)
    visits = np.concatenate([visits_of_window(grown, max(window, 0)) for window in windows])
    assert set(grown.instances(np.unique(visits)).tolist()) == set(range(grown.size))


def test_appending_twice_within_a_pass_begins_both_with_the_next():
    schedule = Schedule(0, 1000, 128, 64, 32, 4, 4)
    twice = schedule.grown(100, 40).grown(50, 41)
    assert twice.segments == (Segment(1000, 0), Segment(100, 63), Segment(50, 63))
    assert twice.stripes == 63 + 7 + 4
    later = twice.grown(10, int(schedule.steps_per_pass) + 1)
    assert later.segments[-1].first_place == 63 + 74


def test_passes_of_all_eras_are_permuted_differently():
    schedule = Schedule(0, 1000, 128, 64, 32, 4, 4).grown(100, 300).grown(100, 600)
    halves = [tuple(schedule._stripe_at(np.arange(place, place + 31))) for place, _ in passes_of(schedule)]
    assert len(halves) == len(set(halves)) >= 5
    assert all(sorted(half) == list(range(31)) for half in halves)  # the middle stays where it was


@pytest.mark.parametrize("first", [1000, 1008])
def test_a_ragged_stripe_is_the_last_of_a_pass_only_while_the_order_ends_with_it(first):
    schedule = Schedule(0, first, 128, 64, 32, 4, 4).grown(100, 300).grown(96, 600).grown(1, 3000)
    lasts: dict[int, set[int]] = {}
    for place, count in passes_of(schedule):
        lasts.setdefault(count, set()).update(schedule._stripe_at(np.array([place + count - 1])).tolist())
    assert list(lasts) == [63, 70, 76, 77]  # passes of four eras, of which the first ends ragged or whole
    assert (lasts[63] == {62}) == (first == 1000)
    assert lasts[70] == {69}
    assert len(lasts[76]) > 1
    assert lasts[77] == {76}


def test_segments_of_one_size_are_ordered_differently():
    schedule = Schedule(0, 1000, 100, 100, 50, 50, 2).grown(1000, 0).grown(1000, 0)
    orders = schedule.instances(np.arange(3000)).reshape(3, 1000) - np.array([[0], [1000], [2000]])
    assert len({tuple(order) for order in orders}) == 3


@settings(max_examples=30, deadline=None)
@given(schedule=all_schedules())
def test_a_schedule_comes_back_from_its_history_in_json(schedule):
    rest = ("seed", "window", "stride", "batch", "block", "lanes", "reshuffle")
    sizes = {name: getattr(schedule, name) for name in rest}
    assert Schedule.from_history(json.loads(json.dumps(schedule.history)), **sizes) == schedule


def test_a_schedule_that_cannot_grow_says_why():
    with pytest.raises(ValueError, match="0 instances cannot be appended; it takes at least 1"):
        Schedule(0, 1000, 128, 64, 32, 4, 4).grown(0, 10)
    for reshuffle in (True, False):
        with pytest.raises(ValueError, match=r"are a whole pass, .* start over with --fresh") as error:
            Schedule(0, 1000, 1008, 1008, 16, 4, 4, reshuffle).grown(10, 10)
        assert len(str(error.value).splitlines()) == 1
