"""What lies below `checkpoints` that the engine did not write; and removing all that it did.

A run sweeps what a killed one left (engine/training/checkpoint.py), scrub what no checkpoint names (engine/jobs/store_jobs.py),
--fresh everything.
All three remove files that have a name of ours (engine/disk/shapes.py), and directories when nothing is left in them. Everything else stays
and is never read: it is told in a line.
"""

import os
from contextlib import suppress

from datasets.shown import few
from engine.disk import shapes
from engine.disk.files import DIRECTORY, WHAT, DiskFiles, Files, remove_any, remove_tree
from engine.disk.manifest import MANIFESTS, numbers, path_of
from engine.disk.zarr_store import ROWS
from engine.rows.damaged import Damaged

_SHOWN = 3


def foreign(files: Files, rows: bool = True) -> list[str]:
    """Paths of what the engine did not write, sorted: other names, links, and whatever is neither a file nor a directory.

    rows   look below `rows` too, which may have very many files
    What is below a foreign directory is not looked at.
    """
    found: list[str] = []
    directories = [""]
    while directories:
        above = directories.pop()
        for name, size in files.listing(above).items():
            path = f"{above}/{name}" if above else name
            if size == DIRECTORY and shapes.is_directory(path):
                directories += [path] * (rows or path != ROWS)
            elif size < 0 or not shapes.is_file(path):
                found.append(path)
    return sorted(found)


def foreign_line(found: list[str]) -> str | None:
    """A line that tells what `foreign` found, None where that is nothing."""
    if not found:
        return None
    names = few([shapes.shown(path) for path in found[:_SHOWN]], len(found))
    return f"among the checkpoints is what this engine did not write, which stays and is not read: {names}"


def remove_run(files: DiskFiles) -> list[str]:
    """Remove every file and directory of a run below the root; returns the paths of what stayed, none of which the engine wrote.

    The root goes too where it is empty and no link; what a linked root leads to stays, and so does the link.
    Raises ValueError, and then nothing was removed, where a new run could not start beside what stays, or a directory may not be written.
    """
    there = files.listing("")
    _require_removable(files, there)
    # First what makes a checkpoint one, the newest first: wherever this is cut short, what is left are whole checkpoints, or none.
    for number in numbers(files):
        remove_any(files, path_of(number))
    if MANIFESTS in there:
        files.sync_directory(MANIFESTS)
    for name, size in sorted(there.items()):
        if size == DIRECTORY and shapes.is_directory(name):
            remove_tree(files, name)
        elif size >= 0 and shapes.is_file(name) and name != shapes.LOCK_OF_LINKED:  # this job's own
            remove_any(files, name)
    if not files.root.is_symlink():
        with suppress(OSError):  # not empty, or a disk is mounted there
            files.root.rmdir()
    return foreign(files)


def _require_removable(files: DiskFiles, there: dict[str, int]) -> None:
    for name in (MANIFESTS, ROWS):
        if there.get(name, DIRECTORY) != DIRECTORY:
            raise ValueError(
                f"{files.root / name} {WHAT.get(there[name], 'is a file where a directory should be')}; nothing was removed"
            )
    for name, size in files.listing(MANIFESTS).items():
        if size < 0 and shapes.manifest_number(name) is not None:
            raise ValueError(f"{files.root / MANIFESTS / name} {WHAT[size]}; move it away; nothing was removed")
    directories = [""] if there else []
    while directories:
        above = directories.pop()
        place = files.root / above
        if not os.access(place, os.W_OK | os.X_OK | os.R_OK):
            raise ValueError(
                f"{place} may not be changed; make it writable, or choose another output; nothing was removed"
            )
        with suppress(Damaged):
            for name, size in files.listing(above).items():
                path = f"{above}/{name}" if above else name
                directories += [path] * (size == DIRECTORY and shapes.is_directory(path))
