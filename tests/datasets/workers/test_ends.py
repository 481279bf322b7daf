"""Workers that die, hang or are asked to stop: nothing waits for ever, and every end has one line that says what to change."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from datasets import loader, workers
from datasets.batch import Batch, NoBatch
from datasets.loader import batches, never
from tests.datasets.scripts import running, runs, wait_for_line
from tests.datasets.workers.made_batches import (
    LONG_SECONDS,
    WITHIN_SECONDS,
    Made,
    hang,
    kill,
    one_line,
    soon,
)

# Who dies, and who does not answer


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (kill(signal.SIGKILL), r"was killed by SIGKILL .*limit on memory: lower data\.workers or schedule\.batch"),
        (kill(signal.SIGSEGV), r"was killed by SIGSEGV .*decoder"),
        (kill(signal.SIGBUS), r"was killed by SIGBUS "),
        (kill(signal.SIGRTMIN + 3), r"was killed by signal \d+ "),
        (lambda: os._exit(3), r"ended with exit code 3 .*data\.workers=0"),
        (lambda: os._exit(0), r"ended with exit code 0 "),
    ],
    ids=["kill", "segv", "bus", "rt", "exit 3", "exit 0"],
)
@pytest.mark.parametrize("pin", [False, True], ids=["", "pinned"])
def test_a_worker_that_dies_ends_the_run_with_its_number(
    how: Callable[[], object], said: str, pin: bool, fake_pin: list[tuple[str, float]]
) -> None:
    stream = batches(Made({5: how}), 2, 99, 2, pin)
    (pid,) = (child.pid for child in multiprocessing.active_children() if child.name == "loader-1")
    assert [next(stream).step for _ in range(3)] == [2, 3, 4]
    with pytest.raises(ChildProcessError, match=said) as caught:
        next(stream)
    text = one_line(caught.value)
    assert text.startswith(f"worker 1 of the loader (process {pid}) ") and "step 5;" in text


def test_what_a_dead_worker_had_sent_is_still_taken() -> None:
    stream = batches(Made({4: kill(signal.SIGKILL)}), 0, 99, 1, pin=False, batches_ahead=4)
    (child,) = multiprocessing.active_children()
    assert child.pid is not None
    assert next(stream).step == 0
    assert soon(lambda: not runs(child.pid))
    assert [next(stream).step for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ChildProcessError, match="step 4;"):
        next(stream)


def test_a_worker_that_dies_while_its_own_child_lives_on_is_noticed(tmp_path: Path) -> None:
    def fork_and_die() -> None:
        if child := os.fork():
            (tmp_path / "child").write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
        os.execvp(sys.executable, [sys.executable, "-c", f"import time; time.sleep({LONG_SECONDS})"])

    def fork_and_hold() -> None:
        if child := os.fork():
            (tmp_path / "child").write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        hang()

    for do in (fork_and_die, fork_and_hold):
        try:
            with pytest.raises(ChildProcessError, match="SIGKILL"):
                list(batches(Made({1: do}), 0, 9, 1, pin=False))
        finally:
            os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("how", [hang, kill(signal.SIGSTOP)], ids=["hangs", "stopped"])
@pytest.mark.parametrize("pin", [False, True], ids=["", "pinned"])
def test_a_worker_that_does_not_answer_is_waited_for_as_long_as_was_said(
    how: Callable[[], object], pin: bool, fake_pin: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = {}

    class Timed(workers.Workers):
        """Batches that do come may take any time; so what was said holds for step 5 alone."""

        def take(self, step: int, patience_seconds: float, *others: Any) -> Batch:
            assert patience_seconds == 0.5
            began = time.monotonic()
            try:
                return super().take(step, 0.5 if step == 5 else LONG_SECONDS, *others)
            finally:
                waited[step] = time.monotonic() - began

    monkeypatch.setattr(loader, "Workers", Timed)
    stream = batches(Made({5: how}), 2, 99, 2, pin, patience_seconds=0.5)
    assert [next(stream).step for _ in range(3)] == [2, 3, 4]
    (pid,) = (child.pid for child in multiprocessing.active_children() if child.name == "loader-1")
    with pytest.raises(
        TimeoutError, match=r"has not made the batch of step 5 in \d+ s.*data\.patience_seconds"
    ) as caught:
        next(stream)
    assert isinstance(caught.value, OSError) and waited[5] >= 0.5
    assert one_line(caught.value).startswith(f"worker 1 of the loader (process {pid})")


def test_a_pipe_in_place_of_an_image_does_not_hang_the_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    stream = batches(Made({0: lambda: (tmp_path / "x.jpg").open("rb")}), 0, 9, 1, pin=False, patience_seconds=0.3)
    with pytest.raises(TimeoutError, match="step 0 "):
        next(stream)


@pytest.mark.parametrize("how", [hang, kill(signal.SIGSTOP)], ids=["hangs", "stopped"])
def test_closing_ends_workers_that_hang_or_are_stopped(how: Callable[[], object]) -> None:
    stream = batches(Made({1: how, 2: how}), 0, 9, 3, pin=False)
    pids = [child.pid for child in multiprocessing.active_children()]
    next(stream)
    stream.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)  # nor are there zombies


# Asked to stop


@pytest.mark.parametrize("pin", [False, True], ids=["", "pinned"])
def test_a_run_that_is_asked_to_stop_does_not_wait_for_a_batch_that_does_not_come(
    pin: bool, fake_pin: list[tuple[str, float]]
) -> None:
    asked = threading.Event()
    stream = batches(Made({2: hang}), 0, 9, 2, pin, asked_to_stop=asked.is_set, stop_grace_seconds=0.2)
    assert [next(stream).step for _ in range(2)] == [0, 1]
    threading.Timer(0.3, asked.set).start()
    with pytest.raises(NoBatch, match=r"worker 0 .* step 2"):
        next(stream)


def test_a_batch_that_comes_within_the_grace_is_given() -> None:
    dataset = Made(always=lambda: time.sleep(0.3))
    stream = batches(dataset, 0, 5, 1, pin=False, asked_to_stop=lambda: True, stop_grace_seconds=LONG_SECONDS)
    assert [batch.step for batch in stream] == list(range(5))


def test_a_batch_that_is_there_is_given_without_a_grace() -> None:
    pool = workers.Workers(Made(), range(3), 1, ahead=3)
    try:
        assert pool.take(0, LONG_SECONDS, never, LONG_SECONDS).step == 0
        for step in (1, 2):
            assert soon(lambda: wait([pool._workers[0].connection], 0))  # a batch is one message, there as a whole
            assert pool.take(step, 0.0, lambda: True, 0.0).step == step
    finally:
        pool.end()


@pytest.mark.parametrize("pin", [False, True], ids=["", "pinned"])
def test_an_interrupt_ends_the_wait_at_once(
    pin: bool, fake_pin: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the wait begins; pinned, that is on another thread, while this one waits for that."""
    waits = []

    def this_one_waits() -> bool:
        frame = sys._current_frames()[threading.main_thread().ident]
        return frame.f_code.co_name == "_pinned_ahead"  # and no more in the start of the other thread

    def interrupted_wait(connections: list[socket.socket], timeout: float) -> Sequence[object]:
        waits.append(threading.current_thread().name)
        if len(waits) == 1:
            assert not pin or soon(this_one_waits)
            os.kill(os.getpid(), signal.SIGINT)
        return wait(connections, timeout)

    monkeypatch.setattr(workers, "wait", interrupted_wait)
    stream = batches(Made({0: hang}), 0, 9, 2, pin)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert set(waits) == {"pin"} if pin else waits == ["MainThread"]  # no second wait


# Who ends with whom


@pytest.mark.parametrize("how", ["hang()", "os.kill(os.getpid(), signal.SIGSTOP)"], ids=["hangs", "stopped"])
def test_a_program_that_forgets_to_close_ends_though_a_worker_does_not_answer(how: str) -> None:
    script = (
        "import multiprocessing, os, signal\n"
        "from datasets.loader import batches\n"
        "from tests.datasets.workers.made_batches import Made, hang\n"
        f"stream = batches(Made({{1: lambda: {how}}}), 0, 10**9, workers=2, pin=False)\n"
        "pids = [child.pid for child in multiprocessing.active_children()]\n"
        "next(stream)\n"
        "print(*pids)\n"
    )
    with running(script) as process:
        output, errors = process.communicate(timeout=WITHIN_SECONDS)
        assert (process.returncode, errors) == (0, "")
        assert soon(lambda: not any(runs(int(pid)) for pid in output.split()))


@pytest.mark.parametrize("made", ["grey_dataset()", "Made({0: hang})"], ids=["at work", "hang"])
def test_workers_end_when_their_parent_is_killed(made: str) -> None:
    script = (
        "from tests.datasets.workers.made_batches import Made, hang\n"
        f"stream = batches({made}, 0, 10**9, workers=2, pin=False)\n"
        "print(*(child.pid for child in multiprocessing.active_children()))\n"
        "print('ready')\n"
        "for batch in stream: pass\n"
    )
    with running(script) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        wait_for_line(process, "ready")
        process.kill()
        process.wait()
        assert len(pids) == 2 and soon(lambda: not any(runs(pid) for pid in pids))


def test_a_fork_that_lets_go_of_a_stream_leaves_its_workers_to_the_parent() -> None:
    with contextlib.closing(batches(Made(), 0, 9, 2, pin=False)) as stream:
        next(stream)
        process = multiprocessing.get_context("fork").Process(target=stream.close)
        process.start()
        process.join()
        assert process.exitcode == 0
        assert [batch.step for batch in stream] == list(range(1, 9))


def test_two_streams_side_by_side_do_not_keep_each_others_workers() -> None:
    with contextlib.closing(batches(Made(), 0, 9, 2, pin=False)) as one:
        with contextlib.closing(batches(Made(), 0, 9, 2, pin=False)) as other:
            assert [next(one).step, next(other).step, next(one).step] == [0, 0, 1]
        assert len(multiprocessing.active_children()) == 2
        assert [batch.step for batch in one] == list(range(2, 9))
