"""What host memory there is for a run: the machine's, or that of the control groups (of either version) in which it runs."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

_ROOT = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**60  # version 1 writes a number near 2^63


class HostLimit(NamedTuple):
    bytes: int
    words: str  # whose limit it is, for people


class _Files(NamedTuple):
    """Of a control group: its limit, what it takes now, and how often the kernel has killed in it."""

    limit: str
    current: str
    events: str


_VERSION_2 = _Files("memory.max", "memory.current", "memory.events")
_VERSION_1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control")


def host_limit(root: Path = _ROOT) -> HostLimit:
    """The least of the machine's memory and the limits of the groups above this process."""
    found = [HostLimit(psutil.virtual_memory().total, "the machine's memory")]
    groups, files = _groups(root)
    for group in groups:
        with suppress(OSError, ValueError):  # "max" is no number
            found.append(
                HostLimit(int((group / files.limit).read_text()), f"the limit of the control group {group.name}")
            )
    return min(one for one in found if one.bytes < _NO_LIMIT)


def group_bytes(root: Path = _ROOT) -> int | None:
    """What the nearest group takes, page cache of its files included; None without groups."""
    return _first_number(root, lambda group, files: int((group / files.current).read_text()))


def killed_for_memory(root: Path = _ROOT) -> int:
    """How many processes the kernel has killed in the nearest group because memory ended; 0 where it does not tell."""

    def kills(group: Path, files: _Files) -> int:
        events = dict(line.split() for line in (group / files.events).read_text().splitlines())
        return int(events["oom_kill"])

    return _first_number(root, kills) or 0


def _first_number(root: Path, read: Callable[[Path, _Files], int]) -> int | None:
    groups, files = _groups(root)
    for group in groups:
        with suppress(OSError, ValueError, KeyError):
            return read(group, files)
    return None


def _groups(root: Path) -> tuple[list[Path], _Files]:
    """The groups of this process in which memory is counted, the nearest first; without the root, which has no limit."""
    lines: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        is_first_version = "memory" in controllers.split(",")
        top = root / "memory" if is_first_version else root
        if is_first_version or (not controllers and (root / "cgroup.controllers").exists()):
            here = top / inside.strip("/")
            groups = [group for group in (here, *here.parents) if group != top and group.is_relative_to(top)]
            return groups, _VERSION_1 if is_first_version else _VERSION_2
    return [], _VERSION_2
