"""Keeping jobs out of each other's output directories: until this one ends, and out of a sweep's for good."""

import json
from contextlib import ExitStack
from pathlib import Path

from engine.disk.lock import Lock
from engine.results.output import RECORDS, places_to_lock, read_text


def lock(output: Path, cleanup: ExitStack) -> None:
    """Lock the output directory, and the place where its checkpoints really lie."""
    for place in places_to_lock(output):
        directory_lock = Lock(*place)
        cleanup.callback(directory_lock.release)
        if directory_lock.left_by:
            print(f"the lock of {directory_lock.left_by}, which ended without giving it back, was taken over")


def require_no_sweep(output: Path) -> None:
    """ValueError where a sweep has this directory, whose config.json another job would replace.

    Its config.json says so; where that is lost or cut short, its cells.jsonl does.
    """
    try:
        config = json.loads(read_text(output / "config.json"))
        is_sweep = isinstance(config, dict) and config.get("job") == "scale"
    except (OSError, ValueError, RecursionError):
        is_sweep = (output / RECORDS).is_file()
    if is_sweep:
        raise ValueError(f"{output} holds a sweep (job=scale); set output to a directory of its own")
