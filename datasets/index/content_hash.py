"""Hashes of encoded images, and which of them are exact copies.

A hash is the first 8 bytes of blake2b of the file's bytes; 0 stands for one that is not known, and a hash that is 0 is called 1. Among 10^8
different images two are taken for copies with a chance of about 3 in 10,000. Images that are decoded alike from other bytes are not found.
"""

import hashlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from datasets.batch import UnreadableImage
from datasets.indexed import IndexedImages

_AT_ONCE = 256  # images of a task
_AHEAD = 4  # tasks a process that are waiting or done


def content_hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def hashes_of(source: IndexedImages, first: int, processes: int) -> Iterator[np.ndarray]:
    """uint64, of the images from `first` on, some hundred at a time and in their order; 0 of one that cannot be read."""
    starts = range(first, len(source), _AT_ONCE)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _begin, (source,)) as pool:
        for at in range(0, len(starts), processes * _AHEAD):
            yield from pool.map(_hashes, starts[at : at + processes * _AHEAD])


@dataclass(frozen=True)
class Copies:
    """Sets of images with the same bytes. images: in all sets together; groups: how many sets; first: the members of some of them."""

    images: int
    groups: int
    first: tuple[tuple[int, ...], ...]
    unknown: int


def copies_of(hashes_N: np.ndarray, most: int = 3) -> Copies:
    """The first `most` sets are named, by up to four members each, in the order of their first ones."""
    order = np.argsort(hashes_N, kind="stable")
    in_order = hashes_N[order]
    starts = np.flatnonzero(np.append(True, in_order[1:] != in_order[:-1])) if len(order) else order
    counts = np.diff(np.append(starts, len(order)))
    is_set = (counts > 1) & (in_order[starts] != 0) if len(order) else counts > 1
    starts, counts = starts[is_set], counts[is_set]
    firsts = np.argsort(order[starts])[:most]
    named = tuple(
        tuple(order[starts[one] : starts[one] + min(int(counts[one]), 4)].tolist()) for one in firsts.tolist()
    )
    return Copies(int(counts.sum()), len(starts), named, int((hashes_N == 0).sum()))


_source: IndexedImages | None = None  # of a process that hashes


def _begin(source: IndexedImages) -> None:
    global _source
    _source = source


def _hashes(start: int) -> np.ndarray:
    assert _source is not None
    stop = min(start + _AT_ONCE, len(_source))
    hashes = np.zeros(stop - start, np.uint64)
    for instance in range(start, stop):
        try:
            hashes[instance - start] = content_hash(_source.encoded(instance))
        except UnreadableImage:
            continue
    return hashes
