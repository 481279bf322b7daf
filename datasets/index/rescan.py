"""An index beside what is there now: which images are new, gone or changed.

The index is a few runs of paths in byte order (ImageIndex.runs), and a walk is in byte order too. So one pass over both merges them: no
set of all paths is built, and of the index some thousand entries are in memory at a time. The merge takes some two microseconds an image.

An image that is gone keeps its number: it is skipped when its turn comes, and counted. One whose size is another is taken as it is now, and
named; the index keeps the size that it had, by which the set is known. One that only has another time may be a copy: it is counted.
"""

import heapq
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from datasets.index.image_index import ImageIndex
from datasets.index.rows import GROUP, Gathered, Labels, Rows
from datasets.shown import shown
from datasets.walk import Found

_NAMED = 3


def _none() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class Changes:
    """Of the images that an index knows.

    gone       int64, which are not there, in rising order
    resized    int64, which have another size, in rising order; sizes, stamps: what they have now
    touched    how many have the same size and another time
    first_gone, first_resized   names of the first ones, for people
    """

    gone: np.ndarray = field(default_factory=_none)
    resized: np.ndarray = field(default_factory=_none)
    sizes: np.ndarray = field(default_factory=_none)
    stamps: np.ndarray = field(default_factory=_none)
    touched: int = 0
    first_gone: tuple[str, ...] = ()
    first_resized: tuple[str, ...] = ()

    def size_of(self, instance: int) -> int | None:
        """What the size of a changed image is now; None of the others."""
        if not len(self.resized):  # asked for every image that is read
            return None
        place = int(np.searchsorted(self.resized, instance))
        is_there = place < len(self.resized) and self.resized[place] == instance
        return int(self.sizes[place]) if is_there else None

    def lost(self, were_unreadable: Mapping[int, int]) -> int:
        """How many are gone or resized that could be read before: one that could not may have been repaired, or taken away."""
        either = np.concatenate([self.gone, self.resized])
        return int((~np.isin(either, np.fromiter(were_unreadable, np.int64, len(were_unreadable)))).sum())

    def notes(self) -> tuple[str, ...]:
        """Lines to tell."""
        lines = []
        if len(self.gone):
            first = _first(self.first_gone, len(self.gone))
            lines.append(f"{_images(len(self.gone))} gone and skipped; a number is never given to another one: {first}")
        if len(self.resized):
            lines.append(
                f"{_images(len(self.resized))} of another size than when they were listed, and taken as they are now: "
                f"{_first(self.first_resized, len(self.resized))}"
            )
        if self.touched:
            lines.append(f"{_images(self.touched)} as large as before, but written at another time: copies, or changed")
        return tuple(lines)


NO_CHANGES = Changes()


def compared(index: ImageIndex, walk: Iterable[Found], labels: Labels) -> tuple[Rows, Changes]:
    """(the images that the index does not have, in the order of the walk; what became of the others).

    labels: those of the index; names that are new are added.
    """
    new = Gathered(labels)
    gone, resized, sizes, stamps = array("q"), array("q"), array("q"), array("q")
    touched = 0
    listed = in_byte_order(index)
    nothing = (b"", -1, 0, 0)
    known, instance, size, stamp = next(listed, nothing)
    for path, size_now, stamp_now in walk:
        while instance >= 0 and known < path:
            gone.append(instance)
            known, instance, size, stamp = next(listed, nothing)
        if instance < 0 or known != path:
            new.add(path, size_now, stamp_now)
            continue
        if size_now != size:
            resized.append(instance)
            sizes.append(size_now)
            stamps.append(stamp_now)
        elif stamp_now != stamp:
            touched += 1
        known, instance, size, stamp = next(listed, nothing)
    while instance >= 0:
        gone.append(instance)
        known, instance, size, stamp = next(listed, nothing)
    gone_now = np.sort(np.array(gone, np.int64))
    order = np.argsort(np.array(resized, np.int64))
    changed, sizes_now, stamps_now = (np.array(column, np.int64)[order] for column in (resized, sizes, stamps))
    first = change_names(index, gone_now), change_names(index, changed)
    return new.take(), Changes(gone_now, changed, sizes_now, stamps_now, touched, *first)


def in_byte_order(index: ImageIndex) -> Iterator[tuple[bytes, int, int, int]]:
    """(path, instance, size, stamp) of all images in byte order of the paths."""
    runs = [_run(index, first, stop) for first, stop in pairwise([*index.runs, len(index)])]
    return runs[0] if len(runs) == 1 else heapq.merge(*runs)


def _run(index: ImageIndex, first: int, stop: int) -> Iterator[tuple[bytes, int, int, int]]:
    for start in range(first, stop, GROUP):
        rows = index.piece(start, min(start + GROUP, stop))
        sizes, stamps = rows.entries_n["size"].tolist(), rows.entries_n["stamp"].tolist()
        yield from zip(rows.each_path(), range(start, start + len(rows)), sizes, stamps, strict=True)


def change_names(index: ImageIndex, instances: np.ndarray) -> tuple[str, ...]:
    """Of the first of these images, for people."""
    return tuple(shown(index.entry(instance).path, 100) for instance in instances[:_NAMED].tolist())


def _images(count: int) -> str:
    return f"{count:,} image is" if count == 1 else f"{count:,} images are"


def _first(names: tuple[str, ...], count: int) -> str:
    return ", ".join(names) + (", ..." if count > len(names) else "")
