"""job=index: list the images once, into a directory (`data.index`) from which every start opens them without a look at the rest.

The same command again lists anew: what is new comes behind, what is gone or changed is told. After a kill it goes on where it was.
`data.hash=true` reads all images besides, and tells which are exact copies.
"""

import argparse
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from configs import schema
from datasets.containers.folder import Folder
from datasets.containers.zip_archive import Zip
from datasets.excluded import Patterns
from datasets.index import making
from datasets.index.content_hash import copies_of, hashes_of
from datasets.index.parallel_walk import processes_to_use
from datasets.index.stored import COLUMNS, HEADER, LOCK, Writer
from datasets.indexed import IndexedImages
from datasets.shown import shown
from datasets.splits import Splits, find_splits
from datasets.walk import Walk
from datasets.zip_images import zip_of
from engine.results.progress import bytes_text

_SAID_SECONDS = 10.0  # between two lines where there is no terminal
_ADD_SECONDS = 10.0  # between two times that hashes are written


def run(config: schema.Config, options: argparse.Namespace) -> int:
    """Returns the exit code."""
    data = config.data
    if data.source not in ("folder", "zip"):
        raise ValueError(f"job=index is for folders and zips; {data.source} has no use for it: leave job out")
    if data.index is None:
        raise ValueError("data.index is null; set it to a directory for the index")
    if data.root is None:
        raise ValueError("data.root is null; set it to your images")
    root, directory = (Path(os.path.expanduser(path)) for path in (data.root, data.index))
    is_zip = data.source == "zip"
    exclude = () if is_zip else data.exclude
    splits = find_splits(root, exclude, ".zip" if is_zip else "") if root.is_dir() else Splits()
    _require_own(directory, splits.asked)
    _make(config, root, directory, Patterns(exclude, splits.trained, splits.beside))
    if splits.asked:
        _make(config, root, directory / splits.asked, Patterns(exclude, splits.asked, is_told=False))
    return 0


def _make(config: schema.Config, root: Path, directory: Path, exclude: Patterns) -> None:
    data, split, began = config.data, exclude.split, time.monotonic()
    processes = processes_to_use(data.workers)
    print(f"listing the images of {shown(root / split)} into {shown(directory)}, by {processes} processes", flush=True)
    container: Folder | Zip
    with Shown("listed") as listed:
        if data.source == "zip":
            place, split = zip_of(root, split)
            container = Zip(place)
            made = making.of_zip(directory, place, split, listed.add)
            reasons = made.notes
        else:
            container = Folder(root / split)
            walk = Walk(container.root, exclude, Path(config.output))
            made = making.of_folder(directory, walk, split, processes, listed.add)
            reasons = walk.reasons
    if not len(made.index):
        found = f" ({'; '.join(reasons[:2])})" if reasons else ""
        raise ValueError(f"data.root: no image under {shown(root / split)}{found}")
    seconds = time.monotonic() - began
    count = len(made.index)
    size_bytes = sum((directory / name).stat().st_size for name in COLUMNS)
    print(
        f"{count:,} images, {made.added:,} of them new, with {len(made.index.label_names):,} labels: {seconds:.1f} s, "
        f"{bytes_text(size_bytes)}, {size_bytes / count:.0f} bytes an image"
    )
    for note in [*made.changes.notes(), *made.notes]:
        print(note)
    if data.hash:
        _hash(IndexedImages(made.index, container, split=split, stored=directory), directory, processes)


def _hash(source: IndexedImages, directory: Path, processes: int) -> None:
    with Writer(directory) as writer, Shown("hashed", len(source)) as shown_hashes:
        shown_hashes.add(writer.header.hashed)
        waiting: list[np.ndarray] = []
        since = time.monotonic()
        for hashes in hashes_of(source, writer.header.hashed, processes):
            waiting.append(hashes)
            shown_hashes.add(len(hashes))
            if time.monotonic() - since > _ADD_SECONDS:
                writer.add_hashes(np.concatenate(waiting))
                waiting, since = [], time.monotonic()
        if waiting:
            writer.add_hashes(np.concatenate(waiting))
        copies = copies_of(writer.hashes())
    if copies.unknown:
        print(f"{copies.unknown:,} images could not be read, and have no hash")
    if not copies.groups:
        print("no image is an exact copy of another")
        return
    sets = "1 set" if copies.groups == 1 else f"{copies.groups:,} sets; the first ones"
    print(f"{copies.images:,} images are exact copies of one another, in {sets}:")
    for instances in copies.first:
        print("  " + ", ".join(source.instance_name(instance) for instance in instances))


class Shown:
    """How many images are done: a live line where there is a terminal, and lines now and then where there is none."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what, self._total, self._done, self._said = what, total, 0, time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(file=sys.stdout), transient=True)
            self._task = self._bar.add_task(what, total=total)
        self._live: AbstractContextManager[object] = self._bar or nullcontext()

    def __enter__(self) -> "Shown":
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def add(self, count: int) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif time.monotonic() - self._said > _SAID_SECONDS:
            self._said = time.monotonic()
            print(f"{self._done:,}{f' of {self._total:,}' if self._total else ''} images {self._what}", flush=True)


def _require_own(directory: Path, asked: str) -> None:
    """ValueError where the directory has something else in it than an index."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f"data.index: {shown(directory)} is a file; choose a directory")
    ours = {HEADER, LOCK, f"{HEADER}.partial", *COLUMNS, asked}
    strange = sorted(name for name in os.listdir(directory) if name not in ours)
    if strange:
        raise ValueError(
            f"data.index: {shown(directory)} holds {shown(strange[0], 100)}, which is no part of an index; choose another directory"
        )
