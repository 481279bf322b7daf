"""JSON as the engine leaves it in an output directory, and as it reads it again: only from regular files, which may be anything."""

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any


def json_text(content: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is not finite is null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def read_text(path: Path) -> str:
    """The text of a regular file; OSError where there is something else, which is not waited for."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, encoding="utf-8", errors="backslashreplace") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def summary_of(output: Path) -> dict[str, Any]:
    """summary.json; nothing where it is not there, or cannot be read."""
    try:
        summary = json.loads(read_text(output / "summary.json"))
    except (OSError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}


def is_finished(output: Path, end: int) -> bool:
    """Whether an earlier run came to its end, with its last evaluation, report and summary."""
    summary = summary_of(output)
    is_there = (output / "report.html").is_file()
    return is_there and summary.get("status") == "finished" and summary.get("steps") == end


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
