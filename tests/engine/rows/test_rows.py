"""Recency, slots and the host tier against a plain model of them; initial rows against published vectors."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.rows.host_tier import HostTier
from engine.rows.initial_rows import initial_rows, philox4x32
from engine.rows.recency import VisitQueue
from engine.rows.shrink import predicted_shrink, refuse_underflow
from engine.rows.store import Block, MemoryStore
from tests.engine.harness import Case, GivenFeatures, engine_step, make_engine


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 12), rounds=st.integers(1, 60))
def test_the_visit_queue_gives_the_least_recently_visited(seed, size, rounds):
    rng = np.random.default_rng(seed)
    stamp = np.full(size, -1)
    queue = VisitQueue(stamp, np.arange(0), 2 * size + 1)
    order: list[int] = []  # the model: most recent last
    clock = 0
    for _ in range(rounds):
        visited = rng.permutation(size)[: rng.integers(0, size + 1)]
        stamp[visited] = clock + np.arange(len(visited))
        clock += len(visited)
        queue.push(visited)
        order = [slot for slot in order if slot not in visited] + visited.tolist()
        count = int(rng.integers(0, len(order) + 1)) if rng.uniform() < 0.3 else 0
        taken = queue.pop(count)
        assert taken.tolist() == order[:count]
        # As the engine does: what is taken is visited anew, in its new role.
        stamp[taken] = clock + np.arange(count)
        clock += count
        queue.push(taken)
        order = order[count:] + taken.tolist()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), active=st.sampled_from([8, 16, 40, 64]), reshuffle=st.booleans())
def test_the_active_set_is_the_most_recently_visited_of_each_lane(seed, active, reshuffle):
    case = Case(seed=seed, size=110, window=48, stride=24, active=active, passes=1.4, dim=2, reshuffle=reshuffle)
    rows, trunk = make_engine(case), GivenFeatures(None, 1, 2)
    trunk.dtype = __import__("torch").float64
    seen = {lane: [] for lane in range(case.lanes)}
    for step in range(case.steps):
        engine_step(case, rows, trunk, step)
        for position in case.schedule.positions(step):
            if position >= 0:
                lane = seen[position // case.block % case.lanes]
                if position in lane:
                    lane.remove(position)
                lane.append(position)
        share = active // case.lanes
        expected = sorted(p for lane in seen.values() for p in lane[-share:])
        held = rows.position_K[rows.position_K >= 0]
        assert sorted(held) == expected
        for lane in range(case.lanes):
            slots = rows.position_K[lane * share : (lane + 1) * share]
            assert (slots[slots >= 0] // case.block % case.lanes == lane).all()


def test_the_host_tier_stays_as_small_as_planned_and_holds_what_it_must():
    case = Case(size=2000, active=96, window=96, stride=48, passes=0.5, dim=2)
    rows, trunk = make_engine(case), GivenFeatures(__import__("torch").float64, 1, 2)
    planned_bytes = rows.host.bytes
    for step in range(case.steps):
        engine_step(case, rows, trunk, step)
        resident = set(rows.host.blocks())
        window = set(case.schedule.window_blocks(case.schedule.window_of(step)).tolist())
        active = set((rows.position_K[rows.position_K >= 0] // case.block).tolist())
        assert resident == window | active
    assert rows.host.bytes == planned_bytes


def test_a_block_that_nobody_visited_is_not_stored():
    store = MemoryStore()
    host = HostTier(store, block=4, size=40, dim=2, dtype=np.float32, places=4)
    host.slide([0, 1], step=0)
    host.slide([2, 3], step=1)
    assert store.blocks() == []


class _SlowStore(MemoryStore):
    """Each read takes at least 20 ms."""

    def read_block(self, block, out):
        time.sleep(0.02)
        super().read_block(block, out)


@pytest.mark.parametrize("readers", [0, 2])
def test_seconds_of_reading_are_added_up_over_threads_whether_or_not_a_step_waits(readers):
    store = _SlowStore()
    for block in range(4):
        store.write_block(block, Block(np.ones((4, 2), np.float32), np.ones((4, 2), np.float32), np.zeros(4, np.int64)))
    host = HostTier(store, block=4, size=40, dim=2, dtype=np.float32, places=6, readers=readers)
    host.read_ahead([0, 1, 2])
    for _, read in host._reads.values():
        read.result()
    waited = host.waited_seconds
    host.slide([0, 1, 2, 9], step=0)  # nobody visited block 9: it is not read
    assert host.waited_seconds == waited == 0.0
    assert host.blocks_read == 3 and host.read_seconds >= 3 * 0.02
    before = host.read_seconds
    host.slide([3], step=1)
    assert host.blocks_read == 4 and host.read_seconds >= before + 0.02
    host.close()


def test_philox_gives_the_published_vectors():
    def words(counter, key):
        return [int(w[0]) for w in philox4x32(tuple(np.array([c], dtype=np.uint64) for c in counter), key)]

    assert words((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert words((ones,) * 4, (ones, ones)) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert words(pi, (0xA4093822, 0x299F31D0)) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_an_initial_row_depends_on_seed_and_instance_alone():
    ids = np.array([0, 5, 2**33, 2**33 + 1, 10**12])
    rows = initial_rows(3, ids, 128, 0.11)
    for index, instance in enumerate(ids):
        np.testing.assert_array_equal(initial_rows(3, np.array([instance]), 128, 0.11)[0], rows[index])
    assert len({row.tobytes() for row in rows}) == 5
    assert not np.array_equal(initial_rows(4, ids, 128, 0.11), rows)
    np.testing.assert_array_equal(initial_rows(3, ids, 10, 0.11 * np.sqrt(10 / 128)), rows[:, :10])
    assert rows.dtype == np.float32


def test_initial_rows_have_the_length_asked_for_and_no_preferred_direction():
    rows = initial_rows(1, np.arange(20_000), 32, 2.0)
    assert np.sqrt((rows**2).sum(1).mean()) == pytest.approx(2.0, rel=0.01)
    assert np.abs(rows.mean(0)).max() < 0.02
    covariance = np.cov(rows.T) * 32 / 4
    assert np.abs(covariance - np.eye(32)).max() < 0.05


def test_a_shrink_that_would_underflow_is_refused():
    # N = 10^9 with the official settings: 125 windows' worth of steps away, and nothing left of the row.
    shrink = predicted_shrink(gap_steps=10**9 * 8 / 256, eta=0.03, weight_decay=1e-4, momentum=0.9)
    assert shrink == 0.0
    with pytest.raises(ValueError, match="rows_weight_decay to 0"):
        refuse_underflow(shrink)
    refuse_underflow(predicted_shrink(gap_steps=1000, eta=0.03, weight_decay=1e-4, momentum=0.9))
