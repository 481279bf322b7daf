"""What the loader's workers send, who makes what, and batches that are pinned."""

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datasets.batch import Batch
from datasets.loader import batches
from datasets.workers import shares
from tests.conftest import REPOSITORY
from tests.datasets.workers.made_batches import (
    Made,
    fail,
    open_files,
    soon,
)


def eight_batches_come(*before: str, **environment: str) -> None:
    """In a process of its own. before: words of the command before the interpreter's."""
    script = (
        "from datasets.loader import batches\n"
        "from tests.datasets.workers.made_batches import Made\n"
        "print(sum(1 for _ in batches(Made(), 0, 8, 2, pin=False)))"
    )
    done = subprocess.run(
        [*before, sys.executable, "-c", script],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")


# What is sent


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_a_batch_comes_as_it_was_made_and_can_be_written_to(workers: int) -> None:
    steps = list(batches(Made(), 3, 9, workers, pin=False))
    for step, batch in zip(range(3, 9), steps, strict=True):
        want = Made()[step]
        assert batch.step == step and batch.unreadable == want.unreadable
        for name in ("positions_G", "ids_G", "filled_G"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(want, name))
        batch.views[0] += 0  # no copy that could be read-only
        assert [view.dtype for view in batch.views] == [torch.float32] * 2
        assert all(map(torch.equal, batch.views, want.views))


def test_a_batch_outlives_its_workers_and_shares_its_memory_with_no_other() -> None:
    first, second = batches(Made(), 0, 2, 1, pin=False)
    first.views[0].fill_(9)
    assert torch.equal(second.views[0], Made()[1].views[0])
    assert torch.equal(first.views[1], Made()[0].views[1])


def test_batches_travel_in_memory_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_share_fd_cpu_", "_share_filename_cpu_", "share_memory_"):
        monkeypatch.setattr(torch.UntypedStorage, name, fail(AssertionError("torch shares memory")))
    before = Path("/proc/self/maps").read_text().count("/dev/shm")
    with contextlib.closing(batches(Made(), 0, 4, 2, pin=False)) as stream:
        for _ in range(3):  # the first two are put together of parts
            batch = next(stream)
        maps = Path("/proc/self/maps").read_text()
        assert "/memfd:batch" in maps and maps.count("/dev/shm") == before
        assert batch.step == 2


def test_a_view_without_a_pixel_is_sent_too() -> None:
    class Empty(Made):
        def __getitem__(self, step: int) -> Batch:
            none = np.empty(0, np.int64)
            return Batch(step, [torch.empty(0, 3, 4, 4), torch.ones(2)], none, none, none >= 0)

    (batch,) = batches(Empty(), 0, 1, 1, pin=False)
    assert batch.views[0].shape == (0, 3, 4, 4) and torch.equal(batch.views[1], torch.ones(2))


def test_neither_descriptors_nor_memory_grow_over_two_hundred_batches() -> None:
    def held(pid: int | str) -> tuple[int, int]:
        return open_files(pid), Path(f"/proc/{pid}/maps").read_text().count("/memfd:batch")

    with contextlib.closing(batches(Made(), 0, 220, 2, pin=False)) as stream:
        pids = [str(child.pid) for child in multiprocessing.active_children()]
        for batch in stream:
            if batch.step == 10:
                here = held("self")
            if batch.step == 210:
                assert held("self") == here and here[1] <= 2
            if batch.step == 219:
                break
        # In the workers what was open is what was inherited, one end of a pair, and what multiprocessing opens.
        assert soon(lambda: all(held(pid)[1] == 0 and held(pid)[0] <= here[0] + 8 for pid in pids))


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_a_full_dev_shm_does_not_matter() -> None:
    mount = "mount -t tmpfs -o size=64k small /dev/shm && head -c 64k /dev/zero > /dev/shm/full"
    inside = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    eight_batches_come(*inside)


def test_the_length_of_tmpdir_does_not_matter(tmp_path: Path) -> None:
    long = tmp_path / ("t" * 100)
    long.mkdir()
    eight_batches_come(TMPDIR=str(long))
    assert list(long.iterdir()) == []


# Who makes what


@given(st.integers(0, 9), st.integers(0, 40), st.integers(1, 7))
def test_every_part_of_every_step_is_made_once_and_what_a_worker_makes_is_in_order(
    first: int, count: int, workers: int
) -> None:
    steps = range(first, first + count)
    by_worker = [list(shares(steps, number, workers)) for number in range(workers)]
    made = sorted(share for of_one in by_worker for share in of_one)
    shared, whole = steps[:workers], steps[workers:]
    assert made == [(step, part, workers) for step in shared for part in range(workers)] + [
        (step, 0, 1) for step in whole
    ]
    assert all(of_one == sorted(of_one) for of_one in by_worker)


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 1), (3, 2)])
def test_no_more_is_made_than_was_said_until_a_batch_is_taken(workers: int, ahead: int, tmp_path: Path) -> None:
    class Noted(Made):
        def __getitem__(self, step: int) -> Batch:
            ids = np.arange(6)
            return Batch(step, [torch.ones(6, 1)], ids, ids, ids >= 0)

        def part(self, step: int, part: int, parts: int) -> Batch:
            batch = super().part(step, part, parts)
            with (tmp_path / "made").open("ab", buffering=0) as file:
                file.write(b"." * len(batch.ids_G))
            return batch

    def made() -> float:
        return (tmp_path / "made").stat().st_size / 6

    def all_wait() -> bool:
        return all(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "S" for pid in pids)

    (tmp_path / "made").touch()
    with contextlib.closing(batches(Noted(), 0, 99, workers, pin=False, batches_ahead=ahead)) as stream:
        pids = [child.pid for child in multiprocessing.active_children()]
        for taken in range(12):
            expected = ahead * workers + taken
            # Between these a worker has credits for a part, and needs those for a whole batch.
            if taken == 0 or taken >= workers:
                assert soon(lambda expected=expected: made() == expected)
            assert soon(all_wait) and made() <= expected
            assert next(stream).step == taken


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_first_steps_are_shared_among_all_workers_and_later_ones_are_whole(workers: int, tmp_path: Path) -> None:
    class Noted(Made):
        def part(self, step: int, part: int, parts: int) -> Batch:
            with (tmp_path / "made").open("a") as file:
                file.write(f"{step} {part} {parts} {os.getpid()}\n")
            return super().part(step, part, parts)

    assert [batch.step for batch in batches(Noted(), 3, 3 + 3 * workers, workers, pin=False)] == [
        *range(3, 3 + 3 * workers)
    ]
    lines = [tuple(map(int, line.split())) for line in (tmp_path / "made").read_text().splitlines()]
    pids = {part: pid for step, part, _, pid in lines if step == 3}
    assert len(set(pids.values())) == workers
    for index in range(3 * workers):
        makers = sorted((part, parts, pid) for step, part, parts, pid in lines if step == 3 + index)
        if index < workers:
            assert makers == [(part, workers, pids[part]) for part in range(workers)]
        else:
            assert makers == [(0, 1, pids[index % workers])]


# Pinning


def test_the_next_batch_is_pinned_while_a_step_runs_and_no_more_than_that(fake_pin: list[tuple[str, float]]) -> None:
    with contextlib.closing(batches(Made(), 1, 9, 2, pin=True)) as stream:
        for step in range(1, 9):
            batch = next(stream)
            assert batch.step == step and all(map(torch.equal, batch.views, Made()[step].views))
            ahead = min(step + 1, 8)
            assert soon(lambda ahead=ahead: fake_pin[-1] == ("pin", -float(ahead)))
            assert len(fake_pin) == 2 * ahead  # two views each
        assert list(stream) == []


def test_an_error_comes_out_of_the_thread_that_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", fail(RuntimeError("CUDA error: out of memory")))
    with pytest.raises(RuntimeError, match="CUDA error"):
        list(batches(Made(), 0, 9, 2, pin=True))


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_pinned_stream_can_be_closed_at_any_time(taken: int, fake_pin: list[tuple[str, float]]) -> None:
    stream = batches(Made(), 0, 9, 2, pin=True)
    assert [next(stream).step for _ in range(taken)] == list(range(taken))
    stream.close()
