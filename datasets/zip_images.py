"""Images in a zip, in the published layout as it stands: train.zip, train_map.txt, val.zip, val_map.txt in one directory.

A line of a map file is a member's path, a tab and a label; the images are numbered in the order of its lines. Without a map they are
numbered in the order of the central directory, and `labels` may take the first directory of their paths. A single zip, with a map beside
it or without, is a set of its own. `zipped.py` and `map_file.py` say what is left out.

A zip may be packed anew between two starts, in another order and with other images added: a path with the same size and crc32 is the
image that it was. One that is gone, or has another content, is skipped and counted.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from datasets.containers.map_file import mapped
from datasets.containers.names import Finder, Names
from datasets.containers.zip_archive import Zip
from datasets.containers.zip_member import UTF8_FLAG
from datasets.containers.zipped import Members, members
from datasets.index import packed
from datasets.index.image_index import Held, ImageIndex, WrongIndex
from datasets.index.rescan import NO_CHANGES, Changes, change_names
from datasets.index.rows import ENDS, ENTRY, LOW_32, NO_LABEL, Labels, Rows, joined, renumbered
from datasets.index.stored import opened
from datasets.indexed import IndexedImages, LabelTable, labels_of_entries
from datasets.shown import shown
from datasets.splits import Splits, find_splits


class ZipImages(IndexedImages):
    """Source of RGB images [H, W, 3] of any sizes.

    root     a directory with the zips of the splits, or with one zip; or a zip
    labels   None: those of the map, where there is one; "folders": without a map, the first component of the path
    known, known_count, asked, stored, rescan   as ImageFolder has them; a split is the name of a zip without its suffix
    ValueError where there is no zip, no image in it, or a map that does not fit; WrongIndex, one of them, where an index is damaged.
    """

    def __init__(
        self,
        root: Path,
        labels: Literal["folders"] | Path | None = None,
        known: Path | None = None,
        known_count: int | None = None,
        *,
        asked: str | None = None,
        stored: Path | None = None,
        rescan: bool = False,
    ) -> None:
        if isinstance(labels, Path):
            raise ValueError(f"data.labels: a zip has its labels in {shown(root)}/train_map.txt; set it to null")
        self.root, self._by = root, labels
        self._splits = find_splits(root, suffix=".zip") if asked is None and root.is_dir() else Splits()
        place, split = zip_of(root, asked or self._splits.trained)
        notes, changes = self._splits.notes(split), NO_CHANGES
        index: ImageIndex | None = None
        if stored is not None:
            index = opened(stored)
        elif known is not None:
            content = packed.read_content(known)
            if not packed.is_packed(content):
                raise WrongIndex(
                    f"{shown(known)} is the list of a folder, not of a zip; restore it, or start over with --fresh"
                )
            index, _ = packed.unpacked(content, known, known_count)
        if stored is None or rescan:
            now, found_notes = listed_zip(place)
            notes += found_notes
            if index is None:
                index = now
            else:
                index, changes = with_new_members(index, now, may_move=stored is None)
        assert index is not None
        if not len(index):
            raise ValueError(f"data.root: no image in {shown(place)} ({'; '.join(notes[:2])})")
        super().__init__(index, Zip(place), split=split, notes=notes, changes=changes, stored=stored)
        has_map = len(index.files) > 1
        if has_map or labels == "folders":
            self._labels = labels_of_entries(index)
        if not has_map and self._labels is not None and asked is None:
            _require_labels(self._labels, self)

    def _open_beside(self) -> "ZipImages | None":
        asked = self._splits.asked
        if not asked or self.split != self._splits.trained:
            return None
        return ZipImages(self.root, self._by, asked=asked, stored=self._index_beside(asked))


def listed_zip(place: Path) -> tuple[ImageIndex, tuple[str, ...]]:
    """(the index of what is in a zip and, where there is one, in the map beside it; lines to tell)"""
    there = members(place)
    map_path = place.with_name(f"{place.stem}_map.txt")
    if not map_path.exists():
        rows, label_names = _rows_by_folder(there)
        return ImageIndex("zip", Held(rows), [0], label_names, files=(place.name,)), there.notes
    numbers, labels, notes = mapped(map_path, there.names)
    names, of_line = np.unique(labels, return_inverse=True)
    rows = _rows_of(there, numbers, of_line.astype(np.int32))
    label_names = [b"%d" % name for name in names.tolist()]
    index = ImageIndex("zip", Held(rows), [0], label_names, files=(place.name, map_path.name))
    return index, (*there.notes, *notes)


def with_new_members(index: ImageIndex, now: ImageIndex, may_move: bool) -> tuple[ImageIndex, Changes]:
    """The images of an index where they are in the zip as it is `now`, those that are new behind them, and what became of the others.

    may_move: ValueError where False and members lie elsewhere than the index says
    """
    known, there = index.piece(0, len(index)), now.piece(0, len(now))
    there_names = Names.of(there.each_path())
    place_N = Finder(there_names).find(Names.of(known.each_path()))
    is_there = place_N >= 0
    alike = np.zeros(len(known), bool)
    old, new = known.entries_n[is_there], there.entries_n[place_N[is_there]]
    alike[is_there] = ((old["size"] ^ new["size"]) & LOW_32 == 0) & ((old["stamp"] ^ new["stamp"]) & LOW_32 == 0)
    if not may_move and (known.entries_n[alike]["offset"] != there.entries_n[place_N[alike]]["offset"]).any():
        raise ValueError(
            "data.index: the zip was packed anew since it was indexed; make its index anew, in another directory"
        )
    entries_n = known.entries_n.copy()
    entries_n["label"] = NO_LABEL
    entries_n[alike] = there.entries_n[place_N[alike]]
    is_new = np.ones(len(there), bool)
    is_new[place_N[is_there]] = False
    gone = np.flatnonzero(~alike)
    changes = Changes(gone, first_gone=change_names(index, gone))
    added = _chosen(there, there_names, np.flatnonzero(is_new))
    if not may_move:
        labels = Labels(index.label_names)
        return index.grown(renumbered(added, now.label_names, labels), labels.names), changes
    kept = Held(Rows(entries_n, known.ends_n, known.paths))
    return ImageIndex("zip", kept, index.runs, now.label_names, files=now.files).grown(added, now.label_names), changes


def zip_of(root: Path, split: str) -> tuple[Path, str]:
    """(the zip, its split)"""
    if split:
        return root / f"{split}.zip", split
    if root.is_file():
        return root, ""
    if not root.exists():
        raise ValueError(
            f"data.root: {shown(root)} does not exist; set it to a zip, or to the directory of train.zip and val.zip"
        )
    zips = sorted(path for path in root.iterdir() if path.suffix.lower() == ".zip" and not path.name.startswith("."))
    if len(zips) != 1:
        there = ", ".join(shown(path.name) for path in zips[:3]) or "none"
        raise ValueError(
            f"data.root: {shown(root)} has {len(zips)} zips ({there}); name them train.zip and val.zip, or set data.root to one of them"
        )
    return zips[0], ""


def _rows_by_folder(there: Members) -> tuple[Rows, list[bytes]]:
    labels = Labels()
    numbers = np.fromiter((labels.of_path(name) for name in there.names), np.int32, len(there))
    return _rows_of(there, np.arange(len(there)), numbers), labels.names


def _rows_of(there: Members, numbers: np.ndarray, labels: np.ndarray) -> Rows:
    table = there.table_N[numbers]
    entries_n = np.zeros(len(numbers), ENTRY)
    wide = {name: table[name].astype(np.int64) for name in ("raw_bytes", "stored_bytes", "crc32", "method", "flags")}
    entries_n["offset"] = table["header_at"]
    entries_n["size"] = wide["raw_bytes"] | wide["stored_bytes"] << 32
    entries_n["stamp"] = wide["crc32"] | wide["method"] << 32 | (wide["flags"] & UTF8_FLAG) << 48
    entries_n["label"] = labels
    return _with_paths(entries_n, there.names.take(numbers))


def _with_paths(entries_n: np.ndarray, names: Names) -> Rows:
    ends_n = np.cumsum(names.stops_N - names.starts_N + 1).astype(ENDS)
    return Rows(entries_n, ends_n, b"".join(name + b"\0" for name in names))


def _chosen(rows: Rows, names: Names, numbers: np.ndarray) -> Rows:
    return _with_paths(rows.entries_n[numbers], names.take(numbers)) if len(numbers) else joined([])


def _require_labels(table: LabelTable, source: ZipImages) -> None:
    without = table.numbers_N == NO_LABEL
    without[source.changes.gone] = False
    if without.any():
        raise ValueError(
            f'data.labels: "folders", but {source.instance_name(int(np.argmax(without)))} lies in no folder of its zip; '
            "put a map file beside the zip, or set data.labels to null"
        )
