"""Keeping other jobs out of an output directory until this one ends."""

from contextlib import ExitStack
from pathlib import Path

from engine.disk.lock import Lock
from engine.results.output import places_to_lock


def lock(output: Path, cleanup: ExitStack) -> None:
    """Lock the output directory, and the place where its checkpoints really lie."""
    for place in places_to_lock(output):
        directory_lock = Lock(*place)
        cleanup.callback(directory_lock.release)
        if directory_lock.left_by:
            print(f"the lock of {directory_lock.left_by}, which ended without giving it back, was taken over")
