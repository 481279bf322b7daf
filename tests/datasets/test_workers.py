"""Workers of the loader when something goes wrong: nothing hangs, and every end has one line that says what to change."""

import contextlib
import errno
import faulthandler
import gc
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datasets import parcel
from datasets.batch import Batch, ImagesUnavailable, NoBatch, Unreadable
from datasets.loader import batches
from datasets.parts import places_of_part
from datasets.workers import shares
from tests.datasets.test_loader import REPOSITORY, running, runs, wait_for_line

LONG_SECONDS = 1000.0
WITHIN_SECONDS = 60.0  # for what takes well under a second on an idle machine


def nothing() -> None: ...


@dataclass
class Made:
    """Batches of two views that know their step; what `at` says is done before that step's is made, in the worker."""

    at: dict[int, Callable[[], object]] = field(default_factory=dict)
    always: Callable[[], object] = nothing

    def __getitem__(self, step: int) -> Batch:
        self.at.get(step, self.always)()
        ids = np.array([step, -1])
        views = [torch.full((2, 3, 5, 5), float(step)), torch.full((2, 1, 4, 4), -float(step))]
        return Batch(step, views, ids.copy(), ids, ids >= 0, [Unreadable(1, 7, "a/b.jpg", "truncated")])

    def part(self, step: int, part: int, parts: int) -> Batch:
        whole = self[step]
        here = places_of_part(len(whole.ids_G), part, parts)
        there = [
            replace(one, place=one.place - here.start)
            for one in whole.unreadable
            if here.start <= one.place < here.stop
        ]
        views = whole.views if parts == 1 else [view[here] for view in whole.views]
        return Batch(step, views, whole.positions_G[here], whole.ids_G[here], whole.filled_G[here], there)


def hang() -> None:
    time.sleep(LONG_SECONDS)


def kill(number: int) -> Callable[[], object]:
    def do() -> None:
        faulthandler.disable()  # pytest's, which prints
        os.kill(os.getpid(), number)

    return do


def fail(error: BaseException) -> Callable[[], object]:
    def do() -> None:
        raise error

    return do


def open_files(pid: int | str = "self") -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def soon(true: Callable[[], object]) -> bool:
    deadline = time.monotonic() + WITHIN_SECONDS
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


@pytest.fixture(autouse=True, scope="module")
def _short_collections() -> None:
    """What earlier tests imported is left alone when each test here collects: a tenth of a second, twice a test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    gc.collect()
    before = open_files()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    assert multiprocessing.active_children() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "pin"]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    gc.collect()  # tracebacks hold batches
    assert open_files() <= before


@pytest.fixture
def fake_pin(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """As if memory could be page-locked here: the thread and the content of each tensor that was asked to be."""
    pinned: list[tuple[str, float]] = []

    def pin_memory(view: torch.Tensor) -> torch.Tensor:
        pinned.append((threading.current_thread().name, float(view.flatten()[0])))
        return view.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    return pinned


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
    script = "from tests.datasets.test_workers import *\nprint(sum(1 for _ in batches(Made(), 0, 8, 2, pin=False)))"
    done = subprocess.run(
        [*inside, sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")


def test_the_length_of_tmpdir_does_not_matter(tmp_path: Path) -> None:
    long = tmp_path / ("t" * 100)
    long.mkdir()
    script = "from tests.datasets.test_workers import *\nprint(sum(1 for _ in batches(Made(), 0, 8, 2, pin=False)))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(long)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")
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
    assert soon(lambda: not runs(child.pid))  # type: ignore[arg-type]
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
    how: Callable[[], object], pin: bool, fake_pin: list[tuple[str, float]]
) -> None:
    stream = batches(Made({5: how}), 2, 99, 2, pin, patience_seconds=0.5)
    assert [next(stream).step for _ in range(3)] == [2, 3, 4]
    (pid,) = (child.pid for child in multiprocessing.active_children() if child.name == "loader-1")
    with pytest.raises(
        TimeoutError, match=r"has not made the batch of step 5 in \d+ s.*data\.patience_seconds"
    ) as caught:
        next(stream)
    assert isinstance(caught.value, OSError)
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
    stream = batches(Made(), 0, 3, 1, pin=False, batches_ahead=3, asked_to_stop=lambda: True, stop_grace_seconds=5.0)
    assert next(stream).step == 0
    assert soon(lambda: Path(f"/proc/{multiprocessing.active_children()[0].pid}/stat").read_text().split()[2] == "S")
    assert [batch.step for batch in stream] == [1, 2]


@pytest.mark.parametrize("pin", [False, True], ids=["", "pinned"])
def test_an_interrupt_ends_the_wait_at_once(pin: bool, fake_pin: list[tuple[str, float]]) -> None:
    stream = batches(Made({0: hang}), 0, 9, 2, pin)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    timer.join()


# What a worker raises


class TwoArguments(ValueError):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


class Unprintable(ValueError):
    def __str__(self) -> str:
        raise TypeError("no text")


class Mute(OSError):
    def __reduce__(self) -> Any:
        raise RecursionError("pickles itself")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("two\nlines"),
        OSError(errno.EIO, "Input/output error", "a.jpg"),
        ImagesUnavailable("a.jpg", "Stale file handle"),
        MemoryError("640 KB"),
        ConnectionResetError("by a disk that is a network"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        KeyError("no such font"),
        ValueError("caf\udce9.jpg is no photo"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_it_is(error: Exception, workers: int) -> None:
    with pytest.raises(type(error)) as caught:
        list(batches(Made({3: fail(error)}), 0, 9, workers, pin=False))
    assert type(caught.value) is type(error) and str(caught.value) == str(error)
    if workers:
        assert "in a worker of the loader" in caught.value.__notes__[-1]
        assert "in do\n" in caught.value.__notes__[-1]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TwoArguments("first ", "second"), "first second"),
        (type("Local", (ValueError,), {})("of a class that nobody can import"), "that nobody can import"),
        (Unprintable(), "Unprintable"),
        (Mute("cannot be pickled"), "cannot be pickled"),
        (ValueError("long" * 10**6), "longlong"),
        (ValueError("caf\udce9.jpg" * 10_000), "caf"),
        (SystemExit(0), "SystemExit: 0"),
        (KeyboardInterrupt("not a hand at the keyboard"), "not a hand"),
    ],
    ids=["arguments", "local", "unprintable", "mute", "long", "not UTF-8", "exit", "interrupt"],
)
def test_an_error_that_cannot_be_sent_arrives_as_its_text(error: BaseException, text: str) -> None:
    with pytest.raises(RuntimeError, match=text) as caught:
        list(batches(Made({3: fail(error)}), 0, 9, 2, pin=False))
    assert "in do\n" in caught.value.__notes__[-1]


def test_an_error_comes_in_its_turn_and_not_before() -> None:
    stream = batches(Made({4: fail(ValueError("at 4"))}), 0, 9, 3, pin=False)
    assert [next(stream).step for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="at 4"):
        next(stream)


def test_a_worker_that_can_make_no_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "memfd_create", fail_with(OSError(errno.EMFILE, os.strerror(errno.EMFILE))))
    with pytest.raises(OSError, match="Too many open files"):
        list(batches(Made(), 0, 9, 2, pin=False))


def test_a_disk_or_memory_that_is_full_while_a_batch_is_written_is_an_error_and_no_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "pwrite", fail_with(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(OSError, match="No space left"):
        list(batches(Made(), 0, 9, 2, pin=False))


def test_a_batch_is_written_whole_even_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, content, offset: pwrite(descriptor, content[:100], offset))
    (batch,) = batches(Made(), 5, 6, 1, pin=False)
    assert all(map(torch.equal, batch.views, Made()[5].views))


def test_a_process_without_descriptors_left_says_so_and_does_not_wait() -> None:
    stream = batches(Made(), 0, 9, 1, pin=False, batches_ahead=9)
    assert next(stream).step == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 8, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(1))
        with pytest.raises(OSError, match="too many files are open in this process; raise ulimit -n"):
            next(stream)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


def test_a_process_without_memory_for_a_batch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcel.mmap, "mmap", fail_with(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))))
    with pytest.raises(OSError, match=r"no memory for a batch of 0 MiB: Cannot allocate memory; lower data\.workers"):
        list(batches(Made(), 0, 9, 1, pin=False))


# What cannot be started


def fail_with(error: BaseException) -> Callable[..., Any]:
    def do(*_: object, **__: object) -> None:
        raise error

    return do


@pytest.mark.parametrize(
    ("number", "change"), [(errno.EAGAIN, "ulimit -u"), (errno.ENOMEM, "memory"), (errno.EMFILE, "ulimit -n")]
)
def test_a_worker_that_cannot_be_forked_ends_those_that_were(
    monkeypatch: pytest.MonkeyPatch, number: int, change: str
) -> None:
    fork, forked = os.fork, []

    def second_fails() -> int:
        forked.append(1)
        if len(forked) > 1:
            raise OSError(number, os.strerror(number))
        return fork()

    pipe = os.pipe
    made: list[int] = []

    def counted() -> tuple[int, int]:
        ends = pipe()
        made.extend(ends)
        return ends

    monkeypatch.setattr(os, "pipe", counted)
    monkeypatch.setattr(os, "fork", second_fails)
    with pytest.raises(OSError, match=rf"worker 1 of 3 cannot be started: .*data\.workers.*{change}") as caught:
        batches(Made(), 0, 9, 3, pin=False)
    one_line(caught.value)
    for descriptor in made[-4:]:  # multiprocessing leaves these open when its fork fails
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_no_descriptor_for_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socketpair", fail_with(OSError(errno.EMFILE, os.strerror(errno.EMFILE))))
    with pytest.raises(OSError, match=r"worker 0 of 3 cannot be started: Too many open files.*ulimit -n"):
        batches(Made(), 0, 9, 3, pin=False)


@pytest.mark.parametrize("pin", [False, True], ids=["in a worker", "pinned"])
def test_a_thread_that_cannot_be_started_is_a_limit_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, pin: bool, fake_pin: list[tuple[str, float]]
) -> None:
    name, start = "pin" if pin else "obey-parent", threading.Thread.start

    def some_fail(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", some_fail)
    with pytest.raises(OSError, match=r"can't start new thread.*ulimit -u") as caught:
        list(batches(Made(), 0, 9, 3, pin))
    one_line(caught.value)


# Who ends with whom


@pytest.mark.parametrize("how", ["hang()", "os.kill(os.getpid(), signal.SIGSTOP)"], ids=["hangs", "stopped"])
def test_a_program_that_forgets_to_close_ends_though_a_worker_does_not_answer(how: str) -> None:
    script = (
        "from tests.datasets.test_workers import *\n"
        f"stream = batches(Made({{1: lambda: {how}}}), 0, 10**9, workers=2, pin=False)\n"
        "pids = [child.pid for child in multiprocessing.active_children()]\n"
        "next(stream)\n"
        "print(*pids)\n"
    )
    with running(script) as process:
        output, errors = process.communicate(timeout=WITHIN_SECONDS)
        assert (process.returncode, errors) == (0, "")
        assert soon(lambda: not any(runs(int(pid)) for pid in output.split()))


def test_a_worker_that_hangs_ends_when_its_parent_is_killed() -> None:
    script = (
        "from tests.datasets.test_workers import *\n"
        "stream = batches(Made({0: hang}), 0, 10**9, workers=2, pin=False)\n"
        "print(*(child.pid for child in multiprocessing.active_children()))\n"
        "print('ready')\n"
        "next(stream)\n"
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
    monkeypatch.setattr(torch.Tensor, "pin_memory", fail_with(RuntimeError("CUDA error: out of memory")))
    with pytest.raises(RuntimeError, match="CUDA error"):
        list(batches(Made(), 0, 9, 2, pin=True))


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_pinned_stream_can_be_closed_at_any_time(taken: int, fake_pin: list[tuple[str, float]]) -> None:
    stream = batches(Made(), 0, 9, 2, pin=True)
    assert [next(stream).step for _ in range(taken)] == list(range(taken))
    stream.close()
