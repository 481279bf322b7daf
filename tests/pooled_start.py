"""Starts of launch.py in processes of their own, forked from the server of on_ranks.py, which has imported everything.

    start = pooled_start(["--config", "x.json"], directory, env={"TMPDIR": "/nowhere"}, limits={"RLIMIT_NOFILE": 20})
    start.code, start.out, start.err

    with Running(["--config", "x.json"], directory, count=2) as running:      # two ranks, in the background
        running.wait_for("step 10/")
        os.kill(running.pids[1], signal.SIGTERM)
        start = running.wait()

A start costs what the start itself costs, where a fresh interpreter takes ten seconds to import torch, DeepSpeed and the rest.
Environment, limits, streams and faults are its own, and signals reach it as they reach any process. Ranks get the variables that a
launcher sets. What a test changes in the modules of its own process, a start does not see; `fault` changes them in the start.

What is left out: the interpreter's own start, a launcher that hands signals on and ends the ranks when one of them has failed, and
waiting for the disk: nobody cuts the power here.
"""

import math
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Self

import pytest
from torch.distributed import TCPStore

from tests.conftest import leave_out_drawings, sync_nothing
from tests.on_ranks import server_context

_HOST = "127.0.0.1"
_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Start:
    """code: the exit code, negative where a signal ended it, None where it had to be killed; of several ranks the first that is not 0."""

    code: int | None
    out: str
    err: str

    @property
    def message(self) -> str:
        """What begins with "error: " on stderr."""
        return self.err[self.err.index("error: ") :].strip() if "error: " in self.err else ""


@dataclass(frozen=True)
class _Task:
    """What the process of a start is told."""

    arguments: list[str]
    directory: Path
    env: dict[str, str]
    limits: dict[str, int]
    fault: Callable[[], None] | None
    program: Callable[[list[str]], int] | None
    encoding: str
    drawings: bool
    streams: tuple[Path, Path]
    longest_seconds: int


class Running:
    """launch.py with these arguments in `directory`, in one process, or as `count` ranks; killed where the block ends before they do.

    env        variables that are set
    limits     names of resource.setrlimit -> value
    fault      called in each process before the start, a function at the top of a module
    program    what is started with the arguments in the place of launch.main, a function at the top of a module
    encoding   of the process's streams
    drawings   whether the report has them; they take longer than a tiny run
    pids       of the processes, in the order of ranks

    The streams go to the files stdout and stderr in `directory`; where there is a named pipe already, it is used.
    """

    def __init__(
        self,
        arguments: list[str],
        directory: Path,
        *,
        count: int = 1,
        env: dict[str, str] | None = None,
        limits: dict[str, int] | None = None,
        fault: Callable[[], None] | None = None,
        program: Callable[[list[str]], int] | None = None,
        encoding: str = "utf-8",
        drawings: bool = True,
        timeout_seconds: float = 300.0,
    ) -> None:
        self._streams = directory / "stdout", directory / "stderr"
        for path in self._streams:
            if not path.is_fifo():
                path.write_bytes(b"")
        launched: list[dict[str, str]] = [{}]
        if count > 1:  # as torchrun does: the ranks' table is the launcher's, and stays when rank 0 has left
            self._table = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
            launched = _launched(count, self._table.port)
        self._processes = []
        kept = {name: value for name, value in os.environ.items() if name not in _LAUNCHERS}
        for each in launched:
            task = _Task(
                arguments=arguments,
                directory=directory,
                env={**kept, "OMP_NUM_THREADS": "1", **each, **(env or {})},
                limits=limits or {},
                fault=fault,
                program=program,
                encoding=encoding,
                drawings=drawings,
                streams=self._streams,
                longest_seconds=math.ceil(timeout_seconds) + 60,
            )
            process = server_context().Process(target=_run, args=(task,))
            process.start()
            self._processes.append(process)
        # From here on, because the first start waits until the server is there.
        self._end = time.monotonic() + timeout_seconds
        self.pids = [process.pid or 0 for process in self._processes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()

    @property
    def out(self) -> str:
        """What was said on stdout so far."""
        return _text(self._streams[0])

    @property
    def err(self) -> str:
        return _text(self._streams[1])

    @property
    def is_at_work(self) -> bool:
        """Whether no process has ended yet."""
        return not wait([process.sentinel for process in self._processes], 0)

    def wait_for(self, words: str) -> None:
        """Until stdout has these words; AssertionError where a process ends before it says them, or the time is over."""
        while words not in self.out:
            is_in_time = time.monotonic() < self._end
            assert (is_in_time and self.is_at_work) or words in self.out, f'no "{words}" in:\n{self.out}\n{self.err}'
            time.sleep(0.02)

    def wait(self) -> Start:
        """What came of it, when all have ended, or the time is over."""
        codes = self._finish(self._end)
        code = next((code for code in codes if code != 0), 0)
        return Start(code, self.out, self.err)

    def _finish(self, end: float = 0.0) -> list[int | None]:
        """The exit codes; what has not ended at `end` is killed, and so is what a process has left behind in its group."""
        codes: list[int | None] = []
        for process in self._processes:
            if process.exitcode is None:
                process.join(max(0.0, end - time.monotonic()))
            codes.append(process.exitcode)
        for process, pid in zip(self._processes, self.pids, strict=True):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            if process.exitcode is None:
                process.kill()
            process.join()
        return codes


def pooled_start(arguments: list[str], directory: Path, *, timeout_seconds: float = 200.0, **options: object) -> Start:
    """Start launch.py with these arguments in `directory` and wait for its end; options: those of Running."""
    with Running(arguments, directory, timeout_seconds=timeout_seconds, **options) as running:
        return running.wait()


def _launched(count: int, port: int) -> list[dict[str, str]]:
    """The variables that torchrun sets, for each rank."""
    same = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    return [{**same, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="backslashreplace") if path.is_file() else ""


def _run(task: _Task) -> None:
    """What the process of a start does."""
    os.setpgid(0, 0)
    signal.alarm(task.longest_seconds)  # should pytest be killed, nobody else ends this process
    for number, path in enumerate(task.streams, start=1):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout = open(1, "w", encoding=task.encoding, errors="strict", closefd=False)  # noqa: SIM115  the process's own
    sys.stderr = open(2, "w", encoding=task.encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(task.directory)
    os.environ.clear()
    os.environ.update(task.env)
    sys.argv = ["launch.py", *task.arguments]
    import launch

    code = 1
    try:
        os.fsync = sync_nothing
        if not task.drawings:
            leave_out_drawings(pytest.MonkeyPatch())
        if task.fault:
            task.fault()
        for name, value in task.limits.items():
            number = getattr(resource, name)
            resource.setrlimit(number, (value, resource.getrlimit(number)[1]))
        code = (task.program or launch.main)(task.arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
    os._exit(code)
