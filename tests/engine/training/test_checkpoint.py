"""A run goes on to the bit from any checkpoint, and taking one changes nothing and holds nothing up."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.disk import manifest
from engine.disk.files import DiskFiles
from engine.disk.restored_rows import stored_blocks
from engine.rows.snapshots import RowReader, block_checks
from engine.training.summary import digest
from tests.engine.disk_runs import DiskRun, memory_digest, trained_oracle, trunk_of, trunk_state
from tests.engine.harness import Case, engine_step, make_engine, rows_of_engine, worst

CASE = Case(active=32, passes=1.5)


@pytest.fixture(scope="module")
def whole():
    return memory_digest(CASE)


@pytest.mark.parametrize("in_memory", [False, True], ids=["zarr", "memory"])
def test_a_run_continues_to_the_same_bits_from_a_checkpoint_at_any_step(tmp_path, whole, in_memory):
    window = CASE.schedule.steps_per_window
    for stop in (1, window - 1, window, window + 1, CASE.steps // 2, CASE.steps - 1):
        root = tmp_path / str(stop)
        run = DiskRun(CASE, root, in_memory=in_memory).train(stop)
        run.save()
        run.finish().close()
        again = DiskRun(CASE, root, in_memory=in_memory)
        assert again.step == stop
        assert again.digest() == run.digest()
        assert again.train(CASE.steps).digest() == whole, stop
        again.close()


def test_a_checkpoint_every_step_equals_none_at_all(tmp_path, whole):
    run = DiskRun(CASE, tmp_path).train(CASE.steps, save_every=1).finish()
    assert run.digest() == whole
    names = {path.name for path in tmp_path.iterdir()}
    assert {f"step-{CASE.steps:09d}", f"step-{CASE.steps - 1:09d}"} <= names
    assert len(list((tmp_path / "manifests").iterdir())) == 2


def test_a_run_may_move_its_rows_between_memory_and_disk(tmp_path, whole):
    first = DiskRun(CASE, tmp_path, in_memory=True).train(40, save_every=20).finish()
    first.close()
    second = DiskRun(CASE, tmp_path).train(80, save_every=40).finish()
    second.close()
    third = DiskRun(CASE, tmp_path, in_memory=True)
    assert third.step == 80
    assert third.train(CASE.steps).digest() == whole


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    size=st.integers(50, 130),
    lanes=st.sampled_from([1, 2, 4]),
    active_share=st.integers(1, 5),
    windows=st.sampled_from([(24, 24), (48, 24), (48, 48)]),
    momentum=st.sampled_from([0.0, 0.9, 0.99]),
    weight_decay=st.sampled_from([0.0, 1e-3]),
    skips=st.frozensets(st.integers(0, 60), max_size=8),
    reshuffle=st.booleans(),
    feature_init=st.booleans(),
    save_every=st.integers(1, 90),
    stops=st.lists(st.integers(1, 90), max_size=3),
    in_memory=st.booleans(),
    readers=st.sampled_from([0, 2]),
    read_ahead=st.integers(1, 3),
    limit_bytes=st.sampled_from([1, 10**6]),
)
def test_the_oracle_holds_through_the_store(
    tmp_path_factory, seed, size, lanes, active_share, windows, momentum, weight_decay, skips, reshuffle, feature_init,
    save_every, stops, in_memory, readers, read_ahead, limit_bytes,
):  # fmt: skip
    case = Case(
        size=size,
        active=8 * active_share,
        window=windows[0],
        stride=windows[1],
        lanes=lanes,
        block=24 // lanes // 2,
        momentum=momentum,
        weight_decay=weight_decay,
        lr=0.2,
        passes=2.2,
        seed=seed,
        skips=() if feature_init else skips,  # a row does not start at a feature that is not finite
        reshuffle=reshuffle and size > 4 * windows[0],
        feature_init=feature_init,
        readers=readers,
        read_ahead=read_ahead,
    )
    root = tmp_path_factory.mktemp("run")
    for stop in [*sorted(stops), case.steps]:
        run = DiskRun(case, root, in_memory=in_memory, limit_bytes=limit_bytes)
        run.train(min(stop, case.steps), save_every).finish()
        run.close()
    # To the bit the rows of the run in memory, and to 1e-12 those of dense SGD.
    assert run.digest() == memory_digest(case)
    assert worst(case, *rows_of_engine(case, run.rows), trained_oracle(case)) <= 1e-12


def test_blocks_written_twice_between_two_checkpoints_go_into_two_generations(tmp_path):
    case = Case(active=32, passes=3.2)
    run = DiskRun(case, tmp_path, keep=1)
    opened = []
    real = run.disk.disk._generation_for
    run.disk.disk._generation_for = lambda *arguments: (opened.append(number := real(*arguments)), number)[1]
    run.train(case.steps - 3).finish()
    assert len(set(opened)) >= 3  # three passes, no checkpoint
    # An older version that no checkpoint names is gone at once.
    assert sum(generation.blocks for generation in run.disk.disk.generations.values()) == len(run.disk.blocks())
    assert len(list((tmp_path / "rows").iterdir())) < len(set(opened))
    run.save()
    run.finish()
    whole = memory_digest(case)
    assert run.train(case.steps).digest() == whole
    run.close()
    assert DiskRun(case, tmp_path).train(case.steps).digest() == whole


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, whole):
    run = DiskRun(CASE, tmp_path).train(40)
    run.finish()
    gate, real = threading.Event(), run.files._create
    run.files._create = lambda *arguments: (gate.wait(20), real(*arguments))[1]
    run.save()  # returns although the disk does not move
    before = run.rows.log.steps
    run.train(44)
    assert run.rows.log.steps == before + 4
    assert not manifest.numbers(run.files)
    gate.set()
    run.finish()
    kept, _ = manifest.recover(run.files)
    assert kept[-1].step == 40
    assert run.train(CASE.steps).digest() == whole
    run.close()
    # What was kept is the state of step 40, not what became of it.
    again = DiskRun(CASE, tmp_path)
    assert again.digest() == DiskRun(CASE, tmp_path / "other").train(40).digest()


def test_a_checkpoint_waits_for_the_one_before_and_counts_it(tmp_path):
    run = DiskRun(CASE, tmp_path).train(20)
    gate, real, drain = threading.Event(), run.files._create, run.disk.drain
    run.files._create = lambda *arguments: (gate.wait(), real(*arguments))[1]
    waits = []

    def let_the_disk_move_and_drain():
        waits.append(manifest.numbers(run.files))
        time.sleep(0.1)
        gate.set()
        drain()

    run.disk.drain = let_the_disk_move_and_drain
    try:
        run.save()
        run.train(21)
        assert not waits and run.checkpoints.waited_seconds == 0
        began = time.perf_counter()
        run.save()
        took = time.perf_counter() - began
        assert waits == [[]] and 0.1 <= run.checkpoints.waited_seconds <= took
        assert manifest.numbers(run.files)  # that of the first
    finally:
        gate.set()
    run.finish()
    assert [kept.step for kept in manifest.recover(run.files)[0]] == [20, 21]


def test_the_digest_reads_no_block_from_the_disk(tmp_path, monkeypatch):
    run = DiskRun(CASE, tmp_path).train(CASE.steps)
    run.save()
    run.finish()
    whole = run.digest()
    monkeypatch.setattr(DiskFiles, "read_into", lambda *_: pytest.fail("a block was read"))
    monkeypatch.setattr(DiskFiles, "read", lambda *_: pytest.fail("a file was read"))
    assert run.digest() == whole


def test_every_stored_block_of_a_checkpoint_can_be_read(tmp_path):
    run = DiskRun(CASE, tmp_path).train(CASE.steps)
    run.save()
    run.finish()
    reader = RowReader(run.rows)
    blocks = dict(stored_blocks(run.checkpoints.newest))
    assert sorted(blocks) == run.disk.blocks()
    for number, block in blocks.items():
        if number not in run.rows.host:
            assert block.weight.tobytes() == reader.block(number).weight.tobytes()


def test_a_checkpoint_of_the_full_pic_and_of_a_run_before_its_first_step(tmp_path):
    case = Case(active=200, passes=1.2)
    run = DiskRun(case, tmp_path).train(30)
    run.save()
    run.finish().close()
    again = DiskRun(case, tmp_path)
    assert again.train(case.steps).digest() == memory_digest(case)
    empty = DiskRun(CASE, tmp_path / "empty")
    empty.save()
    empty.finish().close()
    assert DiskRun(CASE, tmp_path / "empty").train(CASE.steps).digest() == memory_digest(CASE)


def test_the_digest_notices_a_single_bit_of_a_single_row():
    rows, trunk = make_engine(CASE), trunk_of(CASE)
    for step in range(20):
        engine_step(CASE, rows, trunk, step)
    before = digest(trunk_state(0)[0], [block_checks(RowReader(rows))])
    value = rows.u_KD[0, 0].item()
    rows.u_KD[0, 0] = np.nextafter(value, np.inf)
    assert digest(trunk_state(0)[0], [block_checks(RowReader(rows))]) != before
