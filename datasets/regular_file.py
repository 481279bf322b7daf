"""Reading a file whole, and telling whose fault it is where that fails.

    the file's own     it is not there, its path is no path, it is a FIFO, a socket, a device or a directory: NotRegular, or an
                       OSError for which `is_of_the_file` holds. Another file may well be readable
    the machine's      every other OSError (EACCES, EIO, ESTALE, EMFILE, ...) and MemoryError. `patiently` tries again for some two
                       seconds and then raises ImagesUnavailable: the file may be good, and the next one would fare no better

Only regular files are read, and opening never waits: a FIFO that nobody writes into would hold a reader for ever.
"""

import errno
import io
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from datasets.batch import ImagesUnavailable
from datasets.shown import shown

# A table of tries: a disk that is being mounted again, or a limit that other processes are about to leave, gets this long.
PAUSES_SECONDS = (0.1, 0.3, 0.6, 1.0)
# A file above this is read where the decoder looks, not whole: a stack of many images may be larger than memory.
WHOLE_BYTES = 1 << 28
_OF_THE_FILE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENXIO,  # a socket, or a device without a driver
}
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}
Read = TypeVar("Read")


class NotRegular(Exception):
    """What lies at a path is something else than a file with content."""


def kind_of(mode: int) -> str:
    """What a mode of `os.stat` says, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def is_of_the_file(error: OSError) -> bool:
    return error.errno in _OF_THE_FILE


def open_regular(path: str | bytes) -> tuple[int, int]:
    """(descriptor, size in bytes) of a regular file; the caller closes it. Raises NotRegular, or OSError as the system does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegular(f"{kind_of(status.st_mode)}, not a regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status.st_size


def read_whole(path: str | bytes) -> bytes:
    """The bytes of a regular file. Raises NotRegular, or OSError as the system does."""
    descriptor, size_bytes = open_regular(path)
    try:
        return _rest(descriptor, size_bytes)
    finally:
        os.close(descriptor)


def open_content(path: str | bytes) -> IO[bytes]:
    """The same to seek in: the bytes in memory, or a file of more than WHOLE_BYTES left where it is."""
    descriptor, size_bytes = open_regular(path)
    if size_bytes > WHOLE_BYTES:
        return io.BufferedReader(_Descriptor(descriptor))
    try:
        return io.BytesIO(_rest(descriptor, size_bytes))
    finally:
        os.close(descriptor)


def patiently(name: Callable[[], str], read: Callable[[], Read]) -> Read:
    """read(), again after a pause while it raises an error of the machine; then ImagesUnavailable with this name.

    What is the file's own fault `read` must turn into something else than an OSError.
    """
    for pause_seconds in (*PAUSES_SECONDS, None):
        try:
            return read()
        except ImagesUnavailable:
            raise  # has been patient already
        except (OSError, MemoryError) as error:
            if pause_seconds is None:
                raise ImagesUnavailable(name(), _reason(error)) from error
        time.sleep(pause_seconds)
    raise AssertionError


def content_of(path: Path, refusal: Callable[[object], str]) -> bytes:
    """All bytes of a file that a job cannot do without.

    Raises ValueError with the words of `refusal(reason)` where it is the file's fault, ImagesUnavailable where it is the machine's.
    """

    def read() -> bytes:
        try:
            return read_whole(os.fsencode(path))
        except (NotRegular, OSError) as error:
            if isinstance(error, OSError) and not is_of_the_file(error):
                raise
            raise ValueError(refusal(error)) from error

    return patiently(lambda: shown(path), read)


def _rest(descriptor: int, size_bytes: int) -> bytes:
    # One more than there should be: the read that gets them all then needs no second one to learn that it is the end.
    first = os.read(descriptor, size_bytes + 1)
    if len(first) == size_bytes:
        return first
    pieces = [first]
    while pieces[-1]:
        pieces.append(os.read(descriptor, 1 << 20))
    return b"".join(pieces)


class _Descriptor(io.RawIOBase):
    """A descriptor as a file. It has no number to give away: a decoder that took one would read without us."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        return os.readv(self._descriptor, [buffer])

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return os.lseek(self._descriptor, offset, whence)
        except OSError as error:  # it is the content that names no place in the file
            raise ValueError(f"no place in the file: {offset}") from error

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def _reason(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "out of memory"
    return error.strerror or str(error)
