"""All processes of a cell: found by a mark in their environment, ended together, and measured.

A launcher starts ranks, a rank starts workers, some in sessions of their own, and a killed parent leaves its children to others. But
each of them inherits the environment. So a variable that names the sweep finds them all, also those that an earlier sweep left behind.
The mark of a cell is that of its sweep, `#` and the cell's name.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from engine.ranks import process_table

MARK = "PIC_ENGINE_CELL"
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


def marked(mark: str) -> list[psutil.Process]:
    """The processes that live and have `MARK=mark`, or the mark of a cell of it, in their environment; not this one."""
    found = []
    for process in psutil.process_iter():
        with suppress(*_GONE, OSError):
            is_other = process.pid != os.getpid()
            own = process.environ().get(MARK, "")
            is_meant = own == mark or own.startswith(f"{mark}#")
            if is_other and is_meant and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def send_marked(mark: str, number: int) -> None:
    """Send a signal to them all."""
    for process in marked(mark):
        with suppress(*_GONE):
            process.send_signal(number)


def end_marked(mark: str, patience_seconds: float = 10.0) -> int:
    """Kill them all, and those that they start meanwhile; returns how many. RuntimeError where one does not go."""
    ended: set[int] = set()
    end = time.monotonic() + patience_seconds
    while there := marked(mark):
        if time.monotonic() > end:
            raise RuntimeError(f"processes {[one.pid for one in there]} of a cell cannot be ended")
        for process in there:
            ended.add(process.pid)
            with suppress(*_GONE):
                process.kill()
        time.sleep(0.02)
    return len(ended)


def tree_of(pid: int) -> list[int]:
    """The process and all below it."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except _GONE:
        return []


def resident_bytes(pids: Iterable[int]) -> int:
    """The sum of their resident sets; pages that two share count twice. A read of some 10 microseconds a process."""
    total = 0
    for pid in pids:
        with suppress(OSError, IndexError):
            total += process_table.resident_bytes(pid)
    return total


def proportional_bytes(pids: Iterable[int]) -> int:
    """The sum of their proportional set sizes: a page of n processes counts 1/n in each. The kernel walks all pages for it."""
    kib = 0
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kib += int(line.split()[1])
    return 1024 * kib
