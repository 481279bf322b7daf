"""The published map files, `train_map.txt` beside `train.zip`: which image has which label, and in which order.

    n01440764/n01440764_10026.JPEG<tab>0
    n01440764/n01440764_10027.JPEG<tab>0

A line is a path inside the zip, a tab, and a label that is a whole number. The images are numbered in the order of the lines, and labels
are taken as they are. Lines may end as on Windows; a mark of UTF-8 at the start and blank lines at the end mean nothing.

Paths are compared byte by byte. Some zips are packed one folder higher, as `train/n01440764/...`, and some maps have paths that begin
further out. So where no line names a member as it is, folders that all members share are put before all lines, or folders that all lines
share are taken off. The first that makes any line name a member is used for the whole file, and a note tells of it.

A line that is no line, or a second one for an image, is a ValueError with its number. A line that names no image of the zip, and an image
without a line, are left out, counted and told: part of a set may be missing or have been left out (`zip_left_out.py`).

10^7 lines take their own bytes and 24 more each while they are read, and 16 bytes for each name of the zip.
"""

import codecs
import re
from array import array
from pathlib import Path

import numpy as np

from datasets.containers.names import Finder, Names
from datasets.regular_file import content_of
from datasets.shown import shown

MOST_LABEL = (1 << 31) - 1
_LINE = re.compile(rb"([^\t\r\n\0]+)\t([0-9]{1,10})\r?(?:\n|\Z)")
_BLANK = re.compile(rb"[\r\n]*\Z")
_NAMED_LINES = 3


def mapped(map_path: Path, names: Names) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(numbers int64 [N] of the names that the lines name, in the order of the lines; their labels int64 [N]; lines to tell).

    Raises ValueError where the file is not there or a line is wrong, or where no line names an image; ImagesUnavailable where the
    machine fails.
    """
    paths, labels = _lines(map_path)
    if not len(paths):
        raise ValueError(f"{shown(map_path)} is empty; a line is a path inside the zip, a tab and a label")
    paths, numbers, notes = _found(paths, names)
    is_found = numbers >= 0
    if not is_found.any():
        there = f", which has {shown(names[0], 200)}" if len(names) else ""
        raise ValueError(
            f"{shown(map_path)} line 1 is for {shown(paths[0], 200)}, and none of its {len(paths):,} lines names an image of the "
            f"zip{there}; write the paths as they are inside the zip"
        )
    _refuse_second_lines(map_path, paths, numbers)
    missing = np.flatnonzero(~is_found)
    if len(missing):
        first = ", ".join(f"{shown(paths[line], 100)} (line {line + 1})" for line in missing[:_NAMED_LINES].tolist())
        notes += (f"{len(missing):,} of {len(paths):,} lines of the map name no image of the zip, left out: {first}",)
    unmapped = np.ones(len(names), bool)
    unmapped[numbers[is_found]] = False
    if unmapped.any():
        first_name = shown(names[int(np.argmax(unmapped))], 100)
        notes += (
            f"{int(unmapped.sum()):,} of {len(names):,} images of the zip have no line in the map, left out: {first_name}",
        )
    return numbers[is_found], labels[is_found], notes


def _lines(map_path: Path) -> tuple[Names, np.ndarray]:
    """(the path of each line, its label int64)"""

    def refusal(reason: object) -> str:
        return f"{shown(map_path)} cannot be read: {reason}; it lies beside its zip"

    content = content_of(map_path, refusal)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{shown(map_path)} is UTF-16; save it as UTF-8")
    at = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
    starts, stops, labels = array("q"), array("q"), array("q")
    while (line := _LINE.match(content, at)) is not None:
        label = int(line[2])
        if label > MOST_LABEL:
            break
        starts.append(at)
        stops.append(line.end(1))
        labels.append(label)
        at = line.end()
    if _BLANK.match(content, at) is None:
        wrong = content[at : at + 4096].partition(b"\n")[0]
        raise ValueError(
            f"{shown(map_path)} line {len(labels) + 1} is {shown(wrong, 200)!r}; a line is a path inside the zip, a tab and a label "
            f"from 0 to {MOST_LABEL:,}"
        )
    return Names(content, _array(starts), _array(stops)), _array(labels)


def _array(numbers: "array[int]") -> np.ndarray:
    return np.frombuffer(numbers, np.int64) if numbers else np.empty(0, np.int64)


def _found(paths: Names, names: Names) -> tuple[Names, np.ndarray, tuple[str, ...]]:
    """(the paths as the zip has them; the number of each name, -1 where there is none; a note if the paths are others)"""
    finder = Finder(names)
    as_they_are = finder.find(paths)
    if (as_they_are >= 0).any():
        return paths, as_they_are, ()
    for prefix in _prefixes(names):
        longer = Names.of(prefix + path for path in paths)
        if (numbers := finder.find(longer)).max() >= 0:
            note = f"the images of the zip lie in {shown(prefix, 200)}, which the lines of the map leave out"
            return longer, numbers, (note,)
    for prefix in _prefixes(paths):
        shorter = Names(paths.content, paths.starts_N + len(prefix), paths.stops_N)
        if (numbers := finder.find(shorter)).max() >= 0:
            note = f"the lines of the map begin with {shown(prefix, 200)}, which the images of the zip do not have"
            return shorter, numbers, (note,)
    return paths, as_they_are, ()


def _prefixes(names: Names) -> list[bytes]:
    """Every row of folders, with a slash behind it, that all names begin with; the shortest first."""
    first, last = min(names, default=b""), max(names, default=b"")
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return [first[: at + 1] for at in range(shared) if first[at : at + 1] == b"/"]


def _refuse_second_lines(map_path: Path, paths: Names, numbers: np.ndarray) -> None:
    order = np.argsort(numbers, kind="stable")  # lines for one image come one behind the other, in their order
    is_second = (np.diff(numbers[order]) == 0) & (numbers[order][1:] >= 0)
    seconds = order[1:][is_second]
    if len(seconds):
        place = int(np.argmin(np.where(is_second, order[1:], len(order))))
        first, second = int(order[place]), int(order[place + 1])
        raise ValueError(
            f"{shown(map_path)} line {second + 1} is a second one for {shown(paths[second], 200)} (the first is line {first + 1}; "
            f"{len(seconds):,} lines repeat an image); take it out"
        )
