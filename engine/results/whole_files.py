"""Files for people: they get their names when all of them are whole, and until then what had these names stays.

    with Together(directory, ["rows.npy", "manifest.json"]) as new:
        rows = new.array("rows.npy", (N, D))        room for all of it is taken here, or OSError says what is lacking
        ...
        new.write("manifest.json", b"...")

They are written as `rows.npy.part` beside the final names. A job that is killed leaves at most these, and the next replaces them. The last
of several names is that of the file which says what the others are: it goes before the others are replaced and comes after them, so
where it is, the others belong to it.

Room is taken before anything is written into a memory map: on a full disk a map that has none ends the process with a bus error. Nothing
is written through a link.
"""

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

from engine.disk.shapes import TEMPORARY, shown

_PIECE_BYTES = 16 * 2**20
_NO_FALLOCATE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Together:
    """New files of one directory, which exists. Raises ValueError where one of their names, or of their temporary ones, is a link
    or a directory: before anything is written."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        refuse_links(directory, names)
        self.directory, self.names = directory, list(names)
        self._files: dict[str, IO[bytes]] = {}
        self._arrays: list[np.memmap] = []

    def __enter__(self) -> "Together":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            self.discard()

    def array(self, name: str, shape: tuple[int, int]) -> np.memmap:
        """An .npy of float32 to be filled, all zeros now. OSError where the disk has no room for it."""
        file = self._open(name)
        head = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        file.flush()
        start = file.tell()
        reserve(file.fileno(), start + 4 * shape[0] * shape[1], self._path(name))
        self._arrays.append(np.memmap(file, dtype=np.float32, mode="r+", offset=start, shape=shape))
        return self._arrays[-1]

    def room(self, name: str, size_bytes: int) -> int:
        """A descriptor of a file that only takes so much room, to be given back by cutting it short."""
        handle = self._open(name).fileno()
        reserve(handle, size_bytes, self._path(name))
        return handle

    def write(self, name: str, content: bytes) -> None:
        """A file of these bytes."""
        self.write_pieces(name, [content])

    def write_pieces(self, name: str, pieces: Iterable[bytes]) -> None:
        """A file of these bytes, one piece after the other."""
        handle = self._open(name).fileno()
        size_bytes = 0
        for piece in pieces:
            size_bytes += len(piece)
            left = memoryview(piece)
            try:
                while left:
                    left = left[os.write(handle, left) :]
            except OSError as error:
                raise _lacking(error, handle, size_bytes, self._path(name)) from None

    def discard(self) -> None:
        """Give up what has not got its name."""
        self._arrays.clear()
        for name, file in self._files.items():
            if self._is_there(name):
                os.unlink(self._path(name))
            file.close()
        self._files.clear()

    def _publish(self) -> None:
        for array in self._arrays:
            array.flush()
        for name, file in self._files.items():
            os.fsync(file.fileno())
            if not self._is_there(name):
                raise ValueError(f"another job writes {self._path(name)} at this moment; wait for it to end")
        *others, last = [name for name in self.names if name in self._files] or [""]
        if others:
            with suppress(FileNotFoundError):
                os.unlink(self.directory / last)
            _sync(self.directory)
        for name in [*others, last] if last else []:
            os.rename(self._path(name), self.directory / name)
            if name in others[-1:]:
                _sync(self.directory)
            self._files.pop(name).close()
        _sync(self.directory)

    def _open(self, name: str) -> IO[bytes]:
        assert name in self.names, name
        with suppress(FileNotFoundError):  # of a job that was killed
            os.unlink(self._path(name))
        handle = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        self._files[name] = os.fdopen(handle, "r+b")
        return self._files[name]

    def _path(self, name: str) -> Path:
        return self.directory / (name + TEMPORARY)

    def _is_there(self, name: str) -> bool:
        """Whether the file of that temporary name is still the one that was made here."""
        try:
            found = os.lstat(self._path(name))
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self._files[name].fileno()))


def write_file(path: Path, content: bytes) -> None:
    """One file, whole under its name or not there."""
    with Together(path.parent, [path.name]) as new:
        new.write(path.name, content)


def refuse_links(directory: Path, names: Sequence[str]) -> None:
    """ValueError where one of these names in `directory`, or the temporary one that belongs to it, is taken by what is not a file."""
    for name in (one + end for one in names for end in ("", TEMPORARY)):
        with suppress(FileNotFoundError):
            mode = os.lstat(directory / name).st_mode
            if not stat.S_ISREG(mode):
                what = "a link" if stat.S_ISLNK(mode) else "a directory" if stat.S_ISDIR(mode) else "no file"
                raise ValueError(
                    f"{shown(str(directory / name), 300)} is {what}, and nothing is written through or over it; move it away"
                )


def own_directory(directory: Path) -> Path:
    """A directory in the output directory, made where it is not there. ValueError where it is a link, or no directory."""
    with suppress(FileExistsError):
        directory.mkdir()
    if not stat.S_ISDIR(os.lstat(directory).st_mode):
        what = "a link" if directory.is_symlink() else "no directory"
        raise ValueError(f"{directory} is {what}, and nothing is written through or over it; move it away")
    return directory


def reserve(handle: int, size_bytes: int, path: Path) -> None:
    """Make the file so long, with room on the disk for all of it. OSError with what is lacking."""
    try:
        try:
            os.posix_fallocate(handle, 0, size_bytes)
        except OSError as error:
            if error.errno not in _NO_FALLOCATE:
                raise
            start = os.fstat(handle).st_size  # the file system has no such call: zeros take the room as well
            while start < size_bytes:
                start += os.pwrite(handle, bytes(min(_PIECE_BYTES, size_bytes - start)), start)
    except OSError as error:
        raise _lacking(error, handle, size_bytes, path) from None


def _lacking(error: OSError, handle: int, size_bytes: int, path: Path) -> OSError:
    """The same error with the file's name, what it takes, and what the disk lacks."""
    reason = os.strerror(error.errno or 0)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with suppress(OSError):
            os.ftruncate(handle, 0)  # what was taken is free again
        about = os.fstatvfs(handle)
        free = about.f_bavail * about.f_frsize
        lacking = f"; {size_bytes - free:,} are lacking" if free < size_bytes else ", and a limit or a quota forbids it"
        reason += f" (the file takes {size_bytes:,} bytes, {free:,} are free{lacking})"
    return OSError(error.errno, reason, str(path))


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
