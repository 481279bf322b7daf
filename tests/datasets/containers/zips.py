"""Not a test: zips made by Python's zipfile, and where in their bytes the parts of a directory lie."""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

from datasets.containers.zipped import Members, members

DEFLATED, STORED = zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED
END_BYTES = 22


def info(name: str, method: int = STORED, mode: int = 0o100644) -> zipfile.ZipInfo:
    """mode: as in os.stat, of a member made on Unix."""
    made = zipfile.ZipInfo(name)
    made.compress_type = method
    made.external_attr = mode << 16
    made.create_system = 3
    return made


def zip_of(parts: Iterable[tuple[str | zipfile.ZipInfo, bytes]], comment: bytes = b"", method: int = STORED) -> bytes:
    """A zip with these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        made.comment = comment
        for name, content in parts:
            made.writestr(name, content)
    return buffer.getvalue()


def members_of(path: Path, content: bytes) -> Members:
    path.write_bytes(content)
    return members(path)


def central_entries(content: bytes) -> list[int]:
    """Where the entries of a zip's central directory begin, by what zipfile finds in it."""
    with zipfile.ZipFile(io.BytesIO(content)) as read:
        at, found = read.start_dir, []
        for one in read.infolist():
            found.append(at)
            name = len(one.orig_filename.encode("utf-8" if one.flag_bits & 0x800 else "cp437"))
            at += 46 + name + len(one.extra) + len(one.comment)
    return found


def put(content: bytes, at: int, value: int, size_bytes: int) -> bytes:
    """The same with another number at one place."""
    return content[:at] + value.to_bytes(size_bytes, "little") + content[at + size_bytes :]
