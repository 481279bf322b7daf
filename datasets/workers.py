"""Forked processes that make batches, one after the other in turn, and never keep the run waiting without end or words.

    worker w of W    its part of each of the first W steps, one W-th of the places; from there on whole steps, every W-th

So the first batch is there after a W-th of the time that one worker takes for it, and nobody waits for whole batches before the first W
steps are made. Later steps are whole, because parts have to be copied together.

A worker makes up to `ahead` batches that nobody has taken yet. It begins with `ahead` x W credits; a whole batch costs W of them, and
a part of one costs 1. The run sends them back, a byte a credit, when it has taken the batch. A worker sends each batch from its only
thread that works, as one message (parcel.py). So there is no queue, no thread that feeds one, and nothing that can be half sent.

Forking shares the index of a source (gigabytes for 10^8 paths) instead of copying it, and a worker starts in milliseconds. Two things
make a fork unsafe. Threads of the parent do not exist in the child: one that opens a parallel region waits for them for ever, so a
worker runs torch with one thread. And a lock that another thread holds at that moment stays locked: fork before opening stores and
starting threads. (With several ranks the process group has threads by then, and so has the watch over lost ranks; a worker calls
neither, and no lock of theirs.)

Ctrl-C in a terminal, a terminal that closes and the end of a batch job send their signal to every process, yet the parent still wants
batches while it ends its step and writes a checkpoint. So workers are deaf to SIGINT and SIGHUP, and to SIGTERM from anyone but the
parent. They end when they are told to, and within seconds of the parent's death, whatever they are doing.

Left out: a process in a call that the kernel does not let it leave (a disk that does not answer) ends when that call does; it is not
waited for.
"""

import atexit
import contextlib
import ctypes
import errno
import multiprocessing
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Protocol

import torch

from datasets.batch import Batch, NoBatch
from datasets.parcel import Gone, receive, send_batch, send_error
from datasets.parts import joined

_DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOP_POLL_SECONDS = 0.2  # between two looks at whether the run was asked to stop
_PARENT_POLL_SECONDS = 1.0
_GRACE_SECONDS = 0.5  # from SIGTERM to SIGKILL
_CREDIT = b"+"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


class Steps(Protocol):
    """What makes the batch of a step, or a part of it."""

    def part(self, step: int, part: int, parts: int) -> Batch:
        """Part `part` of `parts`; datasets/parts.py says which places it has, and puts parts together."""


@dataclass(frozen=True)
class Worker:
    """connection: to it."""

    number: int
    process: BaseProcess
    connection: socket.socket

    def __str__(self) -> str:
        return f"worker {self.number} of the loader (process {self.process.pid})"


class Workers:
    """`take(step)` for each step in turn, and `end()`.

    dataset   makes batches, in the workers
    steps     of which batches are made
    count     processes, forked at once; none where there are no steps
    ahead     batches that each of them makes before the first of them is taken
    Raises OSError where a process cannot be started.
    """

    def __init__(self, dataset: Steps, steps: range, count: int, ahead: int) -> None:
        self._steps, self._count = steps, count
        self._owner = os.getpid()
        self._workers: list[Worker] = []
        self._abandoned = False
        atexit.register(self.end)  # before multiprocessing's own, which waits for ever for one that is stopped
        # A worker inherits the block and keeps it; so there is no moment at which it would still listen.
        mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF_TO)
        try:
            for number in range(count if steps else 0):
                self._fork(dataset, number, ahead)
        except OSError as error:
            self.end()
            raise OSError(
                f"worker {number} of {count} cannot be started: {error.strerror}; {_what_to_change(error)}"
            ) from error
        except BaseException:
            self.end()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask_before)

    def _fork(self, dataset: Steps, number: int, ahead: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A worker that kept the parent's ends would keep the others, and itself, from noticing that the parent is gone.
        not_its_own = [ours, *(worker.connection for worker in self._workers)]
        process = multiprocessing.get_context("fork").Process(
            target=_work,
            args=(dataset, self._steps, number, self._count, ahead, theirs, not_its_own),
            name=f"loader-{number}",
            daemon=True,
        )
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns of every fork beside threads; why this one is safe is said at the top.
                warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._workers.append(Worker(number, process, ours))

    def take(
        self, step: int, patience_seconds: float, asked_to_stop: Callable[[], bool], stop_grace_seconds: float
    ) -> Batch:
        """The batch of a step; steps are taken in order.

        Raises TimeoutError where it does not come within `patience_seconds`; ChildProcessError where its worker is dead; NoBatch
        where it does not come within `stop_grace_seconds` of `asked_to_stop()` becoming true, or where `abandon` was called; and
        what the worker's dataset raised, with its traceback as a note.
        """
        patience = _Patience(step, patience_seconds, asked_to_stop, stop_grace_seconds)
        index = self._steps.index(step)
        makers = self._workers if index < self._count else [self._workers[index % self._count]]
        batch = joined([self._received(worker, patience) for worker in makers])
        # Not before the parts are put together and gone, or there would be a batch more in memory.
        for worker in makers:
            with contextlib.suppress(ConnectionError):  # told when its next batch is asked for
                worker.connection.send(_CREDIT * (self._count // len(makers)))
        return batch

    def _received(self, worker: Worker, patience: "_Patience") -> Batch:
        """What a worker has made of a step."""
        step, ended = patience.step, False
        while True:
            try:
                batch = receive(worker.connection)
            except Gone:
                raise _dead(worker, step) from None
            if batch is not None:
                assert batch.step == step, (batch.step, step)
                return batch
            if ended:  # something that it started keeps its connection open
                raise _dead(worker, step)
            if self._abandoned:
                raise NoBatch
            patience.require(worker)
            wait([worker.connection], timeout=min(_STOP_POLL_SECONDS, patience.seconds))
            # What it sent last is looked for once more. (Its sentinel would say no more than its connection: forks keep both open.)
            ended = not worker.process.is_alive()

    def abandon(self) -> None:
        """Let a `take` that is waiting in another thread raise NoBatch."""
        self._abandoned = True

    def end(self) -> None:
        """End all workers, also those that hang or are stopped, within about a second; for a second time it does nothing."""
        if os.getpid() != self._owner:
            return  # a fork of ours collects garbage that it inherited
        try:
            for worker in self._workers:
                worker.connection.close()
                worker.process.terminate()
            deadline = time.monotonic() + _GRACE_SECONDS
            for worker in self._workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:
            left = [worker.process for worker in self._workers if worker.process.is_alive()]
            for process in left:
                process.kill()
            for process in left:
                process.join(_GRACE_SECONDS)
        for worker in self._workers:
            if not worker.process.is_alive():
                worker.process.close()
        self._workers = []
        atexit.unregister(self.end)


class _Patience:
    """For how long the batch of a step is waited for, from now on."""

    def __init__(self, step: int, seconds: float, asked_to_stop: Callable[[], bool], stop_grace_seconds: float) -> None:
        self.step, self.seconds = step, seconds
        self._asked_to_stop, self._stop_grace_seconds = asked_to_stop, stop_grace_seconds
        self._started = time.monotonic()
        self._asked: float | None = None

    def require(self, worker: Worker) -> None:
        """Raises TimeoutError or NoBatch where it is at its end."""
        now = time.monotonic()
        if self._asked is None and self._asked_to_stop():
            self._asked = now
        if self._asked is not None and now - self._asked >= self._stop_grace_seconds:
            raise NoBatch(f"asked to stop while {worker} had not made the batch of step {self.step}")
        if now - self._started >= self.seconds:
            raise TimeoutError(
                f"{worker} has not made the batch of step {self.step} in {now - self._started:,.0f} s; is the disk or network that has "
                "the images still there? Else raise data.patience_seconds, or change data.workers"
            )


def shares(steps: range, number: int, count: int) -> Iterator[tuple[int, int, int]]:
    """(step, part, parts) of all that worker `number` of `count` makes, in its order."""
    for step in steps[:count]:
        yield step, number, count
    for step in steps[count + number :: count]:
        yield step, 0, 1


def _work(
    dataset: Steps,
    steps: range,
    number: int,
    count: int,
    ahead: int,
    to_parent: socket.socket,
    not_its_own: list[socket.socket],
) -> None:
    for connection in not_its_own:
        connection.close()
    # Nobody reads any more: the parent is gone, or about to end this process.
    with contextlib.suppress(ConnectionError):
        try:
            # More than one OpenMP thread in a forked process can hang (see the top).
            torch.set_num_threads(1)
            _keep_freed_memory()
            _obey_parent()
            credits, cpu_seconds = ahead * count, time.thread_time()
            for step, part, parts in shares(steps, number, count):
                while credits < count // parts:
                    if not (received := to_parent.recv(count)):
                        return
                    credits += len(received)
                credits -= count // parts
                batch = dataset.part(step, part, parts)
                before, cpu_seconds = cpu_seconds, time.thread_time()
                batch.cpu_seconds = cpu_seconds - before
                send_batch(to_parent, batch)
        except BaseException as error:
            send_error(to_parent, error)
        while to_parent.recv(1):  # until the parent has taken everything, or ends
            pass


def _keep_freed_memory() -> None:
    """Have the C library use what an image leaves for the next one, up to 1 GiB, instead of giving it back to the system.

    Memory that comes anew from the system costs a fault for each page; on a virtual machine all of them together took a tenth of the
    time of decoding and of four views. Where MALLOC_MMAP_THRESHOLD_ or MALLOC_TRIM_THRESHOLD_ is set, that holds; other C libraries
    than glibc have no such setting.
    """
    if {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ):
        return
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def _obey_parent() -> None:
    """On a thread: only a thread that waits for a signal is told who sent it; a handler is not."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def obey() -> None:
        while os.getppid() == parent.pid:
            info = signal.sigtimedwait({signal.SIGTERM}, _PARENT_POLL_SECONDS)
            if info is not None and info.si_pid == parent.pid:
                break
        os._exit(0)

    try:
        threading.Thread(target=obey, name="obey-parent", daemon=True).start()
    except RuntimeError as error:
        raise OSError(
            f"a worker of the loader cannot start a thread ({error}); {_what_to_change(OSError(errno.EAGAIN, ''))}"
        ) from error


def _what_to_change(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "lower data.workers, or raise the limit on open files (ulimit -n)"
    if error.errno == errno.ENOMEM:
        return "lower data.workers, or raise the limits on memory and processes (ulimit -v, ulimit -u)"
    return "lower data.workers, or raise the limit on processes (ulimit -u, or that of the container)"


def _dead(worker: Worker, step: int) -> ChildProcessError:
    worker.process.join(_GRACE_SECONDS)
    code = worker.process.exitcode
    if code is None:
        how, change = "closed its connection", "start again with data.workers=0"
    elif code >= 0:
        how, change = f"ended with exit code {code}", "start again with data.workers=0 to see why"
    elif -code == signal.SIGKILL:
        how = "was killed by SIGKILL"
        change = "most likely by the system's limit on memory: lower data.workers or schedule.batch"
    else:
        how = f"was killed by {_signal_name(-code)}"
        change = "start again; if it comes again, a decoder may have crashed on an image"
    return ChildProcessError(f"{worker} {how} before it had made the batch of step {step}; {change}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"
