"""The images of a zip, numbered in the order of its central directory, as arrays: 40 bytes a member beside its name.

    images = members(Path("train.zip"))           # images[number] is a Member; its name is bytes
    reader = ZipReader(Path("train.zip"))         # zip_member.py
    content = reader.read(images[0])

Every entry of the central directory is a member of these or is left out for a reason (`zip_left_out.py`), counted and told. Of a name that
stands there twice, zipfile takes the last entry, and other readers take the first. An image whose content depends on the reader is
none, so neither is taken; but where size and crc32 agree, both are the same image, and the last one is taken.

What is wrong with the file as a whole is a ValueError here. A member that is damaged is found when it is read.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.containers.names import Names, equal_groups
from datasets.containers.zip_directory import (
    BrokenZip,
    Directory,
    Entries,
    check_extents,
    entries,
    find_directory,
)
from datasets.containers.zip_left_out import COPY, TWICE, LeftOut, reasons_of
from datasets.containers.zip_member import Member
from datasets.regular_file import NotRegular, is_of_the_file, open_regular, patiently
from datasets.shown import shown

_TABLE = np.dtype(
    [
        ("header_at", "<i8"),
        ("end_at", "<i8"),
        ("stored_bytes", "<u4"),
        ("raw_bytes", "<u4"),
        ("crc32", "<u4"),
        ("method", "<u2"),
        ("flags", "<u2"),
    ]
)


@dataclass(frozen=True)
class Members:
    """N members that are images: members[number], or all in their order by iterating; a Member is built when it is asked for.

    names      their bytes
    table_N    the other fields of `Member` as a structured array [N]
    left_out   reason -> how many entries; these and the N members are all entries of the central directory
    notes      lines about what is left out and somebody may miss
    """

    names: Names
    table_N: np.ndarray
    left_out: dict[str, int]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Member:
        header_at, end_at, stored_bytes, raw_bytes, crc32, method, flags = self.table_N[number].item()
        return Member(self.names[number], header_at, stored_bytes, raw_bytes, method, crc32, flags, end_at)

    def __iter__(self) -> Iterator[Member]:
        return map(self.__getitem__, range(len(self)))


def members(path: Path) -> Members:
    """The images of a zip.

    Raises ValueError where it is not there or is no whole zip, ImagesUnavailable where the machine fails.
    """

    def read() -> Members:
        try:
            descriptor, file_bytes = open_regular(os.fsencode(path))
        except (NotRegular, OSError) as error:
            if isinstance(error, OSError) and not is_of_the_file(error):
                raise
            why = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"{shown(path)} cannot be read as a zip: {why}; set the path of a .zip file") from error
        try:
            return _listed(descriptor, find_directory(descriptor, file_bytes))
        except BrokenZip as error:
            raise ValueError(
                f"{shown(path)} is no whole zip: {error}. Copy it again from where it is whole, or pack it anew "
                "(zip -FF saves what can be saved)"
            ) from error
        finally:
            os.close(descriptor)

    return patiently(lambda: shown(path), read)


def _listed(descriptor: int, directory: Directory) -> Members:
    left_out, content = LeftOut(), bytearray()
    name_lengths, headers_at, least_ends = [[np.empty(0, np.int64)] for _ in range(3)]
    takens, tables = [np.empty(0, bool)], [np.empty(0, _TABLE)]
    for some in entries(descriptor, directory):
        is_taken = np.ones(len(some.names), bool)
        for number, reason in reasons_of(some).items():
            is_taken[number] = False
            left_out.add(reason, some.names[number], int(some.flags[number]))
        names = [some.names[number] for number in np.flatnonzero(is_taken).tolist()]
        content += b"".join(names)
        name_lengths.append(np.fromiter(map(len, names), np.int64, len(names)))
        tables.append(_table_of(some, is_taken))
        takens.append(is_taken)
        headers_at.append(some.headers_at)
        least_ends.append(some.least_ends)
    # Of all entries: what is left out takes its place in the file all the same.
    ends_at = check_extents(descriptor, directory, np.concatenate(headers_at), np.concatenate(least_ends))
    table_N = np.concatenate(tables)
    table_N["end_at"] = ends_at[np.concatenate(takens)]
    offsets = np.append(0, np.cumsum(np.concatenate(name_lengths)))
    return _without_doubles(Names(bytes(content), offsets[:-1], offsets[1:]), table_N, left_out)


def _table_of(some: Entries, is_taken: np.ndarray) -> np.ndarray:
    table = np.zeros(int(is_taken.sum()), _TABLE)
    columns = (some.headers_at, some.stored_bytes, some.raw_bytes, some.crc32s, some.methods, some.flags)
    fields = ("header_at", "stored_bytes", "raw_bytes", "crc32", "method", "flags")
    for field, column in zip(fields, columns, strict=True):
        table[field] = column[is_taken]
    return table


def _without_doubles(names: Names, table_N: np.ndarray, left_out: LeftOut) -> Members:
    """Of each name one member at most."""
    is_taken = np.ones(len(names), bool)
    for numbers in equal_groups(names):
        is_same = len(np.unique(table_N[numbers][["crc32", "raw_bytes"]])) == 1
        for number in numbers[:-1] if is_same else numbers:
            is_taken[number] = False
            left_out.add(COPY if is_same else TWICE, names[number], int(table_N["flags"][number]))
    if not is_taken.all():
        names, table_N = names.take(is_taken), table_N[is_taken]
    return Members(names, table_N, left_out.counts, left_out.notes)
