"""A run goes on with any number of ranks that divides the lanes: rows, checkpoints and what is left on the disk."""

import os
import shutil
import signal

import numpy as np
import pytest

from engine.disk import manifest
from engine.disk.files import DiskFiles
from engine.disk.shapes import PART_OF_A_RUN
from engine.disk.zarr_store import ROWS
from engine.ranks.lanes import Lanes
from engine.rows.damaged import Damaged
from engine.training.stop_signal import StopSignal
from tests.engine.disk_runs import DiskRun
from tests.engine.harness import SHORT, Case, errors, run_both, worst
from tests.engine.rank_runs import all_rows
from tests.on_ranks import on_ranks

CASE = Case(**SHORT, readers=1)
FOLDED = Case(active=32, readers=1, fold=True, momentum=0.5, dtype=np.float32)


def legs(ranks, case, root, until, save_every=7, own_disks=False, **options):
    """Go on up to step `until` with checkpoints on the way; (w, u, step it began at, counters, digest, complaints)."""
    directory = root / str(ranks.rank) if own_disks else root
    run = DiskRun(case, directory, ranks=ranks, own_disk=own_disks, **options)
    began = run.step
    run.train(until, save_every)
    if until % save_every:
        run.save()
    run.finish().looked()
    counters = np.sum(ranks.share(np.array([run.rows.visited, run.rows.readmitted])), axis=0)
    told = *all_rows(case, ranks, run.rows), began, counters, run.digest(), run.complaints
    run.close()
    ranks.wait()
    return told


def go(count, *arguments, **options):
    return on_ranks(count, leg, arguments, options)[0]


def leg(ranks, arguments, options):
    return legs(ranks, *arguments, **options)


@pytest.mark.parametrize("in_memory", [False, True])
def test_from_two_ranks_to_four_of_which_one_is_killed_to_one_to_four_rows_equal_the_oracle(tmp_path, in_memory):
    rows, oracle, _ = run_both(CASE)
    quarter = CASE.steps // 4
    go(2, CASE, tmp_path, quarter, in_memory=in_memory)
    with pytest.raises(ChildProcessError):
        on_ranks(4, killed_at, CASE, tmp_path, 2 * quarter, in_memory)
    began = go(1, CASE, tmp_path, 3 * quarter, in_memory=in_memory)[2]
    assert quarter <= began < 2 * quarter
    w, u, start, counters, _, complaints = go(4, CASE, tmp_path, CASE.steps, in_memory=in_memory)
    assert start == 3 * quarter and not complaints
    assert worst(CASE, w, u, oracle) <= 1e-12
    assert counters.tolist() == [rows.visited, rows.readmitted]
    kept, complaints = manifest.recover(DiskFiles(tmp_path))
    assert not complaints and not any(manifest.problems_of(one, every_block=True) for one in kept)


def test_on_the_same_ranks_a_resume_changes_no_bit(tmp_path):
    whole = go(2, CASE, tmp_path / "whole", CASE.steps, save_every=10**9)[4]
    for stop in (20, 41, CASE.steps):
        digest = go(2, CASE, tmp_path / "legs", stop)[4]
    assert digest == whole


def test_one_rank_goes_on_from_two_as_it_does_from_one(tmp_path):
    # What a rank computes differs in last bits with R; what it finds on the disk must not.
    go(2, CASE, tmp_path / "two", 40)
    shutil.copytree(tmp_path / "two", tmp_path / "again")
    one, two = go(1, CASE, tmp_path / "two", 41), go(4, CASE, tmp_path / "again", 41)
    np.testing.assert_allclose(one[0], two[0], rtol=1e-12)
    assert one[3].tolist() == two[3].tolist()


def test_folded_blocks_are_any_ranks(tmp_path):
    began = 0
    for count, stop in zip([4, 1, 2], [60, 100, FOLDED.steps], strict=True):
        w, u, start, *_ = go(count, FOLDED, tmp_path, stop)
        assert start == began
        began = stop
    straight = go(1, FOLDED, tmp_path / "straight", FOLDED.steps, save_every=10**9)
    error_w, error_u = errors(FOLDED, w, u, *(part.astype(np.float64) for part in straight[:2]))
    assert max(error_w.max(), error_u.max()) < 1e-4
    assert straight[3].tolist() == [FOLDED.size, straight[3][1]]


def test_nothing_is_left_behind_when_the_number_of_ranks_changes(tmp_path):
    for count, stop in zip([4, 2, 1, 4, 1], [20, 35, 50, 65, 80], strict=True):
        go(count, CASE, tmp_path, stop, save_every=5)
    go(1, CASE, tmp_path, 81, save_every=5)  # the last start sweeps what the one before could not know to be its own
    files = DiskFiles(tmp_path)
    kept, _ = manifest.recover(files)
    named = {generation.name for one in kept for generation in one.generations().values()}
    assert set(files.listing(ROWS)) <= named
    directories = {name for name in files.listing("") if name.startswith("step-")}
    assert directories == {path.partition("/")[0] for one in kept for path in one.body.files}
    wanted = {path for one in kept for path in one.body.files}
    assert {f"{name}/{file}" for name in directories for file in files.listing(name)} == wanted


def test_every_node_may_have_a_disk_of_its_own_and_merged_they_are_one(tmp_path):
    on_ranks(2, leg, (CASE, tmp_path, 40), {"own_disks": True})
    straight = go(2, CASE, tmp_path / "shared", 60)
    again = go(2, CASE, tmp_path, 60, own_disks=True)  # the same ranks find what is theirs
    assert again[2] == 40 and again[4] == straight[4]
    merged = tmp_path / "merged"
    for rank in range(2):
        shutil.copytree(tmp_path / str(rank), merged, dirs_exist_ok=True)
    one = go(1, CASE, merged, 61)
    np.testing.assert_allclose(one[0], go(2, CASE, tmp_path / "shared", 61)[0], rtol=1e-12)
    alone = DiskFiles(tmp_path / "0")
    kept = manifest.read(alone, manifest.numbers(alone)[0])
    with pytest.raises(Damaged, match="missing"):  # a node's disk is half a checkpoint
        manifest.check(kept)


def test_disks_in_another_order_are_refused_and_stay_as_they_are(tmp_path):
    on_ranks(2, leg, (CASE, tmp_path, 20), {"own_disks": True})
    (tmp_path / "0").rename(tmp_path / "aside")
    (tmp_path / "1").rename(tmp_path / "0")
    (tmp_path / "aside").rename(tmp_path / "1")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match="the disk of rank 1 holds checkpoints that rank 0's does not"):
        on_ranks(2, leg, (CASE, tmp_path, 30), {"own_disks": True})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_a_killed_run_left_on_one_nodes_disk_is_not_written_into(tmp_path):
    on_ranks(2, leg, (CASE, tmp_path, 14), {"own_disks": True})
    newest = manifest.recover(DiskFiles(tmp_path / "0"), inspect=lambda checkpoint, newest: None)[0][-1]
    active = tmp_path / "0" / newest.parts()[0].active
    active.write_bytes(b"damaged")  # so that nothing is swept at once, and step 14 is done again
    left = tmp_path / "1" / "step-000000021"
    left.mkdir()
    (left / "active-1.safetensors").write_bytes(b"left")
    assert go(2, CASE, tmp_path, 21, own_disks=True)[2] == 7
    assert go(2, CASE, tmp_path, 22, own_disks=True)[2] == 21


def test_damage_that_one_rank_finds_is_everybodys(tmp_path):
    go(2, CASE, tmp_path, 40)
    newest = manifest.recover(DiskFiles(tmp_path))[0][-1]
    victim = tmp_path / newest.parts()[1].active
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    _, _, began, _, _, complaints = go(2, CASE, tmp_path, 42)
    assert began == 35
    assert len(complaints) == 1 and "rank 1: active-1.safetensors does not match its checksum" in complaints[0]


def test_a_killed_rank_costs_no_checkpoint(tmp_path):
    with pytest.raises(ChildProcessError):
        on_ranks(2, killed_at, CASE, tmp_path, 33)
    w, u, began, _, _, complaints = go(4, CASE, tmp_path, CASE.steps)
    assert 14 <= began <= 28 and not complaints
    assert worst(CASE, w, u, run_both(CASE)[1]) <= 1e-12


def killed_at(ranks, case, root, step, in_memory=False):
    """Rank 1 is gone after a step, wherever the writers' threads are."""
    run = DiskRun(case, root, ranks=ranks, in_memory=in_memory)
    run.train(step, 7)
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    run.train(step + 1)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
def test_lanes_and_blocks_belong_to_one_rank_each(ranks):
    lanes = [Lanes(12, rank, ranks) for rank in range(ranks)]
    assert sorted(number for own in lanes for number in own.numbers) == list(range(12))
    for block in range(40):
        (owner,) = [own for own in lanes if own.has(block)]
        assert owner.numbers[owner.local(block)] == block % 12
        assert block in owner.chosen(range(40))
    for others in (1, 2, 3, 4, 6, 12):
        for own in lanes:
            theirs = {rank: set(Lanes(12, rank, others).numbers) for rank in range(others)}
            assert all(own.meets(rank, others) == bool(numbers & set(own.numbers)) for rank, numbers in theirs.items())
            assert all(own.contains(r, others) == (numbers <= set(own.numbers)) for r, numbers in theirs.items())


def test_the_parts_of_ranks_in_the_order_of_the_batch():
    lanes = Lanes(6, 0, 3)
    batch = np.arange(24)
    parts = [batch.reshape(6, 4)[Lanes(6, rank, 3).numbers].reshape(-1) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts)[lanes.in_batch_order(24)], batch)


def test_a_file_that_another_rank_removes_meanwhile_does_not_hide_the_rest_of_its_directory(tmp_path, monkeypatch):
    for name in ("gone", "here"):
        (tmp_path / name).write_bytes(b"12")
    scandir = os.scandir

    class Racing:
        """What os.scandir gives, with a file that is gone by the time that one asks for its size."""

        def __enter__(self):
            with scandir(tmp_path) as entries:
                self.entries = list(entries)
            (tmp_path / "gone").unlink()
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", lambda path: Racing())
    assert DiskFiles(tmp_path).listing("") == {"here": 2}


def stopped_alone(ranks, when):
    """What each rank hears when rank 1 alone gets a signal, and whether it is still known after the next call."""
    stop = StopSignal()
    if when == "before" and ranks.rank == 1:
        stop.ask("SIGTERM")
    if when == "meanwhile" and ranks.rank == 1:
        together, ranks.max = ranks.max, lambda *told: (stop.ask("SIGTERM"), together(*told))[1]
    first = stop.agreed(ranks)
    return first, stop.agreed(ranks)


def test_a_signal_of_one_rank_is_heard_by_all_and_never_lost():
    assert on_ranks(2, stopped_alone, "before") == [("SIGTERM", "SIGTERM")] * 2
    assert on_ranks(2, stopped_alone, "meanwhile") == [(None, "SIGTERM")] * 2


def test_a_node_that_is_not_the_first_marks_its_disk(tmp_path):
    # launch.py refuses to start anew over it: what lies there would be taken for what nobody needs.
    on_ranks(2, leg, (CASE, tmp_path, 20), {"own_disks": True})
    assert PART_OF_A_RUN in DiskFiles(tmp_path / "1").listing("")
    assert PART_OF_A_RUN not in DiskFiles(tmp_path / "0").listing("")


def test_a_mark_that_was_cut_short_does_not_stop_a_node(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "part-of-a-run.part").write_bytes(b"")
    on_ranks(2, leg, (CASE, tmp_path, 14), {"own_disks": True})
    assert (tmp_path / "1" / "part-of-a-run").exists() and not (tmp_path / "1" / "part-of-a-run.part").exists()
