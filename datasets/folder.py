"""A folder of images, flat or nested, with labels or without: "can I train on my own pictures?".

Every file under the root with a known suffix is an instance; instances are numbered in the byte order of their
relative paths (`walk.py` says what is left out). Files that are added later come behind those that an index of an earlier start
lists (`index/`). A file is not opened before its turn: whether it can be decoded (`decode.py`) is found out when it is asked
for, and then said by UnreadableImage. So is a file whose size is not the listed one: another image never takes a place unnoticed. Where
the machine fails instead (`regular_file.py`), that is ImagesUnavailable: also where a file is not there because the root is not
there any more. A file that the disk cannot give, while it gives others, is unreadable.

Where `train` and `val` lie below the root, under these or like names, they are the two splits of one set: one is trained on, the other
is asked (`beside`).

The index takes 40 bytes an image beside its path, in memory where the folder is listed at each start, on the disk where it has a
directory (`data.index`). While the walk runs, the names of one directory at a time are Python objects. The walk takes 5 microseconds a
file on a local disk, the comparison with an index 2 more.

Labels are for evaluation only: the first directory of the path, or a csv file (`label_file.py`).
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datasets.containers.folder import Folder
from datasets.excluded import Patterns
from datasets.index import packed
from datasets.index.image_index import Held, ImageIndex
from datasets.index.old_list import translated
from datasets.index.rescan import NO_CHANGES, Changes, compared
from datasets.index.rows import NO_LABEL, Gathered, Labels
from datasets.index.stored import opened, read_header
from datasets.indexed import IndexedImages, LabelTable, labels_of_entries
from datasets.label_file import LabelFile
from datasets.shown import shown
from datasets.splits import OTHERS, TRAINING, Splits, find_splits
from datasets.walk import SUFFIXES, Found, Walk

LabelWay = Literal["folders"] | Path | None


class ImageFolder(IndexedImages):
    """Source of RGB images [H, W, 3] of any sizes.

    labels: None; "folders": the first component of the path; or a csv file of lines `path,label` under that header,
    with paths relative to the root. `label_names[i]` is the name behind label i (names in sorted order).
    known: a file that `save_index` wrote at an earlier start; its first known_count images (None: all) keep their numbers.
    exclude, leave_out: see `Walk`.
    asked: the directory below the root that is the split to be asked, of which an image may have no label; None: what is trained on.
    stored: the directory of an index; nothing is listed then but where rescan is true.
    ValueError where the root is missing or holds no image, where an image has not exactly one label, or where the csv file names
    an image that is not there; WrongIndex, one of them, where an index is damaged, or a list of an earlier version names an image that is
    gone. ImagesUnavailable where the machine fails.
    """

    def __init__(
        self,
        root: Path,
        labels: LabelWay = None,
        known: Path | None = None,
        known_count: int | None = None,
        *,
        exclude: Iterable[str] = (),
        leave_out: Path | None = None,
        asked: str | None = None,
        stored: Path | None = None,
        rescan: bool = False,
    ) -> None:
        self.root = root
        Folder(root)  # for its complaints about what the user named
        self._options: dict[str, Any] = {"labels": labels, "exclude": tuple(exclude), "leave_out": leave_out}
        self._splits = Splits() if asked else find_splits(root, exclude)
        content = None if known is None or stored is not None else packed.read_content(known)
        index, kept_split = _kept(known, known_count, content, stored)
        split = asked or (self._splits.trained if kept_split is None else kept_split)
        split = split if split and (root / split).is_dir() else ""
        container = Folder(root / split if split else root)
        patterns = Patterns(exclude, split, self._splits.beside, is_told=asked is None)
        walk = Walk(container.root, patterns, leave_out)
        changes = NO_CHANGES
        if index is not None:
            if stored is None or rescan:
                index, changes = with_new(index, walk)
        elif content is not None:
            assert known is not None
            index = translated(content, known, known_count, walk)
        else:
            index = listed(walk)
        if not len(index):
            found = f" ({'; '.join(walk.reasons[:2])})" if walk.reasons else ""
            place = shown(root / split if split else root)
            raise ValueError(f"data.root: no image under {place}; looked for {' '.join(SUFFIXES)}{found}")
        notes = (*self._splits.notes(split), *walk.notes)
        super().__init__(index, container, split=split, notes=notes, changes=changes, stored=stored)
        if labels == "folders":
            if not asked:
                self._refuse_splits(is_known=known is not None)
            self._labels = self._by_folders(is_whole=not asked)
        elif labels is not None:
            self._labels = self._by_file(Path(labels), walk)

    def _open_beside(self) -> "ImageFolder | None":
        asked = self._splits.asked
        if not asked or self.split != self._splits.trained:
            return None
        return ImageFolder(self.root, asked=asked, stored=self._index_beside(asked), **self._options)

    def _by_folders(self, is_whole: bool) -> LabelTable:
        table = labels_of_entries(self.index)
        if is_whole and (table.numbers_N == NO_LABEL).any():
            first = int(np.argmax(table.numbers_N == NO_LABEL))
            raise ValueError(
                f'data.labels: "folders", but {self.instance_name(first)} lies directly in {shown(self.root / self.split)}; '
                "move it into a folder named after its label"
            )
        return table

    def _by_file(self, path: Path, walk: Walk) -> LabelTable:
        before = f"{self.split}/" if self.split else ""
        images = [before + os.fsdecode(one) for _, rows in self.index.pieces() for one in rows.each_path()]

        def leaves_out(line: str) -> bool:
            return not line.startswith(before) or walk.leaves_out(line.removeprefix(before))

        names = LabelFile(path).labels_of(images, shown(self.root), leaves_out)
        in_order = sorted(set(names))
        number_of = {name: number for number, name in enumerate(in_order)}
        numbers_N = np.fromiter(map(number_of.__getitem__, names), np.int32, len(names))
        return LabelTable(numbers_N, [shown(name) for name in in_order])

    def _refuse_splits(self, is_known: bool) -> None:
        """ValueError where the first folders are the parts of a data set, and the classes lie in them."""
        names = [os.fsdecode(name) for name in self.index.label_names]
        if not any(name.lower() in TRAINING + OTHERS for name in names):
            return
        classes_of: dict[str, set[bytes]] = {}
        for _, rows in self.index.pieces():
            for path in rows.each_path():
                parts = path.split(b"/", 2)
                classes_of.setdefault(os.fsdecode(parts[0]), set()).update(parts[1:2] if len(parts) > 2 else ())
        splits = [name for name, classes in classes_of.items() if name.lower() in TRAINING + OTHERS and classes]
        training = [name for name in splits if name.lower() in TRAINING]
        # Among others one of these may be a class: a train beside a bus.
        if len(splits) == len(classes_of) or (training and len(splits) > 1):
            chosen = (training or splits)[0]
            example = shown(sorted(classes_of[chosen])[0])
            below = shown(os.path.join(os.fspath(self.root), chosen))
            way = "Set data.labels to null or to a csv file" if is_known else f"Set data.root to {below}"
            raise ValueError(
                f'data.labels: "folders" would label by {" and ".join(map(repr, splits))}, which are parts of a data set; '
                f"the classes ({example}, ...) lie below. {way}"
            )


def listed(walk: Iterable[Found]) -> ImageIndex:
    """The index of what a walk finds."""
    labels = Labels()
    rows = Gathered(labels)
    for found in walk:
        rows.add(*found)
    return ImageIndex("folder", Held(rows.take()), [0], labels.names)


def with_new(index: ImageIndex, walk: Iterable[Found]) -> tuple[ImageIndex, Changes]:
    """The index with what the walk finds beyond it, and what became of what it has."""
    labels = Labels(index.label_names)
    added, changes = compared(index, walk, labels)
    return index.grown(added, labels.names), changes


def _kept(
    known: Path | None, known_count: int | None, content: bytes | None, stored: Path | None
) -> tuple[ImageIndex | None, str | None]:
    """(the index that is there, the split that it is of); None and "" for a list of an earlier version, None and None without any.

    So a run goes on with the images that it had, whether or not there are splits today. Earlier versions took them together.
    """
    if stored is not None:
        header = read_header(stored)
        return opened(stored), header.split if header else None
    if content is None:
        return None, None
    assert known is not None
    return packed.unpacked(content, known, known_count) if packed.is_packed(content) else (None, "")
