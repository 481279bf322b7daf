"""One cell as a process of its own: started, watched, and ended with its whole tree.

    start        through engine/scaling/tied.py, in a session of its own, so that a Ctrl-C is the sweep's alone
    first step   when the first line of the cell's metrics.jsonl is there; looked at every 20 ms until then
    end          by itself, over its memory, over its time, or because the sweep is asked to stop; no process of it is left then

What a cell says on stdout and stderr goes to a file, whose end is its last words.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.shown import shown_lines
from engine.scaling.memory_limit import MemoryLimit
from engine.scaling.tree import MARK, end_marked

ENDED, OVER_MEMORY, OVER_TIME, FAILED, STOPPED = "ended", "killed for memory", "over its time", "failed", "stopped"
_TIED = Path(__file__).with_name("tied.py")
_FIRST_SECONDS, _THEN_SECONDS = 0.02, 0.1  # between two looks, before the first step and after it
_LAST_LINES, _LAST_CHARACTERS = 8, 1200


@dataclass(frozen=True)
class Ended:
    """
    status, why   one of the five words above, and what happened
    seconds       from the start to the end
    first_step_seconds   from the start to the end of the first step, imports included; None where none was made
    peak_bytes, pss_bytes   of the tree, see engine/scaling/memory_limit.py
    last_words    the end of what it printed
    """

    status: str
    why: str
    seconds: float
    first_step_seconds: float | None
    peak_bytes: int
    pss_bytes: int
    last_words: str


@dataclass(frozen=True)
class Task:
    """
    command   the words of the process          mark      of the environment, see engine/scaling/tree.py
    log       the file for what it prints       metrics   the file whose first line says that a step is done
    seconds   that it may take                  environment   variables beside those of the sweep
    """

    command: Sequence[str]
    mark: str
    log: Path
    metrics: Path
    seconds: float
    environment: Mapping[str, str]


def run_cell(task: Task, limit: MemoryLimit, asked_to_stop: Callable[[], bool]) -> Ended:
    """Start it and wait for its end. Whatever happens here, no process of it is left."""
    line = [sys.executable, "-S", "-E", str(_TIED), str(os.getpid()), limit.cgroup, *task.command]
    environment = {**os.environ, **task.environment, MARK: task.mark}
    with open(task.log, "wb") as log:
        start = time.monotonic()
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        first, ended = _watch(process, task, limit, asked_to_stop, start)
    finally:
        seconds = time.monotonic() - start
        process.kill()
        end_marked(task.mark)
        process.wait()
        limit.close()
    status, why = ended or _said_by(process.returncode)
    return Ended(status, why, seconds, first, limit.peak_bytes, limit.pss_bytes, _last_words(task.log))


def _watch(
    process: subprocess.Popen[bytes],
    task: Task,
    limit: MemoryLimit,
    asked_to_stop: Callable[[], bool],
    start: float,
) -> tuple[float | None, tuple[str, str] | None]:
    """(seconds to the first step, (status, why) where it did not end by itself)."""
    first: float | None = None
    while True:
        has_ended = process.poll() is not None
        seconds = time.monotonic() - start
        if first is None and _has_content(task.metrics):
            first = seconds
        if limit.is_over(process.pid):
            limit_gib = f"{limit.limit_bytes / 2**30:.2f} GiB"
            return first, (OVER_MEMORY, f"its processes took more than {limit_gib} after {seconds:.1f} s")
        if has_ended:
            return first, None
        if seconds > task.seconds:
            return first, (OVER_TIME, f"it ran for more than {task.seconds:g} s")
        if asked_to_stop():
            return first, (STOPPED, "the sweep was asked to stop")
        time.sleep(_FIRST_SECONDS if first is None else _THEN_SECONDS)


def _said_by(code: int) -> tuple[str, str]:
    """(status, why) of an exit code."""
    if code == 0:
        return ENDED, "exit code 0"
    if code > 0:
        return FAILED, f"exit code {code}"
    name = signal.Signals(-code).name
    hint = ", which the kernel sends where the machine's memory has run out" if name == "SIGKILL" else ""
    return FAILED, f"ended by {name}{hint}"


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _last_words(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _LAST_CHARACTERS))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return shown_lines("\n".join(lines[-_LAST_LINES:]))
