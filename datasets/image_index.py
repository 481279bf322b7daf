"""The order of a folder's images as one block of bytes: each path with a zero byte behind it, in the order of their instances.

Files that are added later would fall between the old ones. A run therefore saves its index, and its next start gives it
back as `known`: the files that it lists keep their numbers, and all others come after them, again in byte order.

    files that are there        known    instances, and the index that is saved
    a.png c.png                 none     a c
    a.png a2.png b.png c.png    a c      a c a2 b

So an index is a few runs in byte order, one for each start that found new files, and a single pass merges them with the
walk, which is in byte order too: no set of all paths is built. What an index names is only ever compared with what the walk
finds; nothing is opened because an index names it.
"""

import heapq
import os
from array import array
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from datasets.regular_file import NotRegular, is_of_the_file, patiently, read_whole
from datasets.shown import shown

_GONE = -2  # in the place of a file's size; that of a broken link is -1


class WrongIndex(ValueError):
    """The index is missing, damaged, or lists what is not there."""


def offsets_of(paths: bytes | bytearray) -> np.ndarray:
    """Where each path begins, int64 [N + 1]; the last is the end."""
    ends_N = np.flatnonzero(np.frombuffer(paths, np.uint8) == 0) + 1
    return np.concatenate(([0], ends_N))


def in_byte_order(walk: Iterable[tuple[bytes, int]]) -> tuple[bytearray, array]:
    """(paths, each with a zero byte behind it; sizes) as the walk finds them."""
    paths, sizes = bytearray(), array("q")
    for path, size_bytes in walk:
        paths += path + b"\0"
        sizes.append(size_bytes)
    return paths, sizes


def behind_known(known: Path, count: int | None, walk: Iterable[tuple[bytes, int]]) -> tuple[bytearray, array]:
    """The same, the first `count` paths of an index (None: all) first and in its order. WrongIndex where one of them is gone."""
    paths = bytearray(_read(known))
    if not paths.endswith(b"\0"):
        raise WrongIndex(f"{shown(known)} is not a whole list of images; restore it, or start over with --fresh")
    offsets = offsets_of(paths)
    if count is not None:  # what a start listed that was killed before it trained on them counts as new
        if count >= len(offsets):
            raise WrongIndex(
                f"{shown(known)} lists {len(offsets) - 1} of {count} images; restore it, or start over with --fresh"
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
        name = shown(bytes(paths[offsets[first] : offsets[first + 1] - 1]), 200)
        others = f" ({len(gone)} of {len(sizes)} images are gone)" if len(gone) > 1 else ""
        raise WrongIndex(
            f"data.root: {name} was instance {first} of this run and is gone{others}; "
            "restore it (and what data.exclude leaves out since), or start over with --fresh"
        )
    paths += new_paths
    sizes += new_sizes
    return paths, sizes


def write(paths: memoryview, path: Path) -> None:
    """Whole or not at all; on the disk on return."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # it may be a link to something else
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
        file.write(paths)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read(known: Path) -> bytes:
    def read() -> bytes:
        try:
            return read_whole(os.fsencode(known))
        except NotRegular as error:
            raise WrongIndex(f"{shown(known)} is {error}; restore it, or start over with --fresh") from error
        except OSError as error:
            if is_of_the_file(error):
                raise WrongIndex(f"{shown(known)}: {error.strerror}; restore it, or start over with --fresh") from error
            raise

    return patiently(lambda: shown(known), read)


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
