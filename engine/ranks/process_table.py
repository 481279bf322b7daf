"""What the kernel tells of a process: of another one its parents and its end, of any one its memory."""

import os
import resource
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def fields(process: int) -> list[str]:
    """Of /proc/<process>/stat, from the state on: state, parent, ...

    Raises FileNotFoundError or ProcessLookupError where there is no such process.
    """
    # The name, in brackets, may hold anything.
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def is_there(process: int) -> bool:
    """Whether a process runs, or that cannot be seen; one that has ended and that its parent has not looked at yet does not."""
    try:
        return fields(process)[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True


def resident_bytes(process: int | str = "self") -> int:
    """Of one process, now; some 10 microseconds. Raises OSError where there is no such process, or the kernel does not tell."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE_BYTES


def peak_resident_bytes() -> int:
    """The most that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
