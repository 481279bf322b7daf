"""A folder of images, flat or nested, with labels or without: "can I train on my own pictures?".

Every file under the root with a known suffix is an instance; instances are numbered in the byte order of their
relative paths. Hidden files and directories are skipped, links are followed. A file is not opened before its turn:
whether it can be decoded is found out when it is asked for, and then said by UnreadableImage.

Files that are added later would fall between the old ones. A run therefore saves its index, and its next start gives it
back as `known`: the files that it lists keep their numbers, and all others come after them, again in byte order.

    files that are there        known    instances, and the index that is saved
    a.png c.png                 none     a c
    a.png a2.png b.png c.png    a c      a c a2 b

So an index is a few runs in byte order, one for each start that found new files, and a single pass merges them with the
walk, which is in byte order too: no set of all paths is built.

The index is one block of bytes, in which each path ends with a zero byte, and two int64 a path: offset and file size.
10^7 paths of 40 characters are 570 MB, shared by all forked workers, where as many Python strings cost a gigabyte and are
copied into every worker as soon as their reference counts are touched. While the walk runs, the names of one directory at a
time are Python objects, and while the index is built it takes up to twice its size. The walk takes 5 microseconds a file on a
local disk, the merge 2 more.

Every image becomes RGB, uint8, turned upright by its EXIF orientation:
    palette, grey, CMYK        converted
    transparency               laid over white
    16-bit grey                high byte: the full range 0..65535 becomes 0..255, so brightness stays comparable
    32-bit integers, floats    min..max of the image becomes 0..255: these formats have no agreed range
    animations                 first frame
Colour profiles are ignored. Labels are for evaluation only: the first directory of the path, or a csv file.
"""

import csv
import hashlib
import heapq
import os
import warnings
from array import array
from collections.abc import Iterator
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from datasets.batch import UnreadableImage

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_SUFFIXES_bytes = tuple(suffix.encode() for suffix in SUFFIXES)
# Only decoders of image data: left to itself, Pillow would hand a misnamed PostScript file to an interpreter.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
_CSV_HEADER = ["path", "label"]
_GONE = -2  # in the place of a file's size; that of a broken link is -1


class ImageFolder:
    """Source of RGB images [H, W, 3] of any sizes.

    labels: None; "folders": the first component of the path; or a csv file of lines `path,label` under that header,
    with paths relative to the root. `label_names[i]` is the name behind label i (names in sorted order).
    known: a file that `save_index` wrote at an earlier start; its first known_count images (None: all) keep their numbers.
    ValueError where the root is missing or holds no image, where an image that `known` lists is gone, where an image has
    not exactly one label, or where the csv file names an image that is not there.
    """

    name = "folder"
    channels = 3

    def __init__(
        self,
        root: Path,
        labels: Literal["folders"] | Path | None = None,
        known: Path | None = None,
        known_count: int | None = None,
    ) -> None:
        if not root.exists():
            raise ValueError(f"data.root: {root} does not exist; set it to your folder of images")
        if not root.is_dir():
            raise ValueError(f"data.root: {root} is a file; set it to the folder that holds your images")
        self.root = root
        walk = _walk(os.fsencode(root), b"", ())
        paths, sizes = _in_byte_order(walk) if known is None else _behind_known(known, known_count, walk)
        if not paths:
            raise ValueError(f"data.root: no image under {root}; looked for {' '.join(SUFFIXES)}")
        self._path_bytes = np.frombuffer(paths, np.uint8)
        self._offsets = _offsets(paths)
        self._sizes_N = np.frombuffer(sizes, np.int64)
        self.label_names: list[str] = []
        self._labels_N: np.ndarray | None = None
        if labels == "folders":
            self._labels_N = self._number_names(self._first_components())
        elif labels is not None:
            self._labels_N = self._number_names(self._labels_of_csv(Path(labels)))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def image(self, instance: int) -> np.ndarray:
        """Not for threads: Pillow's warnings (about oversized or odd files) are caught by a process-wide switch."""
        assert 0 <= instance < len(self), instance
        path = os.path.join(os.fsencode(self.root), self._path(instance))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(os.fsdecode(path), formats=_FORMATS) as opened:
                    return _to_rgb(ImageOps.exif_transpose(opened))
        # A decoder fed with damaged bytes raises whatever it stumbles over: OSError, SyntaxError, struct.error, ...
        except Exception as error:
            raise UnreadableImage(self.instance_name(instance), _reason(error)) from error

    def labels(self) -> np.ndarray | None:
        return None if self._labels_N is None else self._labels_N.copy()

    def instance_name(self, instance: int) -> str:
        """The path relative to the root; bytes that are not UTF-8 are shown as escapes."""
        return self._path(instance).decode("utf-8", "backslashreplace")

    def fingerprint(self, count: int | None = None) -> str:
        """Over relative paths and file sizes, as they were when the source was opened; contents are not read."""
        count = len(self) if count is None else count
        digest = hashlib.sha256(b"folder\n")
        digest.update(self._path_bytes[: self._offsets[count]].data)
        digest.update(self._sizes_N[:count].astype("<i8", copy=False).data)
        return digest.hexdigest()

    def save_index(self, path: Path) -> None:
        """The relative paths in the order of their instances, each with a zero byte behind it; on the disk on return."""
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            file.write(self._path_bytes.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _path(self, instance: int) -> bytes:
        return self._path_bytes[self._offsets[instance] : self._offsets[instance + 1] - 1].tobytes()

    def _first_components(self) -> Iterator[str]:
        for instance in range(len(self)):
            folder, slash, _ = self._path(instance).partition(b"/")
            if not slash:
                raise ValueError(
                    f'data.labels: "folders", but {self.instance_name(instance)} lies directly in {self.root}; '
                    "move it into a folder named after its label"
                )
            yield folder.decode("utf-8", "backslashreplace")

    def _labels_of_csv(self, path: Path) -> Iterator[str]:
        label_of = _read_csv(path)
        unlabelled = [i for i in range(len(self)) if self.instance_name(i) not in label_of]
        if unlabelled:
            raise ValueError(
                f"data.labels: {path} has no line for {self.instance_name(unlabelled[0])} "
                f"({len(unlabelled)} of {len(self)} images have no label)"
            )
        if len(label_of) > len(self):
            images = {self.instance_name(i) for i in range(len(self))}
            strangers = [name for name in label_of if name not in images]
            raise ValueError(
                f"data.labels: {path} names {strangers[0]}, which is not under {self.root} "
                f"({len(strangers)} of {len(label_of)} lines name no image)"
            )
        return (label_of[self.instance_name(i)] for i in range(len(self)))

    def _number_names(self, names: Iterator[str]) -> np.ndarray:
        """int64 [N]: each name's rank among the distinct names, which become `label_names`."""
        number_of: dict[str, int] = {}
        numbers = array("q", (number_of.setdefault(name, len(number_of)) for name in names))
        self.label_names = sorted(number_of)
        rank_of_number = np.empty(len(number_of), np.int64)
        for rank, name in enumerate(self.label_names):
            rank_of_number[number_of[name]] = rank
        return rank_of_number[np.array(numbers, np.int64)]


def _offsets(paths: bytearray) -> np.ndarray:
    """Where each path begins, int64 [N + 1]; the last is the end."""
    ends_N = np.flatnonzero(np.frombuffer(paths, np.uint8) == 0) + 1
    return np.concatenate(([0], ends_N))


def _in_byte_order(walk: Iterator[tuple[bytes, int]]) -> tuple[bytearray, array]:
    """(paths, each with a zero byte behind it; sizes) as the walk finds them."""
    paths, sizes = bytearray(), array("q")
    for path, size_bytes in walk:
        paths += path + b"\0"
        sizes.append(size_bytes)
    return paths, sizes


def _behind_known(known: Path, count: int | None, walk: Iterator[tuple[bytes, int]]) -> tuple[bytearray, array]:
    """The same, the paths of an index first and in its order; ValueError where one of them is gone."""
    paths = bytearray(known.read_bytes())
    if not paths.endswith(b"\0"):
        raise ValueError(f"{known} is not a whole list of images; restore it, or start over with --fresh")
    offsets = _offsets(paths)
    if count is not None:  # what a start listed that was killed before it trained on them counts as new
        if count >= len(offsets):
            raise ValueError(
                f"{known} lists {len(offsets) - 1} of {count} images; restore it, or start over with --fresh"
            )
        offsets = offsets[: count + 1]
        del paths[int(offsets[-1]) :]
    sizes = array("q", [_GONE]) * (len(offsets) - 1)
    listed = _sorted_paths(paths, offsets)
    expected, instance = next(listed, (None, -1))
    new_paths, new_sizes = bytearray(), array("q")
    for path, size_bytes in walk:
        while expected is not None and expected < path:  # gone
            expected, instance = next(listed, (None, -1))
        if path == expected:
            sizes[instance] = size_bytes
            expected, instance = next(listed, (None, -1))
        else:
            new_paths += path + b"\0"
            new_sizes.append(size_bytes)
    gone = np.flatnonzero(np.frombuffer(sizes, np.int64) == _GONE)
    if len(gone):
        first = int(gone[0])
        name = bytes(paths[offsets[first] : offsets[first + 1] - 1]).decode("utf-8", "backslashreplace")
        others = f" ({len(gone)} of {len(sizes)} images are gone)" if len(gone) > 1 else ""
        raise ValueError(
            f"data.root: {name} was instance {first} of this run and is gone{others}; restore it, or start over with --fresh"
        )
    paths += new_paths
    sizes += new_sizes
    return paths, sizes


def _sorted_paths(paths: bytearray, offsets: np.ndarray) -> Iterator[tuple[bytes, int]]:
    """(path, instance) of an index in byte order, a merge of the runs that it consists of."""

    def run(first: int, stop: int) -> Iterator[tuple[bytes, int]]:
        for instance in range(first, stop):
            yield bytes(paths[offsets[instance] : offsets[instance + 1] - 1]), instance

    firsts = [0]
    previous = b""
    for path, instance in run(0, len(offsets) - 1):
        if path < previous:
            firsts.append(instance)
        previous = path
    return heapq.merge(*(run(*bounds) for bounds in pairwise([*firsts, len(offsets) - 1])))


def _walk(directory: bytes, prefix: bytes, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[bytes, int]]:
    """(path relative to the root, size in bytes) of each image, in byte order of the paths; -1 for a broken link.

    A directory is sorted with its slash: then the concatenated paths come out in the order of sorted full paths.
    """
    try:
        status = os.stat(directory)
        with os.scandir(directory) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(b".")]
            named = sorted(((e.name + b"/" if e.is_dir() else e.name, e) for e in visible), key=itemgetter(0))
    except OSError as error:
        raise ValueError(f"data.root: {os.fsdecode(directory)} cannot be listed: {error.strerror}") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise ValueError(f"data.root: the link {os.fsdecode(directory)} leads back to a folder above it; remove it")
    for name, entry in named:
        if name.endswith(b"/"):
            yield from _walk(entry.path, prefix + name, (*above, identity))
        elif name.lower().endswith(_SUFFIXES_bytes):
            if entry.is_file():
                yield prefix + name, entry.stat().st_size
            elif entry.is_symlink():
                yield prefix + name, -1


def _read_csv(path: Path) -> dict[str, str]:
    label_of: dict[str, str] = {}
    if not path.is_file():
        raise ValueError(f'data.labels: {path} is not a file; set it to a csv file, to "folders" or to null')
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.reader(lines)
        header = next(reader, [])
        if header != _CSV_HEADER:
            raise ValueError(f"data.labels: the first line of {path} is {','.join(header)!r}; it must be 'path,label'")
        for row in reader:
            if len(row) != 2 or not all(row):
                raise ValueError(
                    f"data.labels: {path} line {reader.line_num} is not a path, a comma and a label: {row}"
                )
            image, label = row
            if image in label_of:
                raise ValueError(f"data.labels: {path} line {reader.line_num} gives {image} a second label")
            label_of[image] = label
    return label_of


def _to_rgb(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3]; see the table at the top."""
    if image.mode.startswith("I;16"):
        return _grey_to_rgb((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        low, high = values.min(), values.max()
        if not np.isfinite(high - low):
            raise ValueError("has values that are not finite")
        return _grey_to_rgb(np.rint((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8))
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, pixels)
    return np.array(image.convert("RGB"))


def _grey_to_rgb(grey_HW: np.ndarray) -> np.ndarray:
    return np.repeat(grey_HW[:, :, None], 3, axis=2)


def _reason(error: Exception) -> str:
    """Short, and without the path, which UnreadableImage already carries."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"
