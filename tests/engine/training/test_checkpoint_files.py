"""What checkpoints leave on the disk: what changed and no more, the last few of them, and nothing of a killed run."""

import numpy as np
import pytest

from engine.disk import manifest
from tests.engine.disk_runs import DiskRun, memory_digest
from tests.engine.harness import Case

CASE = Case(active=32, passes=1.5)


def written_by_a_checkpoint(tmp_path, case, stop):
    """Bytes and files that one checkpoint writes after `stop` steps of a run with checkpoints on the way."""
    run = DiskRun(case, tmp_path, threaded=False, keep=1).train(stop, save_every=case.schedule.steps_per_window)
    sizes, real = [], run.files._create

    def create(path, parts):
        sizes.append(sum(memoryview(part).nbytes for part in parts))
        real(path, parts)

    run.files._create = create
    run.train(stop + case.schedule.steps_per_window // 2)
    sizes.clear()
    run.save()
    return sum(sizes), len(sizes)


def test_a_checkpoint_costs_the_window_and_not_the_rows_visited(tmp_path):
    few = Case(size=2000, active=32, window=96, stride=48, block=6, lanes=4, passes=1.0, dim=128)
    window = few.schedule.steps_per_window
    early, early_files = written_by_a_checkpoint(tmp_path / "early", few, 6 * window)
    late, late_files = written_by_a_checkpoint(tmp_path / "late", few, 30 * window)
    window_bytes = (few.window + few.stride) * (16 * few.dim + 8) + few.active * 16 * few.dim
    assert early < 1.5 * window_bytes
    # Five times as many rows were visited; the rest of the growth is the log and the map.
    assert late < early + 0.25 * window_bytes
    assert abs(late_files - early_files) <= 12


def test_map_and_log_are_written_whole_seldom_and_read_back_whole(tmp_path):
    case = Case(size=600, active=32, passes=2.2)
    run = DiskRun(case, tmp_path, keep=3)
    full = {"blocks": set(), "log": set()}
    count = 0
    for step in range(case.steps):
        run.train(step + 1)
        if step % 3 == 2:
            run.save()
            run.finish()
            count += 1
            body = run.checkpoints.newest.body
            full["log"].add(body.log.full)
            full["blocks"].add(body.parts[0].blocks.full)
            log = run.checkpoints.newest.log()
            np.testing.assert_array_equal(log["eta"], run.rows.log.etas())
            np.testing.assert_array_equal(log["loss"], np.arange(step + 1.0))
            disk = run.disk.disk
            entries = run.checkpoints.newest.entries(run.checkpoints.newest.store())
            assert entries == disk._map
            assert (tmp_path / run.checkpoints.newest.body.log.full).exists()
    assert 2 <= len(full["log"]) <= 4 * np.sqrt(count)
    assert 2 <= len(full["blocks"]) <= 6 * np.sqrt(count)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_disk_holds_the_rows_the_snapshots_and_what_changed_between(tmp_path, keep):
    case = Case(size=6000, active=64, window=768, stride=384, batch=64, block=48, lanes=4, dim=32, passes=1.3)
    row_bytes = 2 * 8 * case.dim + 8
    interval = case.schedule.steps_per_window
    run = DiskRun(case, tmp_path, keep=keep)
    changed: list[int] = []
    before: dict = {}
    for stop in range(interval, case.steps, interval):
        run.train(stop)
        run.save()
        run.finish()
        now = dict(run.disk.disk._map)
        changed.append(sum(now[block] != before.get(block) for block in now))
        before = now
    body = run.checkpoints.newest.body
    disk = run.disk.disk
    retired = len(disk.blocks()) * case.block
    snapshot = case.active * (2 * 8 * case.dim + 16)
    live = run.live_bytes() + sum(body.sizes.values())
    log_and_trunk = sum(
        size for path, size in body.sizes.items() if "log" in path or "trunk" in path or "momentum" in path
    )
    assert live - log_and_trunk <= (retired * row_bytes + snapshot) * 1.01
    assert live >= retired * row_bytes + snapshot
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    blocks_between = sum(changed[-keep + 1 :]) if keep > 1 else 0
    metadata = sum(path.stat().st_size for path in tmp_path.rglob("*.json"))
    others = (keep - 1) * sum(body.sizes.values()) * 1.1
    assert on_disk <= live + blocks_between * case.block * row_bytes + metadata + others + 4096
    assert run.checkpoints.bytes <= on_disk <= run.checkpoints.bytes * 1.02 + metadata


def test_only_the_last_k_checkpoints_are_kept_and_each_of_them_loads(tmp_path):
    case = Case(active=32, passes=2.0)
    run = DiskRun(case, tmp_path, keep=3)
    digests = {}
    for stop in range(20, 100, 13):
        run.train(stop)
        run.save()
        run.finish()
        digests[stop] = run.digest()
    kept, complaints = manifest.recover(run.files)
    assert not complaints
    assert [one.step for one in kept] == list(digests)[-3:]
    run.close()
    for one in kept:
        (chosen,), _ = manifest.recover(run.files, one.step)
        assert not manifest.problems_of(chosen, every_block=True)
    for number in (manifest.numbers(run.files)[0], manifest.numbers(run.files)[1]):
        # Losing the newest manifest gives the one before, whole.
        (tmp_path / manifest.path_of(number)).unlink()
        again = DiskRun(case, tmp_path, keep=3)
        assert again.digest() == digests[again.step]
        again.close()
        if again.step == kept[0].step:
            break
    assert again.step == kept[0].step


def test_what_a_killed_run_left_is_swept_at_the_next_start(tmp_path):
    run = DiskRun(CASE, tmp_path).train(30)
    run.save()
    run.finish()
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    run.train(60)  # blocks without a commit
    run.disk.drain()
    run.close()
    (tmp_path / "step-000000030" / "log-full.safetensors.part").write_bytes(b"half")
    (tmp_path / "step-000000060").mkdir()
    (tmp_path / "step-000000060" / "trunk.safetensors").write_bytes(b"half")
    (tmp_path / "manifests" / "000000002.json.part").write_bytes(b"{")
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) != before
    again = DiskRun(CASE, tmp_path).looked()
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
    assert again.step == 30


def test_a_damaged_newer_checkpoint_is_left_alone_until_the_next_commit(tmp_path):
    run = DiskRun(CASE, tmp_path, keep=2).train(30)
    run.save()
    run.train(45)
    run.save()
    run.finish().close()
    victim = tmp_path / "step-000000045" / "active.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    there = {path for path in tmp_path.rglob("*") if path.is_file()}
    again = DiskRun(CASE, tmp_path, keep=2).looked()
    assert again.step == 30
    assert again.complaints == [
        "checkpoint step-000000045 is damaged (active.safetensors does not match its checksum); trying the one before"
    ]
    assert there <= {path for path in tmp_path.rglob("*") if path.is_file()}
    again.train(45)
    again.save()
    again.finish()
    assert not victim.exists()
    kept, complaints = manifest.recover(again.files)
    assert not complaints
    assert [one.step for one in kept] == [30, 45]
    assert kept[-1].name == "step-000000045-2"
    assert again.train(CASE.steps).digest() == memory_digest(CASE)


def test_checkpoints_of_the_first_format_are_named_and_not_swept(tmp_path):
    (tmp_path / "step-000000030").mkdir()
    (tmp_path / "step-000000030" / "manifest.json").write_text('{"format": 1}')
    run = DiskRun(CASE, tmp_path)
    assert run.complaints == ["checkpoint step-000000030 has format 1, which this version cannot read"]
    assert (tmp_path / "step-000000030" / "manifest.json").exists()


def test_a_thousand_slides_leave_nothing_behind(tmp_path):
    import os

    import psutil

    case = Case(size=3000, active=32, window=48, stride=24, batch=24, block=6, lanes=4, dim=16, passes=8.0, readers=2)
    run = DiskRun(case, tmp_path)
    process = psutil.Process(os.getpid())
    steps = case.schedule.steps_per_window
    assert 1000 * steps <= case.steps * 10
    descriptors, threads, resident_bytes = [], [], []
    for slides in range(200, 1001, 80):
        run.train(slides * steps, save_every=40 * steps)
        run.finish()
        descriptors.append(len(os.listdir("/proc/self/fd")))
        threads.append(process.num_threads())
        resident_bytes.append(process.memory_info().rss)
    assert run.step == 1000 * steps
    assert descriptors[-1] <= descriptors[0]
    assert threads[-1] <= threads[0]
    # A leak grows in every interval, a heap that takes another arena in one of them: hence the median, 1 KiB a slide.
    assert np.median(np.diff(resident_bytes)) <= 80 * 2**10, resident_bytes
    run.close()


def test_files_of_a_checkpoint_are_not_pickles(tmp_path):
    run = DiskRun(CASE, tmp_path).train(30)
    run.save()
    run.finish()
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".0"} | {path.suffix for path in tmp_path.rglob("c.*")}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or path.read_bytes()[:1] not in (b"\x80", b"P") or path.name.startswith("c.")
