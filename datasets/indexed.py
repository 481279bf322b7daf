"""A source of colour images made of three things: an index that numbers them, a container that has their bytes, and the decoder.

What was found when the index was compared with the container (`changes`) lies beside it. The index keeps what it said of an image, by which
the set is known, and is asked for its fingerprint; the bytes are read as they are now.

Labels are for evaluation only: an array of numbers and their names, or nothing.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np

from datasets.batch import UnreadableImage
from datasets.containers.container import BadContent, Container
from datasets.decode import Undecodable, decode
from datasets.index import packed
from datasets.index.image_index import ImageIndex
from datasets.index.old_list import old_fingerprint
from datasets.index.rescan import NO_CHANGES, Changes
from datasets.index.rows import Entry
from datasets.index.stored import HEADER, Writer
from datasets.regular_file import any_answers, is_of_a_sector, patiently
from datasets.shown import shown

_WITNESSES = 8  # other images that are asked for where one fails
Taken = TypeVar("Taken")


class LabelTable(NamedTuple):
    """numbers_N: of each image, as many different ones as there are names, or more; names: for people, of 0, 1, 2, ..."""

    numbers_N: np.ndarray
    names: list[str]


class IndexedImages:
    """Source of RGB images [H, W, 3] of any sizes.

    split     the directory or file below the root that the images are in, or ""
    changes   what the index says otherwise than the container
    stored    where the index lies, if it has a directory of its own
    """

    channels = 3

    def __init__(
        self,
        index: ImageIndex,
        container: Container,
        *,
        split: str = "",
        notes: tuple[str, ...] = (),
        changes: Changes = NO_CHANGES,
        labels: LabelTable | None = None,
        stored: Path | None = None,
    ) -> None:
        self.name = container.kind
        self.index, self.container, self.split = index, container, split
        self.changes, self.notes = changes, (*changes.notes(), *notes)
        self._labels, self._stored = labels, stored

    def __len__(self) -> int:
        return len(self.index)

    def image(self, instance: int) -> np.ndarray:
        """Not for threads: see `decode`."""
        assert 0 <= instance < len(self), instance
        return self._patiently(instance, self._decoded)

    def encoded(self, instance: int) -> bytes:
        """The bytes of the image as they are kept. Raises as `image` does."""
        return self._patiently(instance, self._whole)

    def labels(self) -> np.ndarray | None:
        return None if self._labels is None else self._labels.numbers_N.astype(np.int64)

    @property
    def label_names(self) -> list[str]:
        """`label_names[i]` is the name behind label i."""
        return [] if self._labels is None else self._labels.names

    def instance_name(self, instance: int) -> str:
        """The path within the container, on one line."""
        return self.container.shown_name(self.index.entry(instance))

    def file_bytes(self, instance: int) -> int:
        """Size of the encoded image as the index has it; -1 for a broken link."""
        return self.container.size_bytes(self.index.entry(instance))

    def fingerprint(self, count: int | None = None, were: Mapping[int, int] | None = None) -> str:
        """Over paths and sizes, and of a zip over checksums of the content, as the index has them; nothing is read but the index."""
        count = len(self) if count is None else count
        return self.index.fingerprint(count, were if self.container.kind == "folder" else None)

    def was_fingerprint(self, count: int, were: Mapping[int, int]) -> str:
        """What earlier versions of this engine had as the fingerprint of a folder."""
        return old_fingerprint(self.index, count, were) if self.container.kind == "folder" else ""

    def save_index(self, path: Path) -> None:
        """Of a set that has no directory for its index: write it there, whole or not at all; on the disk on return.

        Else what was found to be new goes into that directory.
        """
        if self._stored is None:
            packed.write(self.index, self.split, path)
            return
        if len(self) == self.index.known:
            return
        with Writer(self._stored) as writer:
            there = writer.header.count
            if there not in (self.index.known, len(self)):
                raise ValueError(f"another job added images to {shown(self._stored)} meanwhile; start again")
            if there < len(self):
                writer.add(self.index.piece(there, len(self)), self.index.label_names, begins_run=True)

    def beside(self) -> "IndexedImages | None":
        """The split of the same set that is asked, with labels numbered as here; None where there is none, or it has no labels."""
        asked = self._open_beside()
        if asked is None or self._labels is None or asked._labels is None:
            return None
        asked._labels = labels_like(asked._labels, self._labels)
        asked.name = f"{self.name} ({asked.split})"
        if (asked._labels.numbers_N < 0).all():
            self.notes += (f"no image of {shown(asked.split)} has a label, so none of them is asked",)
            return None
        return asked

    def _open_beside(self) -> "IndexedImages | None":
        return None

    def _index_beside(self, split: str) -> Path | None:
        """Where job=index puts the index of another split; None where this one's has no directory, or that one none."""
        place = None if self._stored is None else self._stored / split
        return place if place is not None and (place / HEADER).is_file() else None

    @staticmethod
    def _decoded(content: IO[bytes]) -> np.ndarray:
        return decode(content)

    @staticmethod
    def _whole(content: IO[bytes]) -> bytes:
        return content.read()

    def _patiently(self, instance: int, take: Callable[[IO[bytes]], Taken]) -> Taken:
        """What `take` makes of the encoded image."""

        def read() -> Taken:
            try:
                with self.container.read(self._entry_now(instance)) as content:
                    return take(content)
            except (Undecodable, BadContent) as error:
                raise UnreadableImage(self.instance_name(instance), str(error)) from error

        return patiently(lambda: self.instance_name(instance), read, lambda error: self._blamed(instance, error))

    def _entry_now(self, instance: int) -> Entry:
        entry, size_now = self.index.entry(instance), self.changes.size_of(instance)
        return entry if size_now is None else entry._replace(size=size_now)

    def _blamed(self, instance: int, error: Exception) -> UnreadableImage | None:
        """The image is at fault where the disk fails at it alone; None where the machine is."""
        if not is_of_a_sector(error):
            return None
        # From all over the set: what lies next to a bad sector may have one, too.
        apart = max(1, len(self) // (_WITNESSES + 1))
        others = {(instance + apart * k) % len(self) for k in range(1, _WITNESSES + 1)} - {instance}
        if not any_answers(self.container.place(self.index.entry(other)) for other in sorted(others)):
            return None
        assert isinstance(error, OSError)
        return UnreadableImage(self.instance_name(instance), f"{error.strerror}, twice, while other images come")


def labels_of_entries(index: ImageIndex) -> LabelTable:
    """Those that the entries have, numbered in the order of their names; -1 stays -1."""
    names = [shown(name) for name in index.label_names]
    by_number = all(name.isdigit() for name in index.label_names) and index.kind != "folder"
    order = sorted(
        range(len(names)), key=(lambda n: int(index.label_names[n])) if by_number else index.label_names.__getitem__
    )
    rank_of_number = np.full(len(names) + 1, -1, np.int32)  # the last is for -1
    rank_of_number[order] = np.arange(len(names), dtype=np.int32)
    return LabelTable(rank_of_number[index.labels()], [names[number] for number in order])


def labels_like(table: LabelTable, other: LabelTable) -> LabelTable:
    """The labels of one set by the numbers that another has for the same names; names that the other lacks come behind."""
    number_of = {name: number for number, name in enumerate(other.names)}
    numbers = np.array([number_of.setdefault(name, len(number_of)) for name in table.names] + [-1], np.int32)
    return LabelTable(numbers[table.numbers_N], list(number_of))
