"""The bytes of one member of a zip, by pread: nothing is shared but a descriptor, and a descriptor has no place of its own here.

The central directory says where a member's local header is; the header repeats the name and may have an extra field of another length,
so only it says where the data begin. Both, and most often all data, come with one pread. What may be wrong with a member is found out
here and is a BrokenMember: another name or method in the header, data that reach into what lies behind them, a stream that is damaged or
longer than it said, a crc32 that does not fit. So no bytes of another member are ever returned.

Inflating stops at the size that the directory says, and a member of more than MOST_BYTES is refused: a few kilobytes can
inflate to a gigabyte.
"""

import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from datasets.containers.zip_directory import LOCAL_HEADER_BYTES, pread_fully
from datasets.regular_file import NotRegular, open_regular, patiently
from datasets.shown import shown

STORED, DEFLATED = 0, 8
ENCRYPTED_FLAG, UTF8_FLAG = 1, 1 << 11
MOST_BYTES = 1 << 30
# What cannot be made smaller is a little larger when it is deflated.
MOST_STORED_BYTES = MOST_BYTES + (MOST_BYTES >> 10)
_HEADER = struct.Struct("<4s2x2H16x2H")
_USUAL_EXTRA_BYTES = 64  # of a local header: times, owners, sizes of zip64


class BrokenMember(Exception):
    """The content of a member is at fault; `reason` says how, and does not name it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Member(NamedTuple):
    """What the central directory says of a member.

    name          its bytes, by which it is known; `shown_name` is for people
    header_at     where its local header is in the file
    stored_bytes, raw_bytes   as it lies in the file, and inflated
    method        STORED or DEFLATED
    crc32         of the raw bytes
    flags         general purpose bits
    end_at        where the next member or the central directory begins, so that it must end before. Where that is not known, the
                  size of the file will do: the crc32 still tells
    """

    name: bytes
    header_at: int
    stored_bytes: int
    raw_bytes: int
    method: int
    crc32: int
    flags: int
    end_at: int

    @property
    def shown_name(self) -> str:
        return shown_name(self.name, self.flags)


def shown_name(name: bytes, flags: int) -> str:
    """On one line: UTF-8 where the flags say so, else code page 437."""
    return shown(name if flags & UTF8_FLAG else name.decode("cp437"))


def read_member(descriptor: int, member: Member) -> bytes:
    """The raw bytes. For threads and forked processes alike.

    Raises BrokenMember where the content is at fault, and OSError or MemoryError where the machine is.
    """
    if member.raw_bytes > MOST_BYTES or member.stored_bytes > MOST_STORED_BYTES:
        raise BrokenMember(f"{max(member.raw_bytes, member.stored_bytes):,} bytes; at most {MOST_BYTES:,} are read")
    data = _stored_data(descriptor, member)
    content = data if member.method == STORED else _inflated(data, member)
    if len(content) != member.raw_bytes:
        raise BrokenMember(f"{len(content):,} bytes are stored where the directory says {member.raw_bytes:,}")
    if zlib.crc32(content) != member.crc32:
        raise BrokenMember("its crc32 does not fit: the content is damaged")
    return content


class ZipReader:
    """Reads members of one zip; made before a fork, used before and after it, from any thread.

    Each process opens the file for itself at its first read: one that was inherited could have been closed, and its number be another
    file's by then.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()  # as it is now: a process may go to another directory later
        self._descriptors: dict[int, int] = {}  # by process; those of the processes above are never used

    def read(self, member: Member) -> bytes:
        """Raises BrokenMember, or ImagesUnavailable where the machine fails for some two seconds, or the zip is gone."""
        return patiently(lambda: f"{member.shown_name} in {shown(self._path)}", lambda: self.read_once(member))

    def read_once(self, member: Member) -> bytes:
        """Raises BrokenMember, or OSError or MemoryError where the machine fails: for a caller who is patient."""
        return read_member(self._descriptor(), member)

    def close(self) -> None:
        """Of this process. Not while another thread reads; the next read opens the file again."""
        descriptor = self._descriptors.pop(os.getpid(), None)
        if descriptor is not None:
            os.close(descriptor)

    def _descriptor(self) -> int:
        process = os.getpid()
        descriptor = self._descriptors.get(process)
        if descriptor is None:
            try:
                opened, _ = open_regular(os.fsencode(self._path))
            except NotRegular as error:
                raise OSError(f"another thing lies there now: {error}") from error
            # Of two threads that open it at once one is first. A lock would stay locked in a process forked meanwhile.
            descriptor = self._descriptors.setdefault(process, opened)
            if descriptor != opened:
                os.close(opened)
        return descriptor


def _stored_data(descriptor: int, member: Member) -> bytes:
    most_bytes = member.end_at - member.header_at
    usual_bytes = LOCAL_HEADER_BYTES + len(member.name) + _USUAL_EXTRA_BYTES + member.stored_bytes
    found = pread_fully(descriptor, min(usual_bytes, most_bytes), member.header_at)
    if len(found) < LOCAL_HEADER_BYTES:
        raise BrokenMember("the file ends before its local header")
    signature, flags, method, name_bytes, extra_bytes = _HEADER.unpack_from(found)
    if signature != b"PK\3\4":
        raise BrokenMember("no local header lies where the directory says")
    if flags & ENCRYPTED_FLAG:
        raise BrokenMember("its local header says that it is encrypted")
    if method != member.method:
        raise BrokenMember(f"its local header says method {method}, the directory method {member.method}")
    begin = LOCAL_HEADER_BYTES + name_bytes
    if found[LOCAL_HEADER_BYTES:begin] != member.name:
        raise BrokenMember("the member where the directory says has another name")
    begin += extra_bytes
    missing_bytes = begin + member.stored_bytes - len(found)
    if missing_bytes > 0:
        if len(found) + missing_bytes > most_bytes:
            raise BrokenMember("its data reach into what lies behind them")
        found += pread_fully(descriptor, missing_bytes, member.header_at + len(found))
        if len(found) < begin + member.stored_bytes:
            raise BrokenMember("the file ends in the middle of it")
    return found[begin : begin + member.stored_bytes]


def _inflated(data: bytes, member: Member) -> bytes:
    if member.method != DEFLATED:
        raise BrokenMember(f"method {member.method}; only stored (0) and deflated (8) members are read")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # One byte more than there should be: 0 would mean without a limit, and the end is then seen as well.
        content = inflate.decompress(data, member.raw_bytes + 1)
    except zlib.error as error:
        raise BrokenMember(f"its deflated stream is damaged ({error})") from error
    if len(content) > member.raw_bytes:
        raise BrokenMember(f"it inflates to more than the {member.raw_bytes:,} bytes that the directory says")
    if not inflate.eof:
        raise BrokenMember("its deflated stream is cut off")
    if inflate.unused_data:
        raise BrokenMember("its deflated stream ends before its data do")
    return content
