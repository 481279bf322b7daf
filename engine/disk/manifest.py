"""Manifests: what makes a checkpoint one. A numbered JSON file that names, with a checksum each, everything that belongs to it.

    manifests/000000012.json     {"sha256": ..., "body": {"number": 12, "step": 1200, "files": {path: sha256}, "parts": [...], ...}}
    step-000001200/              trunk, momentum, active rows, the log, the block map, shared components: safetensors
    rows/000004-3fa29c/          generations of blocks (engine/disk/zarr_store.py)

A part is what one rank wrote of its lanes: {"rank": 1, "ranks": 4, "active": path of its active rows, "blocks": its block map,
"stored_blocks": how many}. The map's file has the generations that it speaks of, too, so that a manifest does not grow. Whoever works for
other lanes later reads what it needs of all parts, and nothing else. A run without rows has "rows": null; its parts are {"rank", "ranks"}
alone, and its log has no learning rates. "shared" names components that are the same on every rank, of which rank 0 writes one file each.

A checkpoint exists from the moment its manifest has its name, and not before; what no manifest names is garbage. The block map and the
log grow with the run, so a checkpoint writes only what changed since the last full one (`delta`) and names both. A full one is
due when the deltas since the last have together as many entries: a checkpoint then costs what changed, and now and then the whole,
in a way that adds the square root of both.

`recover` finds the newest checkpoint that is whole: manifest, files and resident blocks by checksum. Of all other blocks the run looks at
names and sizes while it goes on (engine/disk/patrol.py); their bytes are checked when they are read, and `job=store store.verb=verify`
checks all of them. Format 3 is read as well (engine/disk/format_3.py).

What a manifest says is used after engine/disk/manifest_body.py has looked at it: no path of it leads out of `checkpoints`. Then it is a
`Body` (engine/disk/body.py).
"""

import errno
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from engine.disk import format_3, shapes
from engine.disk.body import FORMAT, Body
from engine.disk.files import DIRECTORY, Files
from engine.disk.manifest_body import check_body
from engine.disk.patrol import missing_files
from engine.disk.saved_checkpoint import SavedCheckpoint
from engine.ranks.lanes import ALL_LANES, Lanes
from engine.rows.damaged import Damaged
from engine.rows.store import empty_block

MANIFESTS = "manifests"
# (block, its generation's name, checksums) -> what is wrong with it, or None
Known = dict[tuple[int, str, tuple[int, ...]], str | None]
_MAY_PASS = {
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOLCK, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENOTCONN),
}


def path_of(number: int) -> str:
    return f"{MANIFESTS}/{number:09d}.json"


def numbers(files: Files) -> list[int]:
    """Of the manifests that are there, whole or not, newest first."""
    found = (shapes.manifest_number(name) for name in files.listing(MANIFESTS) if name.endswith(".json"))
    return sorted((number for number in found if number is not None), reverse=True)


def next_number(files: Files) -> int:
    """One that nothing there has: no manifest, and none that is half-written or set aside."""
    found = (shapes.manifest_number(name) for name in files.listing(MANIFESTS))
    number = max([0, *(number for number in found if number is not None)]) + 1
    if number > shapes.MOST_MANIFESTS:
        raise OSError(f"{path_of(number - 1)} leaves no number for the next checkpoint; move it away")
    return number


def steps(files: Files) -> list[int]:
    """Of the checkpoints that are there, as far as their manifests can be read, newest first."""
    found = []
    for number in numbers(files):
        with suppress(Damaged, OSError):
            found.append(read(files, number).step)
    return found


def unnamed(files: Files, named: set[str]) -> list[str]:
    """What the engine wrote among the manifests and in step directories, and `named` has not; a directory where it has nothing in it.

    What is not the engine's by its name (engine/disk/shapes.py), or is a link, is not garbage.
    """
    found = []
    for directory, size in files.listing("").items():
        if size == DIRECTORY and (directory == MANIFESTS or shapes.is_step_directory(directory)):
            below = {f"{directory}/{name}": kind for name, kind in files.listing(directory).items()}
            ours = {path for path, kind in below.items() if kind >= DIRECTORY and shapes.is_file(path)}
            found += sorted(ours - named) if below.keys() & named else [directory]
    return found


def publish(files: Files, body: Body) -> None:
    """Make the checkpoint real. Everything that `body` names is durable already."""
    path = path_of(body.number)
    content = body.json()
    text = json.dumps({"sha256": _digest(content), "body": content}, indent=1)
    try:
        check_body(json.loads(text)["body"], body.number)  # before anything that is older goes
    except Damaged as error:
        raise AssertionError(f"{path} would not be read again: {error}") from error
    files.put_if_absent(path, [text.encode()])
    files.sync_directory(MANIFESTS)


def read(files: Files, number: int) -> SavedCheckpoint:
    """The manifest `number`, if it is what was written. Raises Damaged."""
    return read_at(files, path_of(number))


def read_at(files: Files, path: str) -> SavedCheckpoint:
    """The same of a manifest wherever it is; its name has its number."""
    number = shapes.manifest_number(path.rpartition("/")[2])
    assert number is not None, path
    try:
        content = json.loads(files.read(path))
        body = content["body"]
        if content["sha256"] != _digest(body):
            raise Damaged("its manifest does not match its checksum")
        if body["format"] not in (FORMAT, format_3.NUMBER):
            raise Damaged(f"format {shapes.shown(repr(body['format']))} instead of {FORMAT}")
        check_body(body, number)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"its manifest cannot be read: {shapes.shown(str(error))}") from None
    except FileNotFoundError:
        raise Damaged("its manifest is missing") from None
    except IsADirectoryError:
        raise Damaged("its manifest is a directory") from None
    return SavedCheckpoint(files, Body.of(body))


def inspect_checkpoint(checkpoint: SavedCheckpoint, is_newest: bool, lanes: Lanes = ALL_LANES) -> None:
    """Raises Damaged unless the checkpoint can be loaded; of one behind the newest, unless it is known what it names."""
    if is_newest:
        check(checkpoint, lanes)
    else:  # what it names must not be taken for garbage
        checkpoint.entries(checkpoint.store(), lanes)


def recover(
    files: Files, step: int | None = None, inspect: Callable[[SavedCheckpoint, bool], None] = inspect_checkpoint
) -> tuple[list[SavedCheckpoint], list[str]]:
    """Checkpoints, oldest first, the last of them whole; and a line for each newer one that is not.

    step      inspect checkpoints of this step alone
    inspect   reads a checkpoint, and raises Damaged where it is
    """
    checkpoints: list[SavedCheckpoint] = []
    complaints: list[str] = []
    for number in numbers(files):
        name = f"number {number}"
        try:
            candidate = read(files, number)
            name = candidate.name
            if step is not None and candidate.step != step:
                continue
            inspect(candidate, not checkpoints)
            checkpoints.append(candidate)
            if step is not None:
                break
        except Damaged as error:  # an OSError may pass, and what is whole must not be taken for garbage
            if number not in numbers(files):
                continue  # a run that goes on meanwhile has replaced it
            then = "left out" if checkpoints else "trying the one before"
            complaints.append(f"checkpoint {name} is damaged ({error}); {then}")
    if not checkpoints:  # so that they are not taken for what a killed run left
        for name in sorted(files.listing("")):
            if shapes.is_step_directory(name) and "manifest.json" in _names(files, name):
                complaints.append(f"checkpoint {name} has format 1, which this version cannot read")
    return checkpoints[::-1], complaints


def check(checkpoint: SavedCheckpoint, lanes: Lanes = ALL_LANES) -> None:
    """Raises Damaged, naming the first thing that is wrong, unless the checkpoint can be loaded; OSError where it cannot be read.

    lanes    look at what is theirs; rank 0 also at what is no lane's
    """
    problems = problems_of(checkpoint, every_block=False, lanes=lanes)
    if problems:
        raise Damaged(problems[0] + (f", and {len(problems) - 1} more" if len(problems) > 1 else ""))


def problems_of(
    checkpoint: SavedCheckpoint, every_block: bool, known: Known | None = None, lanes: Lanes = ALL_LANES
) -> list[str]:
    """A line for each file that is not what was written. Raises OSError where the machine fails in a way that may pass.

    every_block   read all blocks, not those alone that a resume reads first; go on after a damaged file, and name what cannot be read
    known         what came of blocks that were read before, for other checkpoints; what comes of these is added
    """
    named = (Damaged, OSError) if every_block else Damaged
    lines: list[str] = []
    maps = {path for part in checkpoint.parts(lanes) if part.blocks for path in part.blocks.paths}
    for path in checkpoint.files_of(lanes):
        if path in maps and not every_block:
            continue  # read below
        try:
            checkpoint.read(path)
        except named as error:
            lines.append(told(error))
    if lines and not every_block:
        return lines
    store = checkpoint.store()
    try:
        entries = checkpoint.entries(store, lanes)
    except named as error:
        return lines or [told(error)]
    missing = missing_files(store, entries) if every_block else []
    lines += missing
    bad = {line.split(" ", 2)[1] for line in missing}  # named already
    out = None
    known = {} if known is None else known
    first_read = []
    try:
        first_read = checkpoint.active(lanes)
        if lanes.rank == 0:
            checkpoint.log()
    except named as error:
        lines.append(told(error))
    resident = [block for active in first_read for block in active["resident"].tolist()]
    for block in sorted(entries) if every_block else resident:
        if block not in entries or str(block) in bad:
            continue
        version = block, store.generations[entries[block].generation].name, entries[block].checks
        if version not in known:
            try:
                # Room for a block only now: a file of its size is there.
                rows = checkpoint.row_sizes()
                out = out or empty_block(rows.block, rows.dim, np.dtype(rows.dtype), rows.momentum)
                store.read_entry(block, entries[block], out)
                known[version] = None
            except named as error:
                known[version] = told(error)
        if complaint := known[version]:
            lines.append(complaint)
    return list(dict.fromkeys(lines))  # what several files have in common is found once for each


def told(error: Damaged | OSError) -> str:
    """What is wrong with a file, in words. Raises an error that says nothing of it: with other rights, or later, it may be read."""
    if isinstance(error, OSError) and error.errno in _MAY_PASS:
        raise error
    return str(error)


def _names(files: Files, directory: str) -> set[str]:
    """Of what is in a directory; nothing where it is a link."""
    try:
        return set(files.listing(directory))
    except Damaged:
        return set()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
