"""Limits of the machine are told as the machine's, whoever's words they come in; what DeepSpeed refuses stays the user's."""

import errno
import threading

import pytest
import torch

from engine.ranks import launcher
from engine.ranks.machine import first_line, machine_error
from engine.trunk import zero
from engine.trunk.optimizers import Sgd
from engine.trunk.zero import ZeroEngine


def raised_from(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (RuntimeError("can't start new thread"), errno.EAGAIN),
        (RuntimeError("Thread creation failed: Resource temporarily unavailable"), errno.EAGAIN),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), errno.EAGAIN),
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (MemoryError(), errno.ENOMEM),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), errno.ENOMEM),
        (RuntimeError("std::bad_alloc"), errno.ENOMEM),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), errno.ENOMEM),
        (raised_from(RuntimeError("a step failed"), OSError(errno.ENOMEM, "Cannot allocate memory")), errno.ENOMEM),
        (raised_from(Exception("x"), raised_from(KeyError("y"), MemoryError())), errno.ENOMEM),
    ],
    ids=str,
)
def test_a_limit_of_the_machine_is_an_error_of_the_system(error, number):
    told = machine_error(error)
    assert told is not None and told.errno == number
    assert len(str(told).splitlines()) == 1


@pytest.mark.parametrize(
    "error", [ValueError("out of memory"), AssertionError("stage 7"), RuntimeError("shape"), KeyError("a")]
)
def test_other_errors_are_not_the_machines(error):
    assert machine_error(error) is None


def test_causes_that_go_round_are_looked_at_once():
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__cause__, two.__cause__ = two, one
    assert machine_error(one) is None


def test_an_error_without_words_has_its_kind():
    assert first_line(AssertionError()) == "AssertionError"
    assert first_line(Exception("\n\n")) == "Exception"
    assert len(first_line(Exception("x" * 9999 + "\ny"))) < 250


def engine_whose_start_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def initialize(**_: object) -> None:
        raise error

    monkeypatch.setattr(zero.deepspeed, "initialize", initialize)
    ZeroEngine(
        torch.nn.Linear(2, 2),
        ranks=1,
        places=8,
        micro_batches=1,
        rule=Sgd(0.9, 0.0),
        clip=0.0,
        config={},
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        OSError(errno.EMFILE, "Too many open files"),
        MemoryError(),
        raised_from(Exception("could not start"), OSError(errno.ENOMEM, "Cannot allocate memory")),
    ],
    ids=str,
)
def test_a_limit_while_deepspeed_starts_is_not_its_block(monkeypatch, error):
    with pytest.raises(OSError) as caught:  # noqa: PT011  any of them: launch.py prints it as a line
        engine_whose_start_raises(monkeypatch, error)
    assert "deepspeed refuses" not in str(caught.value)


@pytest.mark.parametrize("error", [AssertionError(), Exception("stage 7 is not supported\nand more"), ValueError("no")])
def test_what_deepspeed_refuses_is_the_users_and_one_line(monkeypatch, error):
    with pytest.raises(ValueError, match="deepspeed refuses its block: ") as caught:
        engine_whose_start_raises(monkeypatch, error)
    assert len(str(caught.value).splitlines()) == 1


def test_no_thread_for_watching_the_launcher_is_an_error_of_the_system(monkeypatch):
    def limited(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(launcher, "launchers_above", lambda process: [1])
    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(OSError, match="no thread or process could be started"):
        launcher.stop_with_launcher()
