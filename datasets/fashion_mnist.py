"""Fashion-MNIST: 60,000 + 10,000 grey photographs of clothes, 28 x 28, ten labels, read from a local directory.

The files are in the idx format of MNIST: big-endian, two zero bytes, a type (8 = uint8), the number of dimensions, one
uint32 a dimension, then the values. Both plain and gzipped files are read, under the names that the authors gave them.
Nothing is downloaded. The images are held decoded, 784 bytes each, one copy for all forked workers.
Source: Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms".
"""

import gzip
import hashlib
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from datasets.regular_file import content_of
from datasets.shown import shown

_FILE_PREFIX = {"train": "train", "test": "t10k"}
_GARMENTS = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


class FashionMnist:
    """Source of grey images [28, 28]: the first `limit` of a split, or all of it (None). A higher limit appends images.

    ValueError where files are missing, are not idx files, are cut short, or where labels do not fit the images;
    ImagesUnavailable where the machine fails.
    """

    name = "fashion_mnist"
    channels = 1
    notes: tuple[str, ...] = ()

    def __init__(self, root: Path, split: Literal["train", "test"], limit: int | None = None) -> None:
        if not root.is_dir():
            raise ValueError(
                f"data.root: {shown(root)} is not a directory; install the Debian package dataset-fashion-mnist, "
                "or set data.root to a directory that holds train-images-idx3-ubyte.gz and its three siblings"
            )
        prefix = _FILE_PREFIX[split]
        images_NHW = _read_idx(_plain_or_gzip(root, f"{prefix}-images-idx3-ubyte"), dimensions=3)
        labels_N = _read_idx(_plain_or_gzip(root, f"{prefix}-labels-idx1-ubyte"), dimensions=1)
        if len(images_NHW) != len(labels_N):
            raise ValueError(
                f"data.root: {shown(root)} has {len(images_NHW)} images but {len(labels_N)} labels for {split}"
            )
        if limit is not None and not 1 <= limit <= len(images_NHW):
            raise ValueError(f"data.limit: {limit} is outside 1..{len(images_NHW)}, the images of the {split} split")
        self.split = split
        self._images_NHW = images_NHW[:limit]
        self._labels_N = labels_N[:limit].astype(np.int64)

    def __len__(self) -> int:
        return len(self._images_NHW)

    def image(self, instance: int) -> np.ndarray:
        assert 0 <= instance < len(self), instance
        return self._images_NHW[instance].copy()

    def labels(self) -> np.ndarray:
        return self._labels_N.copy()

    def instance_name(self, instance: int) -> str:
        label = int(self._labels_N[instance])
        garment = _GARMENTS[label] if label < len(_GARMENTS) else f"label {label}"
        return f"{self.split} {instance} ({garment})"

    def file_bytes(self, instance: int) -> int:
        """0: images have no files of their own here."""
        return 0

    def fingerprint(self, count: int | None = None, were: Mapping[int, int] | None = None) -> str:
        """Over the decoded images: a gzipped and a plain copy are the same source."""
        images_NHW = self._images_NHW[:count]
        digest = hashlib.sha256(f"fashion_mnist {images_NHW.shape}\n".encode())
        digest.update(images_NHW.tobytes())
        return digest.hexdigest()

    def save_index(self, path: Path) -> None:
        """Nothing to save: the order is that of the authors' file."""


def _plain_or_gzip(root: Path, name: str) -> Path:
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"data.root: neither {name} nor {name}.gz is a file in {shown(root)}")


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """uint8 array of the given number of dimensions, read-only."""
    content = content_of(path, lambda reason: f"data.root: {shown(path)} cannot be read ({reason}); fetch it again")
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"data.root: {shown(path)} is not a whole gzip file ({error}); fetch it again") from error
    header_bytes = 4 + 4 * dimensions
    expected_magic = bytes([0, 0, 8, dimensions])
    if content[:4] != expected_magic:
        raise ValueError(
            f"data.root: {shown(path)} is not an idx file of uint8 with {dimensions} dimensions "
            f"(starts with {content[:4].hex()}, not {expected_magic.hex()})"
        )
    if len(content) < header_bytes:
        raise ValueError(f"data.root: {shown(path)} has {len(content)} bytes, too few for an idx file; fetch it again")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    values = np.frombuffer(content, np.uint8, offset=header_bytes)
    if len(values) != np.prod(shape):
        raise ValueError(f"data.root: {shown(path)} says {shape} in its header but holds {len(values)} values")
    return values.reshape(shape)
