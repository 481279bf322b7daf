"""Where a zip's central directory is, and what its entries say: read in pieces, with no Python object that outlives its piece.

    [stub] member member ... member [central directory] [zip64 end record, its locator] end record [comment]

The end record is found from the file's end. It says how large the central directory is and where it begins, counted from where the
archive begins. The directory ends where the end records begin, so its real place follows from its size; the difference between both
is the length of a stub before the archive (a self-extracting one), by which all offsets are shifted. A field of 16 or 32 bits that is
full (all ones) has its value in the zip64 record or, of an entry, in its zip64 extra field.

A zip has one meaning or is refused (BrokenZip). These are faults of the whole file, since nobody can say which half is right: end records
that contradict each other, a count that is not that of the entries, members that overlap, a first member that is not where the directory
says. Python's zipfile reads some of these files in one of the possible ways.
Left out: archives in several parts, encrypted central directories.

Source: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PIECE_BYTES = 1 << 20
LOCAL_HEADER_BYTES = 30
_LOCAL_SIGNATURE = b"PK\3\4"
_ENTRY_SIGNATURE = int.from_bytes(b"PK\1\2", "little")
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_LONGEST_COMMENT_bytes = 0xFFFF
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_ZIP64_FIELD = 1
_UNIX_MAKERS = (3, 19)  # Unix, and macOS: their entries have a mode in the upper half of the external attributes
_ENTRY = np.dtype(
    [
        ("signature", "<u4"),
        ("minor", "u1"),
        ("maker", "u1"),
        ("needs", "<u2"),
        ("flags", "<u2"),
        ("method", "<u2"),
        ("time", "<u2"),
        ("date", "<u2"),
        ("crc32", "<u4"),
        ("stored", "<u4"),
        ("raw", "<u4"),
        ("name", "<u2"),
        ("extra", "<u2"),
        ("comment", "<u2"),
        ("disk", "<u2"),
        ("internal", "<u2"),
        ("external", "<u4"),
        ("header_at", "<u4"),
    ]
)
_ENTRY_BYTES = _ENTRY.itemsize
_LENGTHS_AT = 28  # of name, extra field and comment, in an entry
_lengths = struct.Struct("<3H").unpack_from
_field_header = struct.Struct("<2H").unpack_from
_wide = struct.Struct("<Q").unpack_from
_WRONG_ENTRY = "entry %d of its central directory is damaged, or is not where it should be"
_MOST = 1 << 61  # so that sums stay below 2^63


class BrokenZip(ValueError):
    """The file is no zip, or is damaged so that none of its members can be trusted. What it says does not name the file."""


@dataclass(frozen=True)
class Directory:
    """Where the central directory of a file is, how far all its offsets are shifted, and how many entries it should have."""

    start: int
    size_bytes: int
    shift_bytes: int
    count: int
    is_zip64: bool


class Entries(NamedTuple):
    """What the central directory says of n members in a row; all arrays are [n]."""

    names: list[bytes]
    flags: np.ndarray
    methods: np.ndarray
    modes: np.ndarray  # as in os.stat; 0 where the archive has none
    crc32s: np.ndarray
    stored_bytes: np.ndarray  # int64
    raw_bytes: np.ndarray  # int64
    headers_at: np.ndarray  # int64, in the file

    @property
    def least_ends(self) -> np.ndarray:
        """int64 [n]: each member ends there or later; its local header may have an extra field, which only it knows."""
        names = np.fromiter(map(len, self.names), np.int64, len(self.names))
        return self.headers_at + LOCAL_HEADER_BYTES + names + self.stored_bytes


def pread_fully(descriptor: int, size_bytes: int, offset: int) -> bytes:
    """So many bytes, fewer only where the file ends. Raises OSError as the system does."""
    first = os.pread(descriptor, size_bytes, offset)
    if len(first) == size_bytes or not first:
        return first
    pieces, missing = [first], size_bytes - len(first)
    while missing and pieces[-1]:
        pieces.append(os.pread(descriptor, missing, offset + size_bytes - missing))
        missing -= len(pieces[-1])
    return b"".join(pieces)


def find_directory(descriptor: int, file_bytes: int) -> Directory:
    """Raises BrokenZip, or OSError as the system does."""
    ends_at, end = _end_record(descriptor, file_bytes)
    disk, directory_disk, count_here, count, size_bytes, offset = end
    locator_at = ends_at - _LOCATOR_64.size
    locator = pread_fully(descriptor, _LOCATOR_64.size, locator_at) if locator_at >= 0 else b""
    is_zip64 = locator.startswith(b"PK\6\7")
    if is_zip64:
        ends_at, wide = _end_record_64(descriptor, locator, locator_at)
        fulls = (_FULL_16, _FULL_16, _FULL_16, _FULL_16, _FULL_32, _FULL_32)
        if any(narrow not in (full, value) for narrow, full, value in zip(end, fulls, wide, strict=True)):
            raise BrokenZip("its two end records say different things")
        disk, directory_disk, count_here, count, size_bytes, offset = wide
    if disk or directory_disk or count_here != count:
        raise BrokenZip(
            "it is one part of an archive in several parts, or its end record is damaged; join the parts (zip -s 0)"
        )
    start = ends_at - size_bytes
    if start < 0 or start < offset:
        raise BrokenZip(
            f"its central directory of {size_bytes:,} bytes at {offset:,} does not fit before its end record"
        )
    return Directory(start, size_bytes, start - offset, count, is_zip64)


def entries(descriptor: int, directory: Directory) -> Iterator[Entries]:
    """All entries in their order, some thousand at a time. Raises BrokenZip, or OSError as the system does."""
    at, end, rest, count = directory.start, directory.start + directory.size_bytes, b"", 0
    while at < end:
        fresh = pread_fully(descriptor, min(PIECE_BYTES, end - at), at)
        piece = rest + fresh
        begins, stop = _begins(piece)
        at += len(fresh)
        rest = piece[stop:]
        if begins:
            yield _parsed(piece, begins, count, directory)
            count += len(begins)
        if not fresh or (at == end and rest):  # the last entry is longer than what there is
            raise BrokenZip(_WRONG_ENTRY % count)
    # Old writers without zip64 count up to 65,535 and begin again.
    if count != directory.count and (directory.is_zip64 or count & _FULL_16 != directory.count):
        raise BrokenZip(f"its central directory has {count:,} entries, and its end record says {directory.count:,}")


def check_extents(
    descriptor: int, directory: Directory, headers_at_N: np.ndarray, least_ends_N: np.ndarray
) -> np.ndarray:
    """Where each member must end at the latest, int64 [N]: where the next one, or the central directory, begins.

    Raises BrokenZip where members overlap, reach into the directory, or do not begin where it says.
    """
    order_N = np.argsort(headers_at_N, kind="stable")
    starts_N, ends_N = headers_at_N[order_N], least_ends_N[order_N]
    nexts_N = np.append(starts_N[1:], directory.start)
    if len(starts_N) and pread_fully(descriptor, 4, int(starts_N[0])) != _LOCAL_SIGNATURE:
        shifted = f", {directory.shift_bytes:,} bytes behind where it says" if directory.shift_bytes else ""
        raise BrokenZip(
            f"its offsets are wrong: its central directory begins at byte {directory.start:,}{shifted}, and no member begins at "
            f"byte {starts_N[0]:,}; it may be larger than 4 GiB and written by a tool without zip64"
        )
    overlapping = np.flatnonzero(ends_N > nexts_N)
    if len(overlapping):
        first = int(overlapping[0])
        what = "the next member" if first + 1 < len(starts_N) else "the central directory"
        raise BrokenZip(
            f"{len(overlapping):,} of its members overlap: the one at byte {starts_N[first]:,} reaches to byte {ends_N[first]:,} "
            f"or further, and {what} begins at {nexts_N[first]:,}"
        )
    limits_N = np.empty_like(nexts_N)
    limits_N[order_N] = nexts_N
    return limits_N


def _end_record(descriptor: int, file_bytes: int) -> tuple[int, tuple[int, ...]]:
    """(where it begins; disk, disk of the directory, entries on this disk, entries, bytes of the directory, its offset)"""
    tail_at = max(0, file_bytes - _END.size - _LONGEST_COMMENT_bytes)
    tail = pread_fully(descriptor, file_bytes - tail_at, tail_at)
    found = []
    at = tail.rfind(b"PK\5\6")
    while at >= 0:
        if at + _END.size <= len(tail):
            _, *values, comment_bytes = _END.unpack_from(tail, at)
            if at + _END.size + comment_bytes == len(tail):
                found.append((tail_at + at, tuple(values)))
        at = tail.rfind(b"PK\5\6", 0, at)
    if not found:
        raise BrokenZip(
            "it has no end record: it is no zip, was cut off, is still being written, or bytes follow its end"
        )
    if len(found) > 1:
        raise BrokenZip(f"it has {len(found)} end records, and nothing says which one counts")
    return found[0]


def _end_record_64(descriptor: int, locator: bytes, locator_at: int) -> tuple[int, tuple[int, ...]]:
    """The same of the zip64 end record that lies before its locator."""
    _, _, said_at, _ = _LOCATOR_64.unpack(locator)
    # With a stub before the archive it lies further behind than the locator says; then it must be one without additions.
    for at in (said_at, locator_at - _END_64.size):
        record = pread_fully(descriptor, _END_64.size, at) if 0 <= at <= locator_at - _END_64.size else b""
        if record.startswith(b"PK\6\6"):
            _, rest_bytes, _, _, *values = _END_64.unpack(record)
            if at + 12 + rest_bytes == locator_at:
                return at, tuple(values)
    raise BrokenZip(f"its zip64 end record is not at byte {said_at:,}, where its locator says")


def _begins(piece: bytes) -> tuple[list[int], int]:
    """(where in the piece each whole entry begins, where the last of them ends)"""
    begins: list[int] = []
    at, last = 0, len(piece) - _ENTRY_BYTES
    while at <= last:
        name, extra, comment = _lengths(piece, at + _LENGTHS_AT)
        stop = at + _ENTRY_BYTES + name + extra + comment
        if stop > len(piece):
            break
        begins.append(at)
        at = stop
    return begins, at


def _parsed(piece: bytes, begins: list[int], before: int, directory: Directory) -> Entries:
    fixed = np.frombuffer(b"".join([piece[at : at + _ENTRY_BYTES] for at in begins]), _ENTRY)
    wrong = np.flatnonzero(fixed["signature"] != _ENTRY_SIGNATURE)
    if len(wrong):
        raise BrokenZip(_WRONG_ENTRY % (before + int(wrong[0])))
    stops = np.array(begins) + _ENTRY_BYTES + fixed["name"]
    names = [piece[at + _ENTRY_BYTES : stop] for at, stop in zip(begins, stops.tolist(), strict=True)]
    wide = np.stack([fixed["raw"], fixed["stored"], fixed["header_at"]]).astype(np.int64)
    full = np.flatnonzero((wide == _FULL_32).any(axis=0))
    if len(full):
        ends = stops[full] + fixed["extra"][full]
        extras = [piece[start:end] for start, end in zip(stops[full].tolist(), ends.tolist(), strict=True)]
        wide[:, full] = np.transpose(list(map(_widened, (full + before).tolist(), wide[:, full].T.tolist(), extras)))
    raw_bytes, stored_bytes, headers_at = wide
    return Entries(
        names=names,
        flags=fixed["flags"],
        methods=fixed["method"],
        modes=np.where(np.isin(fixed["maker"], _UNIX_MAKERS), fixed["external"] >> 16, 0),
        crc32s=fixed["crc32"],
        stored_bytes=stored_bytes,
        raw_bytes=raw_bytes,
        headers_at=headers_at + directory.shift_bytes,
    )


def _widened(number: int, values: list[int], extra: bytes) -> list[int]:
    """The values of an entry, each that is full replaced by the next one of its zip64 field; without one they are what they say."""
    field = _extra_field(extra, _ZIP64_FIELD)
    if field is None:
        return values
    at = 0
    for place, value in enumerate(values):
        if value == _FULL_32:
            if at + 8 > len(field):
                raise BrokenZip(f"entry {number:,} of its central directory has a zip64 field that is too short")
            (values[place],) = _wide(field, at)
            at += 8
    if max(values) >= _MOST:
        raise BrokenZip(f"entry {number:,} of its central directory has a size or an offset of {max(values):,} bytes")
    return values


def _extra_field(extra: bytes, wanted: int) -> bytes | None:
    at = 0
    while at + 4 <= len(extra):
        kind, size_bytes = _field_header(extra, at)
        if kind == wanted:
            return extra[at + 4 : at + 4 + size_bytes]
        at += 4 + size_bytes
    return None
