"""Ending when the launcher is told to end.

Whoever takes a machine back sends SIGTERM to what was started on it: `deepspeed`, `torchrun`, or every process of a job. torchrun
hands it on, and so does deepspeed's launcher of a node; but the command `deepspeed` itself ends without a word to that launcher,
whose ranks would go on unseen. So each rank looks once a second whether those above it are still there, and stops as by SIGTERM when
one is gone.

    deepspeed                        the command
      deepspeed.launcher.launch      the launcher of a node
        launch.py                    a rank

Only processes that are known launchers are watched: a run may outlive the shell that it was started from.
"""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from engine.ranks.machine import machine_error
from engine.ranks.process_table import fields

_LAUNCHERS = ("deepspeed", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run")


def stop_with_launcher(
    stop: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM), poll_seconds: float = 1.0
) -> list[int]:
    """Begin to watch the launchers above this process; returns their numbers, nearest first. `stop` is called once, on a thread.

    Raises OSError where no thread can be started.
    """
    above = launchers_above(os.getppid())
    if above:
        watching = threading.Thread(
            target=_watch, args=(above, stop, poll_seconds), name="stop-with-launcher", daemon=True
        )
        try:
            watching.start()
        except RuntimeError as error:  # of a limit on processes
            raise machine_error(error) or error from error
    return above


def launchers_above(process: int) -> list[int]:
    """`process` and those above it, as far as they are launchers."""
    found = []
    while process > 1 and _is_launcher(process):
        found.append(process)
        process = _parent(process)
    return found


def _watch(above: list[int], stop: Callable[[], None], poll_seconds: float) -> None:
    chain = [os.getpid(), *above]
    # A process that ends leaves its children to another, so it is enough to look who is above whom.
    while all(_parent(child) == parent for child, parent in itertools.pairwise(chain)):
        time.sleep(poll_seconds)
    stop()


def _parent(process: int) -> int:
    """0 where there is no such process."""
    try:
        return int(fields(process)[1])
    except (OSError, IndexError, ValueError):
        return 0


def _is_launcher(process: int) -> bool:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    if words[0].rpartition("/")[2].startswith("python"):  # what it runs: a script, or a module after -m
        words = [word for word in words[1:] if not word.startswith("-")] or [""]
    return words[0].rpartition("/")[2] in _LAUNCHERS
