"""How much memory a cell may take, and how it is held to that. Two ways; the sweep says which one runs.

    control group    cgroup v2, where one can be made: the kernel counts every page of the whole tree (page cache of its files included),
                     and kills all of it at the limit. Nothing can slip through
    watcher          the resident sets of the tree are added up ten times a second. At the limit its proportional set size decides,
                     because resident sets count shared pages twice. What grows by more than the machine has in a tenth of
                     a second is met by the kernel's own killer, which is told to take the cell first (engine/scaling/tied.py)

With both, the peaks that are told are the watcher's, so that cells of two machines mean the same: the page cache is not in them.
"""

import itertools
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from engine.scaling.tree import proportional_bytes, resident_bytes, tree_of

_TREE_SECONDS = 1.0  # between two looks at which processes there are: that takes milliseconds
_PSS_SECONDS = 5.0  # the kernel holds up the process while it counts
_ROOT = Path("/sys/fs/cgroup")
_NUMBERS = itertools.count()  # of the groups of this process


class MemoryLimit(Protocol):
    """
    limit_bytes  that the whole tree may take
    peak_bytes   of the resident sets together
    pss_bytes    of the proportional set sizes, looked at every five seconds
    cgroup       directory of the control group that the cell is to join; empty: none
    """

    limit_bytes: int
    peak_bytes: int
    pss_bytes: int
    cgroup: str

    def is_over(self, pid: int) -> bool:
        """Whether the tree of `pid` took more than it may; called several times a second."""

    def close(self) -> None:
        """After the last process has ended."""


class Watcher:
    """limit_bytes: of the whole tree."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.cgroup = limit_bytes, ""
        self.peak_bytes = self.pss_bytes = 0
        self._pids: list[int] = []
        self._tree_at = self._pss_at = 0.0

    def is_over(self, pid: int) -> bool:
        now = time.monotonic()
        if now >= self._tree_at:
            self._pids, self._tree_at = tree_of(pid), now + _TREE_SECONDS
        resident = resident_bytes(self._pids)
        self.peak_bytes = max(self.peak_bytes, resident)
        if resident > self.limit_bytes or now >= self._pss_at:
            self._pss_at = now + _PSS_SECONDS
            self.pss_bytes = max(self.pss_bytes, proportional_bytes(self._pids))
        return resident > self.limit_bytes and self.pss_bytes > self.limit_bytes

    def close(self) -> None:
        """Nothing is open."""


class ControlGroup(Watcher):
    """A group of its own below `parent`, which exists until `close`. Raises OSError where it cannot be made."""

    def __init__(self, limit_bytes: int, parent: Path) -> None:
        super().__init__(limit_bytes)
        self._path = parent / f"pic-engine-{os.getpid()}-{next(_NUMBERS)}"
        with suppress(OSError):
            self._path.rmdir()  # of a killed sweep whose process had this number
        self._path.mkdir()
        try:
            (self._path / "memory.max").write_text(str(limit_bytes))
            (self._path / "memory.oom.group").write_text("1")
            if (self._path / "memory.swap.max").exists():  # without it the limit would only slow the cell down
                (self._path / "memory.swap.max").write_text("0")
        except OSError:
            self._path.rmdir()
            raise
        self.cgroup = str(self._path)

    def is_over(self, pid: int) -> bool:
        super().is_over(pid)
        events = dict(line.split() for line in (self._path / "memory.events").read_text().splitlines())
        return int(events.get("oom_kill", 0)) > 0

    def close(self) -> None:
        for _ in range(100):
            with suppress(OSError):  # the kernel is not done with the last process
                self._path.rmdir()
                return
            time.sleep(0.02)


def group_parent(root: Path = _ROOT, own: Path = Path("/proc/self/cgroup")) -> Path | None:
    """The nearest group above this process's own that hands the memory controller down; None where there is none to write in."""
    try:
        inside = next(line for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    here = root / inside.removeprefix("0::").lstrip("/")
    for group in (here, *here.parents):
        with suppress(OSError):
            controllers = (group / "cgroup.subtree_control").read_text().split()
            if "memory" in controllers and os.access(group, os.W_OK):
                return group
        if group == root:
            break
    return None


def memory_limit(limit_bytes: int) -> tuple[MemoryLimit, str]:
    """The limit of one cell, and in words which way it is."""
    parent = group_parent()
    if parent is None:
        return Watcher(limit_bytes), "watched ten times a second (no control group of version 2 can be made here)"
    try:
        return ControlGroup(limit_bytes, parent), f"a control group below {parent}"
    except OSError as error:
        return Watcher(limit_bytes), f"watched ten times a second (no control group: {error.strerror})"
