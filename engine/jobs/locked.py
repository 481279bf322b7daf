"""Keeping jobs out of each other's output directories: until this one ends, and out of a sweep's for good."""

import json
from contextlib import ExitStack
from pathlib import Path

from engine.disk import manifest
from engine.disk.files import checkpoint_files
from engine.disk.lock import Lock
from engine.results.json_files import read_text
from engine.results.output import places_to_lock
from engine.results.output_names import RECORDS


def lock(output: Path, cleanup: ExitStack) -> None:
    """Lock the output directory, and the place where its checkpoints really lie."""
    for place in places_to_lock(output):
        directory_lock = Lock(*place)
        cleanup.callback(directory_lock.release)
        if directory_lock.left_by:
            print(f"the lock of {directory_lock.left_by}, which ended without giving it back, was taken over")


def job_of(output: Path) -> object:
    """What config.json names as the job; None where it cannot be read, or names none."""
    try:
        config = json.loads(read_text(output / "config.json"))
    except (OSError, ValueError, RecursionError):
        return None
    return (config.get("job") or "") if isinstance(config, dict) else ""


def has_checkpoints(output: Path) -> bool:
    """Whether a run has left some there."""
    files = checkpoint_files(output)
    return files.root.is_dir() and bool(manifest.numbers(files))


def require_no_sweep(output: Path) -> None:
    """ValueError where a sweep has this directory, whose config.json another job would replace.

    Its config.json says so; where that is lost or cut short, its cells.jsonl does.
    """
    job = job_of(output)
    if job == "scale" or (job is None and (output / RECORDS).is_file()):
        raise ValueError(f"{output} holds a sweep (job=scale); set output to a directory of its own")
