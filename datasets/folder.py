"""A folder of images, flat or nested, with labels or without: "can I train on my own pictures?".

Every file under the root with a known suffix is an instance; instances are numbered in the byte order of their
relative paths (`walk.py` says what is left out). Files that are added later come behind those that an index of an earlier start
lists (`image_index.py`). A file is not opened before its turn: whether it can be decoded (`decode.py`) is found out when it is asked
for, and then said by UnreadableImage. So is a file whose size is not the listed one: another image never takes a place unnoticed. Where
the machine fails instead (`regular_file.py`), that is ImagesUnavailable: also where a file is not there because the root is not
there any more. A file that the disk cannot give, while it gives others, is unreadable.

The index is one block of bytes, in which each path ends with a zero byte, and two int64 a path: offset and file size.
10^7 paths of 40 characters are 570 MB, shared by all forked workers, where as many Python strings cost a gigabyte and are
copied into every worker as soon as their reference counts are touched. While the walk runs, the names of one directory at a
time are Python objects, and while the index is built it takes up to twice its size. The walk takes 5 microseconds a file on a
local disk, the merge 2 more.

Labels are for evaluation only: the first directory of the path, or a csv file (`label_file.py`).
"""

import errno
import hashlib
import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from datasets import image_index
from datasets.batch import UnreadableImage
from datasets.decode import Undecodable, decode
from datasets.label_file import LabelFile
from datasets.regular_file import (
    Changed,
    Listed,
    NotRegular,
    any_answers,
    is_of_a_sector,
    is_of_the_file,
    open_content,
    patiently,
)
from datasets.shown import shown
from datasets.walk import SUFFIXES, Walk, identity_of

_TRAIN = {"train", "training", "trainval"}
_WITNESSES = 8  # other images that are asked for where one fails
_OTHER_SPLITS = {"val", "valid", "validation", "test", "testing", "dev", "eval", "holdout"}


class ImageFolder:
    """Source of RGB images [H, W, 3] of any sizes.

    labels: None; "folders": the first component of the path; or a csv file of lines `path,label` under that header,
    with paths relative to the root. `label_names[i]` is the name behind label i (names in sorted order).
    known: a file that `save_index` wrote at an earlier start; its first known_count images (None: all) keep their numbers.
    exclude, leave_out: see `Walk`.
    ValueError where the root is missing or holds no image, where an image has not exactly one label, or where the csv file names
    an image that is not there; WrongIndex, one of them, where `known` is damaged or lists an image that is gone. ImagesUnavailable
    where the machine fails.
    """

    name = "folder"
    channels = 3

    def __init__(
        self,
        root: Path,
        labels: Literal["folders"] | Path | None = None,
        known: Path | None = None,
        known_count: int | None = None,
        *,
        exclude: Iterable[str] = (),
        leave_out: Path | None = None,
    ) -> None:
        self.root = root
        # As it is now: a process may go to another directory later.
        self._root_bytes = os.fsencode(root if root.is_absolute() else Path.cwd() / root)
        self._root_identity = _root_identity(self._root_bytes, shown(root, 200))
        walk = Walk(self._root_bytes, exclude, leave_out)
        if known is None:
            paths, sizes = image_index.in_byte_order(walk)
        else:
            paths, sizes = image_index.behind_known(known, known_count, walk)
        self.notes: tuple[str, ...] = walk.notes
        if not paths:
            found = f" ({'; '.join(walk.notes[:2])})" if walk.notes else ""
            raise ValueError(f"data.root: no image under {shown(root)}; looked for {' '.join(SUFFIXES)}{found}")
        self._path_bytes = np.frombuffer(paths, np.uint8)
        self._offsets = image_index.offsets_of(paths)
        self._sizes_N = np.frombuffer(sizes, np.int64)
        self.label_names: list[str] = []
        self._labels_N: np.ndarray | None = None
        if labels == "folders":
            self._refuse_splits(is_known=known is not None)
            self._labels_N = self._number_names(self._first_components())
        elif labels is not None:
            images = [os.fsdecode(self._path(instance)) for instance in range(len(self))]
            self._labels_N = self._number_names(LabelFile(Path(labels)).labels_of(images, shown(root), walk.leaves_out))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def image(self, instance: int) -> np.ndarray:
        """Not for threads: see `decode`."""
        assert 0 <= instance < len(self), instance
        return patiently(
            lambda: self.instance_name(instance),
            lambda: self._read(instance),
            lambda error: self._blamed(instance, error),
        )

    def labels(self) -> np.ndarray | None:
        return None if self._labels_N is None else self._labels_N.copy()

    def instance_name(self, instance: int) -> str:
        """The path relative to the root, on one line: what is not UTF-8, and what a terminal would obey, is shown as escapes."""
        return shown(self._path(instance))

    def file_bytes(self, instance: int) -> int:
        """Size of the file when the source was opened; -1 for a broken link."""
        return int(self._sizes_N[instance])

    def fingerprint(self, count: int | None = None, were: Mapping[int, int] | None = None) -> str:
        """Over relative paths and file sizes, as they were when the source was opened; contents are not read."""
        count = len(self) if count is None else count
        sizes_N = self._sizes_N[:count].astype("<i8", copy=bool(were))
        for instance, size_bytes in (were or {}).items():
            if 0 <= instance < count:
                sizes_N[instance] = size_bytes
        digest = hashlib.sha256(b"folder\n")
        digest.update(self._path_bytes[: self._offsets[count]].data)
        digest.update(sizes_N.data)
        return digest.hexdigest()

    def save_index(self, path: Path) -> None:
        """The relative paths in the order of their instances, each with a zero byte behind it; on the disk on return."""
        image_index.write(self._path_bytes.data, path)

    def _read(self, instance: int) -> np.ndarray:
        path = os.path.join(self._root_bytes, self._path(instance))
        try:
            with open_content(path, Listed(self.file_bytes(instance))) as content:
                return decode(content)
        except (Undecodable, NotRegular, Changed) as error:
            raise UnreadableImage(self.instance_name(instance), str(error)) from error
        except OSError as error:
            if not is_of_the_file(error):
                raise
            if identity_of(self._root_bytes) != self._root_identity:
                raise OSError(f"data.root ({shown(self.root)}) is gone, or another directory lies there now") from error
            raise UnreadableImage(self.instance_name(instance), str(error.strerror)) from error

    def _blamed(self, instance: int, error: Exception) -> UnreadableImage | None:
        """The image is at fault where the disk fails at it alone; None where the machine is."""
        if not is_of_a_sector(error):
            return None
        # From all over the set: what lies next to a bad sector may have one, too.
        apart = max(1, len(self) // (_WITNESSES + 1))
        others = {(instance + apart * k) % len(self) for k in range(1, _WITNESSES + 1)} - {instance}
        places = ((os.path.join(self._root_bytes, self._path(other)), 0) for other in sorted(others))
        if not any_answers(places):
            return None
        assert isinstance(error, OSError)
        return UnreadableImage(self.instance_name(instance), f"{error.strerror}, twice, while other images come")

    def _path(self, instance: int) -> bytes:
        return self._path_bytes[self._offsets[instance] : self._offsets[instance + 1] - 1].tobytes()

    def _first_components(self) -> Iterator[str]:
        for instance in range(len(self)):
            folder, slash, _ = self._path(instance).partition(b"/")
            if not slash:
                raise ValueError(
                    f'data.labels: "folders", but {self.instance_name(instance)} lies directly in {shown(self.root)}; '
                    "move it into a folder named after its label"
                )
            yield os.fsdecode(folder)

    def _refuse_splits(self, is_known: bool) -> None:
        """ValueError where the first folders are the parts of a data set, and the classes lie in them."""
        classes_of: dict[str, set[bytes]] = {}
        for instance in range(len(self)):
            parts = self._path(instance).split(b"/")
            classes_of.setdefault(os.fsdecode(parts[0]), set()).update(parts[1:2] if len(parts) > 2 else ())
        splits = [name for name, classes in classes_of.items() if name.lower() in _TRAIN | _OTHER_SPLITS and classes]
        training = [name for name in splits if name.lower() in _TRAIN]
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

    def _number_names(self, names: Iterable[str]) -> np.ndarray:
        """int64 [N]: each name's rank among the distinct names, which become `label_names`."""
        number_of: dict[str, int] = {}
        numbers = array("q", (number_of.setdefault(name, len(number_of)) for name in names))
        in_order = sorted(number_of)
        self.label_names = [shown(name) for name in in_order]
        rank_of_number = np.empty(len(number_of), np.int64)
        for rank, name in enumerate(in_order):
            rank_of_number[number_of[name]] = rank
        return rank_of_number[np.array(numbers, np.int64)]


def _root_identity(root: bytes, name: str) -> tuple[int, int]:
    """(device, inode) of the root; ValueError where it is no directory."""

    def read_identity() -> tuple[int, int]:
        try:
            status = os.stat(root)
        except OSError as error:
            if is_of_the_file(error):
                why = "does not exist" if error.errno == errno.ENOENT else f"is no folder ({error.strerror})"
                raise ValueError(f"data.root: {name} {why}; set it to your folder of images") from error
            raise
        if not stat.S_ISDIR(status.st_mode):
            raise ValueError(f"data.root: {name} is a file; set it to the folder that holds your images")
        return status.st_dev, status.st_ino

    return patiently(lambda: f"data.root, {name}", read_identity)
