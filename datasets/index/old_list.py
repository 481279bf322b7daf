"""The lists of images that earlier versions kept of a folder, and what they took for its fingerprint: read once, and turned into an index.

Such a list has the paths alone, each with a zero byte behind it, in the order of the numbers: a few runs in byte order, one for each
start that found new files. The sizes that it lacks are those that a walk finds, and the fingerprint, sha256 over paths and sizes, tells
whether they are those of the run. So an image that the list has and the folder has not is refused here.
"""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from datasets.index.image_index import Held, ImageIndex, WrongIndex
from datasets.index.rescan import compared
from datasets.index.rows import ENTRY, Labels, Rows
from datasets.shown import shown
from datasets.walk import Found


def translated(content: bytes, path: Path, count: int | None, walk: Iterable[Found]) -> ImageIndex:
    """The index with the first `count` images of the list (None: all) and, behind them, those that are new.

    WrongIndex where the list is cut short, or one of its images is gone.
    """
    if not content.endswith(b"\0"):
        raise WrongIndex(f"{shown(path)} is not a whole list of images; restore it, or start over with --fresh")
    ends_N = np.flatnonzero(np.frombuffer(content, np.uint8) == 0) + 1
    if count is not None:  # what a start listed that was killed before it trained on them counts as new
        if count > len(ends_N):
            raise WrongIndex(
                f"{shown(path)} lists {len(ends_N)} of {count} images; restore it, or start over with --fresh"
            )
        ends_N = ends_N[:count]
    rows = Rows(np.zeros(len(ends_N), ENTRY), ends_N, content[: int(ends_N[-1])])
    rows.entries_n["size"] = _UNKNOWN
    labels = Labels()
    for number, name in enumerate(rows.each_path()):
        rows.entries_n["label"][number] = labels.of_path(name)
    known = ImageIndex("folder", Held(rows), _runs_of(rows), labels.names)
    added, changes = compared(known, walk, labels)
    if len(changes.gone):
        first = int(changes.gone[0])
        others = f" ({len(changes.gone)} of {len(rows)} images are gone)" if len(changes.gone) > 1 else ""
        raise WrongIndex(
            f"data.root: {shown(rows.path(first), 200)} was instance {first} of this run and is gone{others}; "
            "restore it (and what data.exclude leaves out since), or start over with --fresh"
        )
    rows.entries_n["size"][changes.resized] = changes.sizes
    rows.entries_n["stamp"][changes.resized] = changes.stamps
    return known.grown(added, labels.names)


def old_fingerprint(index: ImageIndex, count: int, were: Mapping[int, int] | None = None) -> str:
    """What earlier versions had as the fingerprint of the first `count` images; `were` as in ImageIndex.fingerprint."""
    digest = hashlib.sha256(b"folder\n")
    for _, rows in index.pieces(count):
        digest.update(rows.paths)
    for start, rows in index.pieces(count):
        sizes = rows.entries_n["size"].astype("<i8")
        for instance, size in (were or {}).items():
            if start <= instance < start + len(rows):
                sizes[instance - start] = size
        digest.update(sizes.tobytes())
    return digest.hexdigest()


_UNKNOWN = -(1 << 62)  # no file has this size, so every one is found to have another


def _runs_of(rows: Rows) -> list[int]:
    return [0, *(number for number, (one, other) in enumerate(pairwise(rows.each_path()), 1) if other < one)]
