"""One cell as a process of its own: started, watched, and ended with its whole tree.

    start        through engine/scaling/tied.py, in a session of its own, so that a Ctrl-C is the sweep's alone
    first step   when the first line of the cell's metrics.jsonl is there; looked at every 20 ms until then
    end          by itself, over its memory, over its time, or because the sweep is asked to stop; no process of it is left then

What a cell says on stdout and stderr goes to a file, whose end is its last words.

Several cells can take turns: one runs for some seconds while the processes of the others are stopped (SIGSTOP), then the next one does.
What drifts on the machine within minutes then meets all of them alike. The first turn of a cell lasts until its first step is made. A
step that a turn ends in takes as long as the turns of all others: figures leave it out (engine/scaling/figures.py). A cell's seconds are
those of its own turns.
"""

import math
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
from engine.scaling.tree import MARK, end_marked, send_marked

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


class CellProcess:
    """A cell that runs or is stopped. limit: closed at the end."""

    def __init__(self, task: Task, limit: MemoryLimit) -> None:
        self.task, self.limit = task, limit
        self.ended: Ended | None = None
        self._seconds = 0.0  # of the turns before this one
        self._first_step_seconds: float | None = None
        line = [sys.executable, "-S", "-E", str(_TIED), str(os.getpid()), limit.cgroup, *task.command]
        environment = {**os.environ, **task.environment, MARK: task.mark}
        with open(task.log, "wb") as log:
            self._since = time.monotonic()
            self._process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    @property
    def seconds(self) -> float:
        """Of its own turns, while it runs."""
        return self._seconds + time.monotonic() - self._since

    def take_turn(self, turn_seconds: float, asked_to_stop: Callable[[], bool]) -> None:
        """Look at it until it has ended, or its turn has and its first step is made; then it is stopped until `go_on`."""
        end = time.monotonic() + turn_seconds
        while self.ended is None and (self._first_step_seconds is None or time.monotonic() < end):
            has_ended = self._process.poll() is not None
            if self._first_step_seconds is None and _has_content(self.task.metrics):
                self._first_step_seconds = self.seconds
            if reason := self._reason_to_end(asked_to_stop):
                self.end(*reason)
            elif has_ended:
                self.end(*_said_by(self._process.returncode))
            else:
                time.sleep(_FIRST_SECONDS if self._first_step_seconds is None else _THEN_SECONDS)
        if self.ended is None:
            send_marked(self.task.mark, signal.SIGSTOP)
            self._seconds = self.seconds

    def go_on(self) -> None:
        self._since = time.monotonic()
        send_marked(self.task.mark, signal.SIGCONT)

    def end(self, status: str, why: str) -> None:
        """Whatever happens here, no process of it is left. `ended` has what became of it."""
        seconds = self.seconds
        self.close()
        limit = self.limit
        self.ended = Ended(
            status,
            why,
            seconds,
            self._first_step_seconds,
            limit.peak_bytes,
            limit.pss_bytes,
            _last_words(self.task.log),
        )

    def close(self) -> None:
        """End all its processes."""
        self._process.kill()
        end_marked(self.task.mark)
        self._process.wait()
        self.limit.close()

    def _reason_to_end(self, asked_to_stop: Callable[[], bool]) -> tuple[str, str] | None:
        """(status, why) where it may not go on."""
        if self.limit.is_over(self._process.pid):
            limit_gib = f"{self.limit.limit_bytes / 2**30:.2f} GiB"
            return OVER_MEMORY, f"its processes took more than {limit_gib} after {self.seconds:.1f} s"
        if self._process.poll() is not None:
            return None
        if self.seconds > self.task.seconds:
            return OVER_TIME, f"it ran for more than {self.task.seconds:g} s"
        if asked_to_stop():
            return STOPPED, "the sweep was asked to stop"
        return None


def run_cells(
    tasks: Sequence[tuple[Task, MemoryLimit]], turn_seconds: float | None, asked_to_stop: Callable[[], bool]
) -> list[Ended]:
    """Start them and wait for their ends; several take turns of so many seconds, in the order of the list. One alone has none.

    What became of each; of those that have not been started when the sweep is asked to stop, nothing. Whatever happens here, no
    process of them is left.
    """
    turn = math.inf if turn_seconds is None or len(tasks) == 1 else turn_seconds
    cells: list[CellProcess] = []
    try:
        for task, limit in tasks:
            if asked_to_stop() and cells:
                break
            cells.append(CellProcess(task, limit))
            cells[-1].take_turn(turn, asked_to_stop)
        while there := [cell for cell in cells if cell.ended is None]:
            for cell in there:
                cell.go_on()
                cell.take_turn(turn, asked_to_stop)
    finally:
        for cell in cells:
            if cell.ended is None:
                cell.close()
        for _, limit in tasks[len(cells) :]:  # of those that were not started
            limit.close()
    return [cell.ended for cell in cells if cell.ended is not None]


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
