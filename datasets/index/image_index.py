"""The index of a set of images: number -> entry, for ever. It may lie on the disk, in memory, or both.

    index = opened(directory)         # stored.py: 10^8 images in milliseconds
    index.entry(17).path

Nothing walks over it when it is opened. An entry is read when it is asked for, by pread and not through a map of memory: so what workers
looked at is the page cache's and not theirs, and a disk that fails is an error and not the end of the process. Before the first
entry of a GROUP is used, all of it is read and compared with its checksums; processes that were forked tell each other.

The fingerprint of the first `count` images is

    sha256(kind, count, identity of each whole group of 4,096, identity of what is left of the last one)

Groups are counted from the first image. So the set with `count` images had the same groups, whatever was appended later: whole ones have
their checksums stored, and of the last one, which may be cut anywhere, it is computed from its entries.
"""

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from datasets.index.rows import GROUP, Entry, Rows, joined

_AT_ONCE = 16 * GROUP


class WrongIndex(ValueError):
    """The index is missing, damaged, or lists what is not there."""


class Part(Protocol):
    """Some of the images of an index, one behind the other."""

    def __len__(self) -> int: ...

    def piece(self, start: int, stop: int) -> Rows: ...

    def entry(self, number: int) -> Entry: ...

    def identities(self, groups: int) -> np.ndarray | None:
        """uint32, of its first so many groups; None where they are not known."""
        ...


class ImageIndex:
    """N images.

    kind          of the container: "folder" or "zip"
    part          the images that were known; behind come the `added` ones, in memory
    runs          where each run of paths in byte order begins: one run for each time that images were added
    label_names   of the numbers in the entries
    files         names of the files that the entries number
    """

    def __init__(
        self,
        kind: str,
        part: Part,
        runs: list[int],
        label_names: list[bytes],
        *,
        files: tuple[str, ...] = (),
        added: Rows | None = None,
    ) -> None:
        self.kind, self.runs, self.label_names, self.files = kind, runs, label_names, files
        self._part, self._added = part, added if added is not None and len(added) else None
        self.known = len(part)
        self._computed: np.ndarray | None = None

    def __len__(self) -> int:
        return self.known + (0 if self._added is None else len(self._added))

    def entry(self, instance: int) -> Entry:
        if instance < self.known:
            return self._part.entry(instance)
        assert self._added is not None
        return self._added.entry(instance - self.known)

    def piece(self, start: int, stop: int) -> Rows:
        """The images from start to stop - 1."""
        known = self.known
        pieces = [self._part.piece(start, min(stop, known))] if start < known else []
        if stop > known and self._added is not None:
            pieces.append(self._added.piece(max(start, known) - known, stop - known))
        return joined(pieces)

    def pieces(self, count: int | None = None) -> Iterator[tuple[int, Rows]]:
        """(number of the first, images) of some thousand at a time, up to `count`."""
        count = len(self) if count is None else count
        for start in range(0, count, _AT_ONCE):
            yield start, self.piece(start, min(start + _AT_ONCE, count))

    def grown(self, added: Rows, label_names: list[bytes]) -> "ImageIndex":
        """The same with more images behind."""
        assert self._added is None
        runs = [*self.runs, len(self)] if len(added) else self.runs
        return ImageIndex(self.kind, self._part, runs, label_names, files=self.files, added=added)

    def labels(self) -> np.ndarray:
        """int32 [N], numbers of `label_names`."""
        labels_N = np.empty(len(self), np.int32)
        for start, rows in self.pieces():
            labels_N[start : start + len(rows)] = rows.entries_n["label"]
        return labels_N

    def fingerprint(self, count: int, were: Mapping[int, int] | None = None) -> str:
        """Of the first `count` images, as above.

        were: sizes that some images had, to be taken instead of those that the index has.
        """
        were = {instance: size for instance, size in (were or {}).items() if 0 <= instance < count}
        groups = count // GROUP
        digest = hashlib.sha256(f"pic-engine images\n{self.kind}\n{count}\n".encode())
        identities = self._identities(groups)
        if were:  # a copy: what is stored is only read
            identities = identities.copy()
            for group in {instance // GROUP for instance in were if instance < groups * GROUP}:
                identities[group] = self._identity(group * GROUP, (group + 1) * GROUP, were)
        digest.update(identities.astype("<u4").tobytes())
        if count % GROUP:
            digest.update(self._identity(groups * GROUP, count, were).to_bytes(4, "little"))
        return digest.hexdigest()

    def _identities(self, groups: int) -> np.ndarray:
        """uint32, of the first so many groups; those that are not stored are computed once."""
        if self._computed is None:
            stored = self._part.identities(self.known // GROUP)
            first = 0 if stored is None else len(stored)
            rest = [self._identity(at * GROUP, (at + 1) * GROUP, {}) for at in range(first, len(self) // GROUP)]
            computed = np.array(rest, np.uint32)
            self._computed = computed if stored is None else np.concatenate([stored, computed])
        return self._computed[:groups]

    def _identity(self, start: int, stop: int, were: Mapping[int, int]) -> int:
        rows = self.piece(start, stop)
        here = {instance: size for instance, size in were.items() if start <= instance < stop}
        if here:
            entries_n = rows.entries_n.copy()
            for instance, size in here.items():
                entries_n["size"][instance - start] = size
            rows = Rows(entries_n, rows.ends_n, rows.paths)
        return rows.checks(self.kind)[0]


class Held:
    """Images in memory as a part of an index."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def piece(self, start: int, stop: int) -> Rows:
        return self.rows.piece(start, stop)

    def entry(self, number: int) -> Entry:
        return self.rows.entry(number)

    def identities(self, groups: int) -> None:
        return None


class Seen:
    """Which groups were compared with their checksums, by this process and those that it forks."""

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._seen = mmap.mmap(-1, max(groups, 1))

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return Seen, (self._groups,)

    def __getitem__(self, group: int) -> bool:
        return self._seen[group] != 0

    def add(self, group: int) -> None:
        self._seen[group] = 1
