"""One start of launch.py in a process of its own, forked from one that has imported everything: environment, limits and faults are its own.

    start = pooled_start(["--config", "x.json"], directory, env={"TMPDIR": "/nowhere"}, limits={"RLIMIT_NOFILE": 20})
    start.code, start.out, start.err

It takes what the start itself takes, where a fresh interpreter takes ten seconds to import torch, DeepSpeed and the rest. What a test
changes in the modules of its own process, a start does not see.
"""

import atexit
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

_REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Start:
    """code: the exit code, negative where a signal ended it, None where it had to be killed."""

    code: int | None
    out: str
    err: str

    @property
    def message(self) -> str:
        """What begins with "error: " on stderr."""
        return self.err[self.err.index("error: ") :].strip() if "error: " in self.err else ""


def pooled_start(
    arguments: list[str],
    directory: Path,
    *,
    env: dict[str, str] | None = None,
    limits: dict[str, int] | None = None,
    fault: Callable[[], None] | None = None,
    encoding: str = "utf-8",
    timeout_seconds: float = 60.0,
) -> Start:
    """Start launch.py with these arguments, in `directory`.

    env        variables that are set
    limits     names of resource.setrlimit -> value
    fault      called in the process before the start, a function at the top of a module
    encoding   of the process's streams
    """
    words = [directory / name for name in ("stdout", "stderr")]
    task = (arguments, directory, env or {}, limits or {}, fault, encoding, words, timeout_seconds)
    server = _server()
    assert server.stdin and server.stdout
    _send(server.stdin, task)
    code = pickle.load(server.stdout)
    out, err = (path.read_text(encoding="utf-8", errors="backslashreplace") if path.exists() else "" for path in words)
    return Start(code, out, err)


@cache
def _server() -> subprocess.Popen:
    """The process that starts are forked from."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_REPOSITORY)}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.pooled_start"],
        cwd=_REPOSITORY,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(server.kill)
    return server


def _send(stream: BinaryIO, what: object) -> None:
    pickle.dump(what, stream)
    stream.flush()


def serve() -> None:
    """Fork a start for each task on stdin; the exit codes go to stdout."""
    # What a run imports on its way. None of it starts a thread, which a fork would leave behind with its locks.
    import engine.evaluation.nearest
    import engine.jobs.pretrain
    import engine.jobs.start
    import engine.jobs.store_jobs
    import engine.methods.pic
    import engine.training.checkpoint
    import engine.training.run
    import launch

    assert launch and engine.training.checkpoint and engine.training.run and engine.jobs.store_jobs
    tasks, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    assert threading.active_count() == 1
    while True:
        try:
            *task, timeout_seconds = pickle.load(tasks)
        except EOFError:
            return
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            _run(*task)
        _send(answers, _ended(child, timeout_seconds))


def _ended(child: int, timeout_seconds: float) -> int | None:
    """The exit code of a child, None where it had to be killed; its own children go with it."""
    deadline = time.monotonic() + timeout_seconds
    code: int | None = None
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if code is None:
        os.waitpid(child, 0)
    return code


def _run(
    arguments: list[str],
    directory: Path,
    env: dict[str, str],
    limits: dict[str, int],
    fault: Callable[[], None] | None,
    encoding: str,
    words: list[Path],
) -> None:
    for number, path in enumerate(words, start=1):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout = open(1, "w", encoding=encoding, errors="strict", closefd=False)  # noqa: SIM115  the process's own
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(directory)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    for name, value in {"OMP_NUM_THREADS": "1", **env}.items():
        os.environ[name] = value
    import launch

    code = 1
    try:
        if fault:
            fault()
        for name, value in limits.items():
            number = getattr(resource, name)
            resource.setrlimit(number, (value, resource.getrlimit(number)[1]))
        code = launch.main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
