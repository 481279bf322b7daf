"""An index in one file, which is written and read as a whole: what a run keeps of a folder that it listed itself.

    magic, 16 bytes | length of the header, 8 bytes | its crc32c, 4 bytes | header (JSON) | entries | ends | paths

The header has the crc32c of all that follows it. The magic begins with a zero byte, which the lists of earlier versions never did: those
are the paths alone, each with a zero byte behind it (old_list.py).
"""

import json
import os
from pathlib import Path

import google_crc32c
import numpy as np

from datasets.index.image_index import Held, ImageIndex, WrongIndex
from datasets.index.rows import ENDS, ENTRY, Rows
from datasets.index.stored import replaced
from datasets.regular_file import NotRegular, content_of
from datasets.shown import shown

MAGIC = b"\0pic-engine idx1"
_LENGTH_END = len(MAGIC) + 8
_BEGIN = _LENGTH_END + 4


def write(index: ImageIndex, split: str, path: Path) -> None:
    """Whole or not at all; on the disk on return."""
    rows = index.piece(0, len(index))
    columns = (rows.entries_n.tobytes(), rows.ends_n.astype(ENDS).tobytes(), rows.paths)
    crc = 0
    for column in columns:
        crc = google_crc32c.extend(crc, column)
    header = {
        "kind": index.kind,
        "split": split,
        "files": list(index.files),
        "runs": index.runs,
        "labels": [name.decode("utf-8", "surrogateescape") for name in index.label_names],
        "count": len(rows),
        "crc": crc,
    }
    text = json.dumps(header).encode()
    with replaced(path) as descriptor, os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(MAGIC + len(text).to_bytes(8, "little") + google_crc32c.value(text).to_bytes(4, "little") + text)
        for column in columns:
            file.write(column)


def read_content(path: Path) -> bytes:
    """All bytes of the file of an index, of this version or an earlier one. WrongIndex where it cannot be read."""

    def refusal(error: NotRegular | OSError) -> str:
        reason = f": {error.strerror}" if isinstance(error, OSError) else f" is {error}"
        return f"{shown(path)}{reason}; restore it, or start over with --fresh"

    return content_of(path, refusal, WrongIndex)


def is_packed(content: bytes) -> bool:
    return content.startswith(b"\0")


def unpacked(content: bytes, path: Path, count: int | None = None) -> tuple[ImageIndex, str]:
    """(the first `count` images, or all of them; the split that they are in). WrongIndex where it is damaged, or has fewer."""
    damaged = f"{shown(path)} is damaged; restore it, or start over with --fresh"
    try:
        if not content.startswith(MAGIC):
            raise WrongIndex(damaged)
        begin = _BEGIN + int.from_bytes(content[len(MAGIC) : _LENGTH_END], "little")
        text = content[_BEGIN:begin]
        if google_crc32c.value(text) != int.from_bytes(content[_LENGTH_END:_BEGIN], "little"):
            raise WrongIndex(damaged)
        header = json.loads(text)
        body = memoryview(content)[begin:]
        images = header["count"]
        if google_crc32c.value(bytes(body)) != header["crc"]:
            raise WrongIndex(damaged)
        ends_at, paths_at = images * ENTRY.itemsize, images * (ENTRY.itemsize + ENDS.itemsize)
        rows = Rows(
            np.frombuffer(body[:ends_at], ENTRY),
            np.frombuffer(body[ends_at:paths_at], ENDS),
            bytes(body[paths_at:]),
        )
        labels = [name.encode("utf-8", "surrogateescape") for name in header["labels"]]
        kind, split, runs, files = header["kind"], header["split"], header["runs"], tuple(header["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise WrongIndex(damaged) from error
    if count is not None and count > images:
        raise WrongIndex(f"{shown(path)} lists {images} of {count} images; restore it, or start over with --fresh")
    if count is not None:
        rows, runs = rows.piece(0, count), [first for first in runs if first < count]
    return ImageIndex(kind, Held(rows), runs, labels, files=files), split
