"""An index that is made, or brought up to date, in a directory of its own.

A folder is listed in byte order by several processes (parallel_walk.py), and what came is added every few seconds. So a listing that was
killed goes on behind the last path that it added. An index that is whole is compared with what is there (rescan.py): what is new comes
behind, in a run of its own.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets.index.image_index import ImageIndex
from datasets.index.parallel_walk import walked
from datasets.index.rescan import NO_CHANGES, Changes, compared
from datasets.index.rows import Labels, Rows, joined, renumbered
from datasets.index.stored import Header, Writer, index_of
from datasets.walk import Found, Walk
from datasets.zip_images import listed_zip, with_new_members

_ADD_IMAGES, _ADD_SECONDS = 1 << 18, 5.0
Told = Callable[[int], None]  # hears how many images were looked at


@dataclass(frozen=True)
class Made:
    """added: images that came in this time; of those that were known, `changes`; notes: lines about what is left out."""

    index: ImageIndex
    added: int
    changes: Changes
    notes: tuple[str, ...]


def of_folder(directory: Path, walk: Walk, split: str, processes: int, told: Told) -> Made:
    """Raises ValueError where another job writes there, or what is there is the index of other images; and what a walk raises."""
    with Writer(directory, Header("folder", split)) as writer:
        _require(writer, "folder", split)
        before = writer.header.count
        changes = NO_CHANGES
        if writer.header.is_whole:
            index = index_of(directory, writer.header)
            labels = Labels(index.label_names)
            new, changes = compared(index, _one_by_one(walked(walk, processes, lambda _: True), told), labels)
            _add(writer, new, labels)
        else:
            _add_behind(writer, walk, processes, told)
        return Made(index_of(directory, writer.header), writer.header.count - before, changes, walk.notes)


def of_zip(directory: Path, place: Path, split: str, told: Told) -> Made:
    """The same of a zip, whose directory is read at once."""
    now, notes = listed_zip(place)
    told(len(now))
    with Writer(directory, Header("zip", split, list(now.files))) as writer:
        _require(writer, "zip", split)
        before = writer.header.count
        index, changes = now, NO_CHANGES
        if before:
            index, changes = with_new_members(index_of(directory, writer.header), now, may_move=False)
        for start in range(before, len(index), _ADD_IMAGES):
            rows = index.piece(start, min(start + _ADD_IMAGES, len(index)))
            writer.add(rows, index.label_names, begins_run=start == before)
        writer.put_header(is_whole=True)
        return Made(index_of(directory, writer.header), len(index) - before, changes, notes)


def _require(writer: Writer, kind: str, split: str) -> None:
    there = writer.header
    if (there.kind, there.split) != (kind, split):
        what = f"a {there.kind}" + (f", {there.split}" if there.split else "")
        raise ValueError(f"data.index: {writer.directory} is the index of {what}; choose another directory")


def _add_behind(writer: Writer, walk: Walk, processes: int, told: Told) -> None:
    """All that the walk finds behind the last path that is there."""
    index = index_of(writer.directory, writer.header)
    last = index.entry(len(index) - 1).path if len(index) else b""
    labels = Labels(index.label_names)
    waiting: list[Rows] = []
    since = time.monotonic()
    told(len(index))
    for rows, names in walked(walk, processes, lambda directory: directory > last or last.startswith(directory)):
        rows = renumbered(_behind(rows, last), names, labels)
        told(len(rows))
        waiting.append(rows)
        if sum(map(len, waiting)) >= _ADD_IMAGES or time.monotonic() - since > _ADD_SECONDS:
            _add(writer, joined(waiting), labels)
            waiting, since = [], time.monotonic()
    _add(writer, joined(waiting), labels)
    writer.put_header(is_whole=True)


def _add(writer: Writer, rows: Rows, labels: Labels) -> None:
    if len(rows):
        writer.add(rows, labels.names, begins_run=writer.header.is_whole or not writer.header.runs)


def _behind(rows: Rows, last: bytes) -> Rows:
    """Those whose path comes after `last`; they are in order."""
    if not last or not len(rows) or rows.path(0) > last:
        return rows
    first = next((number for number, path in enumerate(rows.each_path()) if path > last), len(rows))
    return rows.piece(first, len(rows))


def _one_by_one(pieces: Iterable[tuple[Rows, list[bytes]]], told: Told) -> Iterator[Found]:
    for rows, _ in pieces:
        told(len(rows))
        yield from zip(rows.each_path(), rows.entries_n["size"].tolist(), rows.entries_n["stamp"].tolist(), strict=True)
