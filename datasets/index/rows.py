"""What an index says of images, as arrays: an entry of 32 bytes each, and their paths as one block.

    entries   offset, size, stamp (8 bytes each), file, label (4 each)
    ends      where in the block of paths each one ends, 8 bytes
    paths     each with a zero byte behind it

    folder    size: of the file, -1 for a broken link     stamp: its mtime in ns            offset, file: 0
    zip       size: raw | stored << 32                    stamp: crc32 | method << 32 | flags << 48
              offset: of the local header                 file: which zip

A label is the number of a name, in the order in which the names were met; -1: none.

Two checksums (crc32c) go with each GROUP of entries. The identity is what makes an image itself: its path and its size and, in a
zip, the crc32 of its content. The form is all the rest. The identities are what a fingerprint is made of: a
file that is touched, or copied to another disk, is the same image still.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import google_crc32c
import numpy as np

GROUP = 4096
ENTRY = np.dtype([("offset", "<i8"), ("size", "<i8"), ("stamp", "<i8"), ("file", "<u4"), ("label", "<i4")])
ENDS = np.dtype("<i8")
NO_LABEL = -1
LOW_32 = 0xFFFFFFFF


class Entry(NamedTuple):
    """Of one image; see above."""

    path: bytes
    offset: int
    size: int
    stamp: int
    file: int
    label: int


@dataclass(frozen=True)
class Rows:
    """n images behind one another.

    entries_n   of the type ENTRY       ends_n   int64, counted from the first one's path       paths   one block
    """

    entries_n: np.ndarray
    ends_n: np.ndarray
    paths: bytes

    def __len__(self) -> int:
        return len(self.entries_n)

    def piece(self, start: int, stop: int) -> "Rows":
        """Those from start to stop - 1."""
        if start == 0 and stop == len(self):
            return self
        begin = int(self.ends_n[start - 1]) if start else 0
        end = int(self.ends_n[stop - 1]) if stop > start else begin
        return Rows(self.entries_n[start:stop], self.ends_n[start:stop] - begin, self.paths[begin:end])

    def entry(self, number: int) -> Entry:
        return Entry(self.path(number), *self.entries_n[number].item())

    def path(self, number: int) -> bytes:
        begin = int(self.ends_n[number - 1]) if number else 0
        return self.paths[begin : int(self.ends_n[number]) - 1]

    def each_path(self) -> Iterator[bytes]:
        begin, paths = 0, self.paths
        for end in self.ends_n.tolist():
            yield paths[begin : end - 1]
            begin = end

    def checks(self, kind: str) -> tuple[int, int]:
        """crc32c of the identity, and of the form."""
        entries_n, identity = self.entries_n, google_crc32c.value(self.paths)
        if kind == "zip":  # the size and the crc32 of the content, however it is stored
            for column in ("size", "stamp"):
                identity = google_crc32c.extend(identity, (entries_n[column] & LOW_32).tobytes())
        else:
            identity = google_crc32c.extend(identity, entries_n["size"].tobytes())
        form = google_crc32c.value(entries_n.tobytes())
        return identity, google_crc32c.extend(form, self.ends_n.astype(ENDS).tobytes())


def joined(pieces: Iterable[Rows]) -> Rows:
    """The images of all pieces, in their order."""
    all_pieces = [piece for piece in pieces if len(piece)]
    if len(all_pieces) == 1:
        return all_pieces[0]
    if not all_pieces:
        return Rows(np.empty(0, ENTRY), np.empty(0, ENDS), b"")
    begins = np.cumsum([0, *(int(piece.ends_n[-1]) for piece in all_pieces)])
    ends = [piece.ends_n + begin for piece, begin in zip(all_pieces, begins, strict=False)]
    entries_n = np.concatenate([piece.entries_n for piece in all_pieces])
    return Rows(entries_n, np.concatenate(ends), b"".join(piece.paths for piece in all_pieces))


class Labels:
    """Names of labels, numbered in the order in which they are met."""

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        self.number_of = {name: number for number, name in enumerate(names)}

    def number(self, name: bytes) -> int:
        return self.number_of.setdefault(name, len(self.number_of))

    def of_path(self, path: bytes) -> int:
        """The number of the first directory of a path; NO_LABEL where there is none."""
        folder, slash, _ = path.partition(b"/")
        return self.number(folder) if slash else NO_LABEL

    @property
    def names(self) -> list[bytes]:
        return list(self.number_of)


def renumbered(rows: Rows, names: Iterable[bytes], labels: Labels) -> Rows:
    """The same images with the numbers that `labels` has for the names of theirs; new names are added."""
    numbers = np.array([*(labels.number(name) for name in names), NO_LABEL], np.int32)
    entries_n = rows.entries_n.copy()
    entries_n["label"] = numbers[rows.entries_n["label"]]  # -1 takes the last
    return Rows(entries_n, rows.ends_n, rows.paths)


class Gathered:
    """Rows of a folder that come one by one."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self._begin()

    def _begin(self) -> None:
        self._paths, self._ends = bytearray(), array("q")
        self._sizes, self._stamps, self._labels = array("q"), array("q"), array("i")

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, path: bytes, size_bytes: int, stamp: int) -> None:
        self._paths += path
        self._paths.append(0)
        self._ends.append(len(self._paths))
        self._sizes.append(size_bytes)
        self._stamps.append(stamp)
        self._labels.append(self.labels.of_path(path))

    def take(self) -> Rows:
        """What has come since the last time."""
        entries_n = np.zeros(len(self), ENTRY)
        if len(self):
            entries_n["size"], entries_n["stamp"] = self._sizes, self._stamps
            entries_n["label"] = self._labels
        ends_n = np.array(self._ends, ENDS)
        rows = Rows(entries_n, ends_n, bytes(self._paths))
        self._begin()
        return rows
