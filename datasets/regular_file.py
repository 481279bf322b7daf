"""Reading a file whole, and telling whose fault it is where that fails.

    the file's own     it is not there, its path is no path, it is a FIFO, a socket, a device or a directory: NotRegular, or an
                       OSError for which `is_of_the_file` holds; it is not as it was listed: Changed. Another file may well be readable
    the machine's      every other OSError (EACCES, ESTALE, EMFILE, ...) and MemoryError. `patiently` tries again for some two
                       seconds and then raises ImagesUnavailable: the file may be good, and the next one would fare no better
    either one's       EIO and its like. A disk that is gone fails for all files, a bad sector for one, and a run of weeks must not end
                       for that. So at every failure other files are asked (`any_answers`): where the file fails, another one comes,
                       the file fails again, and another one comes again, it is the file's own. They are read past the page cache,
                       from which a disk that is gone goes on answering, for directories above all. Where this errs, the limit of
                       unreadable images still ends the run

Only regular files are read, and opening never waits: a FIFO that nobody writes into would hold a reader for ever.
"""

import errno
import io
import os
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

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
# What Linux says of a file whose blocks, or their checksums, are damaged.
_OF_A_SECTOR = {errno.EIO, errno.EUCLEAN, errno.EBADMSG}
_ASKED_BYTES = 1 << 16  # more than one page, so that none of it stays in the page cache
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


class Changed(Exception):
    """A file is not as it was when it was listed; the message says how."""


class Listed(NamedTuple):
    """What a list of files said of one. size_bytes: -1 for a link to nothing; written_ns: st_mtime_ns, None where the list has none."""

    size_bytes: int
    written_ns: int | None = None


def kind_of(mode: int) -> str:
    """What a mode of `os.stat` says, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def is_of_the_file(error: OSError) -> bool:
    return error.errno in _OF_THE_FILE


def is_of_a_sector(error: Exception) -> bool:
    """Whether it may be one damaged place of a disk that is well otherwise."""
    return isinstance(error, OSError) and error.errno in _OF_A_SECTOR


def open_regular(path: str | bytes, listed: Listed | None = None) -> tuple[int, int]:
    """(descriptor, size in bytes) of a regular file; the caller closes it. Raises as `read_whole` does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegular(f"{kind_of(status.st_mode)}, not a regular file")
        if listed is not None:
            _refuse_change(status, listed)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status.st_size


def read_whole(path: str | bytes, listed: Listed | None = None) -> bytes:
    """The bytes of a regular file. Raises NotRegular, Changed where it is not as `listed`, or OSError as the system does."""
    descriptor, size_bytes = open_regular(path, listed)
    return _closed_after(descriptor, size_bytes, listed)


def open_content(path: str | bytes, listed: Listed | None = None) -> IO[bytes]:
    """The same to seek in: the bytes in memory, or a file of more than WHOLE_BYTES left where it is."""
    descriptor, size_bytes = open_regular(path, listed)
    if size_bytes > WHOLE_BYTES:
        return io.BufferedReader(_Descriptor(descriptor))
    return io.BytesIO(_closed_after(descriptor, size_bytes, listed))


def any_answers(places: Iterable[tuple[bytes, int]]) -> bool:
    """Whether the disk gives a byte at one of these places (path, offset), from itself and not from the page cache."""
    for path, offset in places:
        try:
            descriptor, _ = open_regular(path)
        except (OSError, NotRegular):
            continue
        try:
            os.posix_fadvise(
                descriptor, offset // _ASKED_BYTES * _ASKED_BYTES, 2 * _ASKED_BYTES, os.POSIX_FADV_DONTNEED
            )
            os.lseek(descriptor, offset, os.SEEK_SET)
            if os.read(descriptor, 1):
                return True
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return False


def patiently(
    name: Callable[[], str],
    read: Callable[[], Read],
    blamed: Callable[[Exception], Exception | None] = lambda _: None,
) -> Read:
    """read(), again after a pause while it raises an error of the machine; then ImagesUnavailable with this name.

    What is the file's own fault `read` must turn into something else than an OSError.
    blamed: asked at every failure; None where the machine may be at fault. Where it returns an error at two failures in a row, the
    fault is the file's, and that error is raised.
    """
    at_fault: Exception | None = None
    for pause_seconds in (*PAUSES_SECONDS, None):
        try:
            return read()
        except ImagesUnavailable:
            raise  # has been patient already
        except (OSError, MemoryError) as error:
            before, at_fault = at_fault, blamed(error)
            if at_fault is not None and before is not None:
                raise at_fault from error
            if pause_seconds is None:
                raise ImagesUnavailable(name(), _reason(error)) from error
        time.sleep(pause_seconds)
    raise AssertionError


def content_of(
    path: Path, refusal: Callable[[NotRegular | OSError], str], refused: type[ValueError] = ValueError
) -> bytes:
    """All bytes of a file that a job cannot do without.

    Raises `refused` with the words of `refusal(reason)` where it is the file's fault, ImagesUnavailable where it is the machine's.
    """

    def read() -> bytes:
        try:
            return read_whole(os.fsencode(path))
        except (NotRegular, OSError) as error:
            if isinstance(error, OSError) and not is_of_the_file(error):
                raise
            raise refused(refusal(error)) from error

    return patiently(lambda: shown(path), read)


def _refuse_change(status: os.stat_result, listed: Listed) -> None:
    if status.st_size != listed.size_bytes:
        was = "a link to nothing" if listed.size_bytes < 0 else f"{listed.size_bytes:,} bytes"
        raise Changed(f"changed since it was listed: {status.st_size:,} bytes, it was {was}")
    if listed.written_ns is not None and status.st_mtime_ns != listed.written_ns:
        raise Changed("changed since it was listed: written again, as long as it was")


def _closed_after(descriptor: int, size_bytes: int, listed: Listed | None) -> bytes:
    """The bytes of an open file, which is closed then."""
    try:
        content = _rest(descriptor, size_bytes)
    finally:
        os.close(descriptor)
    if listed is not None and len(content) != size_bytes:
        raise Changed(f"changed while it was read: {len(content):,} bytes, it was {size_bytes:,} bytes")
    return content


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

    def readinto(self, buffer: Any) -> int:
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
