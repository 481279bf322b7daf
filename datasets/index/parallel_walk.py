"""The walk of walk.py by several processes, with its order and its notes: a directory each, and the next ones ahead of their turn.

A disk that answers slowly, over a network above all, answers many at once. And on a local one most of the time of a walk is Python's.

Directories are listed by processes, and put together here in byte order. Which one is next is known from those before it: its parent
says which lie in it. The first AHEAD directories of what is still to come are always asked for, so nothing but them, and the images of
those that came out of turn, is in memory.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from datasets.index.rows import Gathered, Labels, Rows
from datasets.walk import Counts, Identity, Walk

AHEAD = 4  # directories that are asked for, a process
_PIECE = 1 << 16  # images of a directory that travel at a time


@dataclass
class _Directory:
    """Still to come. above: who the directories above it are."""

    prefix: bytes
    above: tuple[Identity, ...]
    listed: "Future[_Listed] | None" = None


@dataclass
class _Listed:
    """One directory. content: images and directories, in order; the labels of the images are numbered by `names`, for this one alone."""

    identity: Identity | None
    content: list[Rows | bytes]
    names: list[bytes]
    counts: Counts


def walked(walk: Walk, processes: int, is_wanted: Callable[[bytes], bool]) -> Iterator[tuple[Rows, list[bytes]]]:
    """(images, the names of their labels) of each directory in the order of the walk, several for a large one.

    is_wanted   whether a directory may have images that are asked for, by its path with a slash behind it; others are not listed
    When all has come, `walk.counts` are those of all directories. Raises what the walk does, OSError where a process dies.
    """
    walk.begin()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context, _begin, (walk,)) as pool:
        # The last one is next.
        coming: list[_Directory | tuple[Rows, list[bytes]]] = [_Directory(b"", ())]
        try:
            while coming:
                _ask_ahead(pool, coming, processes * AHEAD)
                item = coming.pop()
                if not isinstance(item, _Directory):
                    yield item
                    continue
                assert item.listed is not None
                found = item.listed.result()
                walk.counts.add(found.counts)
                if found.identity is None:
                    continue
                above = (*item.above, found.identity)
                for part in reversed(found.content):
                    if not isinstance(part, bytes):
                        coming.append((part, found.names))
                    elif is_wanted(part):
                        coming.append(_Directory(part, above))
        except BrokenProcessPool as error:
            raise OSError("a process that lists images died; start the job again, it goes on where it was") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ask_ahead(pool: ProcessPoolExecutor, coming: list["_Directory | tuple[Rows, list[bytes]]"], most: int) -> None:
    asked = 0
    for item in reversed(coming):
        if asked == most:
            return
        if isinstance(item, _Directory):
            asked += 1
            if item.listed is None:
                item.listed = pool.submit(_list, item.prefix, item.above)


_walk: Walk | None = None  # of a process that lists


def _begin(walk: Walk) -> None:
    global _walk
    _walk = walk


def _list(prefix: bytes, above: tuple[Identity, ...]) -> _Listed:
    assert _walk is not None
    _walk.counts = Counts()
    found = _walk.directory(prefix, above)
    if found is None:
        return _Listed(None, [], [], _walk.counts)
    content: list[Rows | bytes] = []
    labels = Labels()
    rows = Gathered(labels)
    for path, size_bytes, stamp in found[1]:
        is_directory = path.endswith(b"/")
        if len(rows) and (is_directory or len(rows) == _PIECE):
            content.append(rows.take())
        if is_directory:
            content.append(path)
        else:
            rows.add(path, size_bytes, stamp)
    if len(rows):
        content.append(rows.take())
    return _Listed(found[0], content, labels.names, _walk.counts)


def processes_to_use(wanted: int) -> int:
    """wanted: `data.workers`; 0 stands for as many as there are processors."""
    return wanted or os.cpu_count() or 1
