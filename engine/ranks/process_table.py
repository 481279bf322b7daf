"""What the kernel tells of another process, from /proc; whose parents a rank looks at, and whose end."""

from pathlib import Path


def fields(process: int) -> list[str]:
    """Of /proc/<process>/stat, from the state on: state, parent, ...

    Raises FileNotFoundError or ProcessLookupError where there is no such process.
    """
    # The name, in brackets, may hold anything.
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
