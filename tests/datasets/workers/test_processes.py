"""Processes of the loader come and go with its stream."""

import contextlib
import multiprocessing
import os
import signal

import pytest
import torch

from datasets.loader import batches
from tests.datasets.fake_images import (
    grey_dataset,
)
from tests.datasets.scripts import running, wait_for_line


def test_a_bug_in_a_worker_surfaces_with_its_type_and_traceback() -> None:
    dataset = grey_dataset(buggy=frozenset(range(101)))
    with pytest.raises(KeyError, match="no such font") as caught:
        list(batches(dataset, 0, 6, workers=2, pin=False))
    assert "in image" in caught.value.__notes__[0]
    assert multiprocessing.active_children() == []


def test_no_workers_means_no_processes() -> None:
    with contextlib.closing(batches(grey_dataset(), 0, 6, workers=0, pin=False)) as stream:
        next(stream)
        assert multiprocessing.active_children() == []


def test_workers_are_forked_before_the_first_batch_is_asked_for() -> None:
    with contextlib.closing(batches(grey_dataset(), 0, 6, workers=2, pin=False)):
        assert len(multiprocessing.active_children()) == 2


@pytest.mark.parametrize("taken", [0, 1, 6])
def test_closing_the_iterator_ends_its_workers(taken: int) -> None:
    stream = batches(grey_dataset(), 0, 6, workers=2, pin=False)
    for _ in range(taken):
        next(stream)
    stream.close()
    assert multiprocessing.active_children() == []


def test_no_steps_give_no_batches() -> None:
    assert list(batches(grey_dataset(), 4, 4, workers=2, pin=False)) == []
    assert multiprocessing.active_children() == []


def test_the_global_generator_stays_where_it_is() -> None:
    before = torch.get_rng_state()
    list(batches(grey_dataset(), 0, 3, workers=2, pin=False))
    list(batches(grey_dataset(), 0, 3, workers=0, pin=False))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_do_not_hang_after_the_parent_has_used_its_threads() -> None:
    # In a process of its own: a hang there is a failure here, and the parent's threads surely exist at the fork.
    script = (
        "torch.set_num_threads(4)\n"
        "big = torch.rand(1500, 1500)\n"
        "for _ in range(3): (big @ big).exp_().sum()\n"
        "assert len(os.listdir('/proc/self/task')) >= 4\n"
        # Enough places that a worker with four threads would open parallel regions.
        "class Wide(FakeSchedule):\n"
        "    lanes = 5\n"
        "    def positions(self, step): return np.arange(500) % 18\n"
        "dataset = StepDataset(FakeSource(), Wide(), GREY, 1)\n"
        "print(len(list(batches(dataset, 0, 6, workers=2, pin=False))))\n"
        "(big @ big).sum()\n"
    )
    with running(script) as process:
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors) == (0, "6\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_leaves_the_parent_its_batches(number: signal.Signals) -> None:
    script = (
        # Forked before the parent's handlers are set, so that the workers do not inherit those.
        "stream = batches(grey_dataset(pause_seconds=0.005), 0, 10**9, workers=2, pin=False)\n"
        "stopping = []\n"
        "signal.signal(signal.SIGINT, lambda *_: stopping.append(1))\n"
        "signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))\n"
        "signal.signal(signal.SIGHUP, lambda *_: stopping.append(1))\n"
        "left = 20\n"
        "for batch in stream:\n"
        "    print(batch.step)\n"
        "    left -= bool(stopping)\n"
        "    if not left: break\n"
        "stream.close()\n"
        "print('left', len(multiprocessing.active_children()))\n"
    )
    with running(script) as process:
        wait_for_line(process, "5")
        os.killpg(process.pid, number)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        lines = output.split()
        assert lines[-2:] == ["left", "0"]
        steps = [int(line) for line in lines[:-2]]
        # What came in one piece with the line that was waited for, communicate does not see.
        assert steps[0] >= 6 and steps == list(range(steps[0], steps[0] + len(steps)))
        # Twenty batches after the signal, of which step 5, if it was still at work, is the first.
        assert len(steps) >= 19


def test_an_interrupt_that_is_not_caught_ends_the_workers_while_it_travels() -> None:
    script = (
        "try:\n"
        "    with contextlib.closing(batches(grey_dataset(pause_seconds=0.05), 0, 10**9, 2, pin=False)) as stream:\n"
        "        for batch in stream: print(batch.step)\n"
        "except KeyboardInterrupt as error:\n"
        "    print('left', len(multiprocessing.active_children()))\n"
    )
    with running(script) as process:
        wait_for_line(process, "3")
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        assert output.endswith("left 0\n")


def test_a_program_that_forgets_to_close_still_ends() -> None:
    script = "stream = batches(grey_dataset(), 0, 10**9, workers=2, pin=False)\nprint(next(stream).step)\n"
    with running(script) as process:
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors) == (0, "0\n", "")
