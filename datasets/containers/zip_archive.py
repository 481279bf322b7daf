"""One zip: a member is found by the offset of its local header, which repeats its name, and is compared with its crc32."""

import io
import os
from pathlib import Path
from typing import IO

from datasets.containers.container import BadContent
from datasets.containers.zip_member import BrokenMember, Member, ZipReader, shown_name
from datasets.index.rows import LOW_32, Entry

_NO_END = 1 << 62  # the end of a member is not kept; where it is wrong the crc32 tells


class Zip:
    kind = "zip"

    def __init__(self, path: Path) -> None:
        self._path = os.fsencode(path.absolute())
        self._reader = ZipReader(path)

    def read(self, entry: Entry) -> IO[bytes]:
        try:
            return io.BytesIO(self._reader.read_once(member_of(entry)))
        except BrokenMember as error:
            raise BadContent(error.reason) from error

    def place(self, entry: Entry) -> tuple[bytes, int]:
        return self._path, entry.offset

    def shown_name(self, entry: Entry) -> str:
        return shown_name(entry.path, entry.stamp >> 48)

    def size_bytes(self, entry: Entry) -> int:
        return entry.size & LOW_32


def member_of(entry: Entry) -> Member:
    return Member(
        name=entry.path,
        header_at=entry.offset,
        stored_bytes=entry.size >> 32,
        raw_bytes=entry.size & LOW_32,
        method=entry.stamp >> 32 & 0xFFFF,
        crc32=entry.stamp & LOW_32,
        flags=entry.stamp >> 48,
        end_at=_NO_END,
    )
