"""Which entries of a zip are no images that can be read, and lines that tell of them.

The first of these that holds is an entry's reason:

    DIRECTORY: its name ends with a slash
    LINK: by its mode a link, a FIFO, a socket, a device or a directory
    UNSAFE: a path that is absolute, empty, or has `..`, a backslash, a drive letter or a zero byte. Nothing is ever written to a path
        of an archive; such a path is left out because no map file and no folder can mean it
    HIDDEN: a name that starts with a dot, as the resource forks `._x.jpg` do, or one in a directory of a system (walk.LEFT_OUT),
        such as `__MACOSX`
    OTHER: a suffix that no image has (walk.SUFFIXES)
    ENCRYPTED, and then a method of compression other than stored and deflated
    LARGE: more than MOST_BYTES, stored or inflated

Two more are found when all entries are known (`zipped.py`): TWICE and COPY.
"""

import re
import stat

import numpy as np

from datasets.containers.zip_directory import Entries
from datasets.containers.zip_member import (
    DEFLATED,
    ENCRYPTED_FLAG,
    MOST_BYTES,
    MOST_STORED_BYTES,
    STORED,
    shown_name,
)
from datasets.walk import LEFT_OUT, SUFFIXES

DIRECTORY = "a directory"
LINK = "a link or another thing that is no file"
UNSAFE = "an unsafe path (absolute, empty, or with .., a backslash, a drive letter or a zero byte)"
HIDDEN = "hidden, or of a system"
OTHER = f"no image by its suffix (images are read from {' '.join(SUFFIXES)})"
ENCRYPTED = "encrypted"
LARGE = f"larger than {MOST_BYTES:,} bytes"
TWICE = "a name that stands there more than once, for different contents"
COPY = "a copy of a member of the same name, which is read once"
_METHODS = {1: "shrunk", 6: "imploded", 9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 99: "AES"}
_STRONGLY_ENCRYPTED_FLAG = 1 << 6
_ENCRYPTED_FLAGS = ENCRYPTED_FLAG | _STRONGLY_ENCRYPTED_FLAG
_SUFFIXES_bytes = tuple(suffix.encode() for suffix in SUFFIXES)
_LEFT_OUT_bytes = {name.lower().encode() for name in LEFT_OUT}
_DRIVE = re.compile(rb"[A-Za-z]:")
# Names in which `_fault_of` would find nothing, told in a fraction of its time: nearly all. The others are looked at one by one.
_PART = rb"(?!(?:%b)/)[0-9A-Za-z_\x80-\xff][^/\\\0:]*" % b"|".join(map(re.escape, sorted(_LEFT_OUT_bytes)))
_is_plain = re.compile(
    rb"(?:%b/)*%b(?:%b)" % (_PART, _PART, b"|".join(map(re.escape, _SUFFIXES_bytes))), re.IGNORECASE
).fullmatch


def reasons_of(some: Entries) -> dict[int, str]:
    """Why an entry is left out, by its number among these; the others are taken."""
    kinds = stat.S_IFMT(0o177777) & some.modes
    is_odd = (kinds != 0) & (kinds != stat.S_IFREG)
    is_odd |= (some.flags & _ENCRYPTED_FLAGS) != 0
    is_odd |= (some.methods != STORED) & (some.methods != DEFLATED)
    is_odd |= (some.raw_bytes > MOST_BYTES) | (some.stored_bytes > MOST_STORED_BYTES)
    is_odd |= np.fromiter((_is_plain(name) is None for name in some.names), bool, len(some.names))
    reasons = {number: _reason_of(some, number) for number in np.flatnonzero(is_odd).tolist()}
    return {number: reason for number, reason in reasons.items() if reason is not None}


class LeftOut:
    """Counts what is left out. counts: reason -> how many entries."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, reason: str, name: bytes, flags: int) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if reason not in self._first:
            self._first[reason] = shown_name(name, flags) or "a member without a name"

    @property
    def notes(self) -> tuple[str, ...]:
        """A line a reason, with the first name. Directories are left out of it, which nobody misses."""
        return tuple(
            f"{self._first[reason]}{_others(count)}: {reason}, left out"
            for reason, count in self.counts.items()
            if reason != DIRECTORY
        )


def _others(count: int) -> str:
    return "" if count == 1 else f" and {count - 1:,} other {'member' if count == 2 else 'members'}"


def _reason_of(some: Entries, number: int) -> str | None:
    name, method = some.names[number], int(some.methods[number])
    if name.endswith(b"/") and name != b"/":
        return DIRECTORY
    if stat.S_IFMT(int(some.modes[number])) not in (0, stat.S_IFREG):
        return LINK
    fault = _fault_of(name)
    if fault is not None:
        return fault
    if int(some.flags[number]) & _ENCRYPTED_FLAGS:
        return ENCRYPTED
    if method not in (STORED, DEFLATED):
        return f"compressed by {_METHODS.get(method, 'a method')} ({method}; stored and deflated members are read)"
    if some.raw_bytes[number] > MOST_BYTES or some.stored_bytes[number] > MOST_STORED_BYTES:
        return LARGE
    return None


def _fault_of(name: bytes) -> str | None:
    parts = name.split(b"/")
    if not parts[0] or b".." in parts or b"\\" in name or b"\0" in name or _DRIVE.match(name):
        return UNSAFE
    is_hidden = any(part.startswith(b".") and part != b"." for part in parts)
    if is_hidden or any(part.lower() in _LEFT_OUT_bytes for part in parts[:-1]):
        return HIDDEN
    return None if name.lower().endswith(_SUFFIXES_bytes) else OTHER
