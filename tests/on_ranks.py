"""A test's function on several ranks: real processes with a real process group, on this machine's CPU.

    def total(ranks, value):
        return ranks.sum(torch.tensor([value + ranks.rank]), "test")

    on_ranks(3, total, 1.0)     # [array([6.]), array([6.]), array([6.])]

What a rank runs is found by its name, so it is a function at the top of a module, not a lambda nor a function in a test. What it
is given and returns is pickled; tensors come back as numpy arrays (bfloat16 as float32). Every rank has one thread, the caller's
environment beside what a launcher sets, and the caller's filters of warnings, so that a warning is an error there too.

Ranks are forked from a server that has imported torch already: three are there after 0.1 s, where fresh processes take seconds. It is
started by the first call and serves until pytest ends; what a test changes in the modules of its own process, ranks do not see.
No rank leaves before all have answered: one that fails, or has nothing more to do, does not make the others fail at its sockets.

What is left out: several machines, GPUs, and a rank that dies on purpose; a process that ends without an answer fails the test.
"""

import contextlib
import faulthandler
import io
import math
import multiprocessing
import os
import pickle
import random
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed import TCPStore

from engine.ranks import ranks as processes

_REPOSITORY = Path(__file__).resolve().parent.parent
_CONTEXT = multiprocessing.get_context("forkserver")
# Imported once, before any fork. What else tests on ranks import, every rank imports for itself; what takes long and starts no
# thread (test_on_ranks.py) may be added. torch imports the second one, and with it sympy, at its first backward, the third at its first
# optimizer, and DeepSpeed the fourth and those beside it in its first engine: five seconds of a core for every rank that imports them by
# itself. PIL imports its plugins when it first writes an image. From tests.engine.harness on it is what a run imports on its way
# (pooled_start.py), with the source and the views of conftest's TINY.
_PRELOADED = [
    "torch",
    "torch.fx.experimental.symbolic_shapes",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "pytest",
    "engine.ranks.ranks",
    "engine.trunk.zero",
    "deepspeed.runtime.zero.muon.original_muon",
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_comm",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.triton_ops",
    "numpy.ctypeslib",
    *(f"PIL.{name}ImagePlugin" for name in ("Bmp", "Gif", "Jpeg", "Png", "Ppm")),
    "tests.engine.harness",
    "datasets.digits",
    "datasets.grey",
    "datasets.probes",
    "engine.evaluation.nearest",
    "engine.evaluation.views",
    "engine.jobs.export",
    "engine.jobs.knn",
    "engine.jobs.pretrain",
    "engine.jobs.start",
    "engine.jobs.store",
    "engine.methods.pic",
    "engine.planning.measured",
    "engine.training.run",
    "engine.training.checkpoint",
    "engine.trunk.trunk",
    "launch",
    "tests.conftest",
    "tests.frozen_heap",
]
_CONTEXT.set_forkserver_preload(_PRELOADED)
_GRACE_SECONDS = 1.0  # for other ranks to fail too, once one has
_STACK_SECONDS = 30.0  # for a rank that is late to write where it is
# All of what faulthandler writes down to _run, or to where it cuts a deep stack.
_STACK = re.compile(r'most recent call first.*(on_ranks\.py", line \d+ in _run|\n  \.\.\.)\n', re.DOTALL)
_SAID_CHARACTERS = 6000  # of each rank, in a failure


def on_ranks(count: int, function: Callable[..., Any], *arguments: Any, timeout_seconds: float = 200.0) -> list[Any]:
    """function(ranks, *arguments) on `count` processes -> what each returned, in the order of ranks.

    Raises what a rank raised, with its traceback, and with what the others did and said, as notes (of ranks that fail at the same time,
    what the lowest raised); ChildProcessError where a rank ended without an answer; TimeoutError where one has not answered after
    timeout_seconds, with its stack. None of the processes is there any more afterwards.
    """
    packed = pickle.dumps((function, arguments))
    server_context()
    # As under torchrun the ranks' table is the caller's; the kernel gives it a port that is free.
    table = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launched = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(table.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as cleanup:
        children = []
        for rank in range(count):
            environment = {**os.environ, **launched, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            child = _Child(rank, Path(directory) / str(rank), packed, environment, timeout_seconds)
            cleanup.callback(child.end)
            children.append(child)
        _collect(children, timeout_seconds)
        answers = [child.answer for child in children if child.answer and not child.answer.failed]
        if len(answers) < count:
            raise _failure(children, timeout_seconds)
        return [answer.result for answer in answers]


def server_context() -> multiprocessing.context.ForkServerContext:
    """What starts processes from the one server of this process, which has imported torch and is running when this returns."""
    # Libraries count their threads when they are loaded, and the server looks for modules where it is started.
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(_REPOSITORY)):
        forkserver.ensure_running()
    return _CONTEXT


@dataclass(frozen=True)
class _Answer:
    """What a rank sends: a result, or the exception that ended its function, with its traceback."""

    result: Any = None
    failed: BaseException | None = None
    trace: str = ""


class _Child:
    """The process of one rank, and what it said."""

    def __init__(self, rank: int, said: Path, packed: bytes, environment: dict[str, str], timeout: float) -> None:
        self.rank, self._said = rank, said
        self.answer: _Answer | None = None
        self.channel, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(
            target=_run, args=(theirs, said, packed, environment, _filters(), timeout), name=f"rank {rank}"
        )
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid
        theirs.close()

    def receive(self) -> _Answer:
        """Its answer, when there is something to receive."""
        try:
            self.answer = pickle.loads(self.channel.recv_bytes())
            assert isinstance(self.answer, _Answer)
        except (EOFError, ConnectionResetError):
            self.process.join(60)  # the server, which is busy, tells how it ended
            text = f"rank {self.rank} ended without an answer, exit code {self.process.exitcode}"
            self.answer = _Answer(failed=ChildProcessError(text), trace=text)
        return self.answer

    def said(self) -> str:
        return self._all_said().strip()[-_SAID_CHARACTERS:] or "(nothing)"

    def show_stack(self) -> None:
        """Have the process write where it is to what it said."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)

    def has_shown_stack(self) -> bool:
        """Whether its stack can be read in what it said, or will never be there. The main thread, which calls _run, comes last."""
        return self.process.exitcode is not None or bool(_STACK.search(self._all_said()))

    def end(self) -> None:
        """Let it go where it has answered; kill it, with the processes that it started, where it has not or does not go."""
        self.channel.close()
        self.process.join(5 if self.answer else 0)
        if self.process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):  # there is no such group before the process has made it
                os.killpg(self.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join()
        self.process.close()

    def _all_said(self) -> str:
        return self._said.read_text(errors="replace") if self._said.exists() else ""


def _collect(children: list[_Child], timeout_seconds: float) -> None:
    """Receive answers until all are there, the time is over, or a rank has failed and others had time to fail too."""
    deadline = time.monotonic() + timeout_seconds
    waiting = {child.channel: child for child in children}
    while waiting and (ready := wait(list(waiting), max(0.0, deadline - time.monotonic()))):
        for channel in ready:
            assert isinstance(channel, Connection)
            if waiting.pop(channel).receive().failed:
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)


def _failure(children: list[_Child], timeout_seconds: float) -> BaseException:
    """What to raise, with a note that shows every rank."""
    late = [child for child in children if child.answer is None]
    for child in late:
        child.show_stack()
    deadline = time.monotonic() + _STACK_SECONDS
    while not all(child.has_shown_stack() for child in late) and time.monotonic() < deadline:
        time.sleep(0.02)
    failures = [child.answer.failed for child in children if child.answer and child.answer.failed]
    failures.sort(key=lambda failed: not isinstance(failed, ChildProcessError))  # a lost process makes the others fail
    ranks = ", ".join(str(child.rank) for child in late)
    error = [*failures, TimeoutError(f"no answer from rank {ranks} of {len(children)} in {timeout_seconds:g} s")][0]
    for child in children:
        state = "is at work" if child.answer is None else child.answer.trace or "has returned"
        error.add_note(f"---- rank {child.rank} {state.strip()}\n---- and said: {child.said()}")
    return error


def _run(
    channel: Connection,
    said: Path,
    packed: bytes,
    environment: dict[str, str],
    filters: list[tuple[Any, ...]],
    timeout_seconds: float,
) -> None:
    """What the process of a rank does."""
    os.setsid()  # a group of its own, without the terminal's Ctrl-C
    signal.alarm(math.ceil(timeout_seconds) + 30)  # should pytest be killed, nobody else ends this process
    with said.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        function, arguments = pickle.loads(packed)
        warnings.resetwarnings()
        for each in reversed(filters):
            warnings.filterwarnings(*each)
        ranks = processes.start(torch.device("cpu"), timeout_seconds)
        answer = _pickled(_Answer(function(ranks, *arguments)))
    except BaseException as error:  # SystemExit and pytest.fail too
        answer = _pickled(_Answer(failed=_sendable(error), trace=traceback.format_exc()))
    channel.send_bytes(answer)
    with contextlib.suppress(EOFError, ConnectionResetError):
        channel.recv_bytes()  # returns when the test closes its end
    os._exit(0)  # whatever threads the function left


class _Pickler(pickle.Pickler):
    """Tensors as numpy arrays; torch would send them through shared memory that ends with the process."""

    def reducer_override(self, thing: Any) -> Any:
        if not isinstance(thing, torch.Tensor):
            return NotImplemented
        values = thing.detach().cpu()
        return _itself, ((values.float() if values.dtype is torch.bfloat16 else values).numpy(),)


def _itself(thing: Any) -> Any:
    return thing


def _pickled(thing: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(thing)
    return buffer.getvalue()


def _sendable(error: BaseException) -> BaseException:
    """The exception, or one with its text where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _filters() -> list[tuple[Any, ...]]:
    """This process's filters of warnings, as the arguments of warnings.filterwarnings."""
    return [
        (action, getattr(message, "pattern", message) or "", category, getattr(module, "pattern", module) or "", line)
        for action, message, category, module, line in warnings.filters
    ]


def taken_port() -> socket.socket:
    """A socket at a port that nobody else draws while it is open. A server that sets SO_REUSEADDR, as torch's table does, may listen there.

    The port is outside the range from which the kernel takes ports by itself: nobody connects from it before that server is there.
    """
    while True:
        taken = socket.socket()
        try:
            taken.bind(("127.0.0.1", random.SystemRandom().randrange(20_000, 32_000)))
        except OSError:
            taken.close()
            continue
        # After bind, which is to fail where another has the port.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return taken
