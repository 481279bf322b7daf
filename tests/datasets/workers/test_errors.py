"""What a worker raises, and what cannot be started: each arrives as it is or as its text, in one line."""

import contextlib
import errno
import os
import resource
import socket
import threading
from typing import Any

import pytest
import torch

from datasets import parcel
from datasets.batch import ImagesUnavailable
from datasets.loader import batches
from tests.datasets.workers.made_batches import (
    Made,
    fail,
    one_line,
    open_files,
)

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
    monkeypatch.setattr(os, "memfd_create", fail(OSError(errno.EMFILE, os.strerror(errno.EMFILE))))
    with pytest.raises(OSError, match="Too many open files"):
        list(batches(Made(), 0, 9, 2, pin=False))


def test_a_disk_or_memory_that_is_full_while_a_batch_is_written_is_an_error_and_no_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "pwrite", fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
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
    monkeypatch.setattr(parcel.mmap, "mmap", fail(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))))
    with pytest.raises(OSError, match=r"no memory for a batch of 0 MiB: Cannot allocate memory; lower data\.workers"):
        list(batches(Made(), 0, 9, 1, pin=False))


# What cannot be started


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
    monkeypatch.setattr(socket, "socketpair", fail(OSError(errno.EMFILE, os.strerror(errno.EMFILE))))
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
