"""The one road by which a checkpoint's bytes reach the disk and come back: nine operations, and what those promise that others build on.

    create          a new file with these bytes; the bytes are durable when it returns, the name is not
    rename          give a file its final name, at once or not at all
    sync_directory  the names in a directory are durable when it returns: those added, moved and removed before

So `write_whole` (create under a temporary name, then rename) never leaves half a file under a final name, and one
sync_directory at the end makes any number of such files permanent. Everything of a checkpoint goes through here, which is what
lets tests cut the power between any two operations, fill the disk, or tear a write.

Paths are relative to the root, with "/" between parts. Errors are OSErrors, as the system gives them.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

TEMPORARY = ".part"  # how the name of a file ends that is not whole yet

Buffer = bytes | bytearray | memoryview


class Files(Protocol):
    """A directory tree. `DiskFiles` is the real one; the tests have one in memory that loses what was not synced."""

    def create(self, path: str, parts: Sequence[Buffer]) -> None:
        """A new file of `parts`, one after the other. FileExistsError where there is one."""

    def rename(self, old: str, new: str) -> None:
        """Replaces `new` where it exists."""

    def sync_directory(self, path: str) -> None: ...

    def make_directory(self, path: str) -> None:
        """With those above it; nothing to do where it exists."""

    def read(self, path: str) -> bytes: ...

    def read_into(self, path: str, parts: Sequence[memoryview]) -> int:
        """Fill the parts from the file's start; returns the file's size, which may be another than theirs together."""

    def remove(self, path: str) -> None: ...

    def remove_directory(self, path: str) -> None:
        """An empty one."""

    def listing(self, path: str) -> dict[str, int]:
        """Names in a directory and their sizes in bytes, -1 for a directory; empty where there is no such directory."""


class DiskFiles:
    """Files below `root`, which is made when the first directory is."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = (
            f"{root}/"  # joined by hand where a block is read or written: pathlib takes as long as opening a file
        )

    def create(self, path: str, parts: Sequence[Buffer]) -> None:
        handle = os.open(self._prefix + path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _write_all(handle, parts)
            os.fsync(handle)
        except OSError as error:
            error.filename = self._prefix + path  # the system does not say which file it was
            raise
        finally:
            os.close(handle)

    def rename(self, old: str, new: str) -> None:
        os.rename(self._prefix + old, self._prefix + new)

    def sync_directory(self, path: str) -> None:
        # The root's own name is in the directory above.
        for directory in [self.root / path] if path else [self.root, self.root.parent]:
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def make_directory(self, path: str) -> None:
        (self.root / path).mkdir(parents=True, exist_ok=True)

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def read_into(self, path: str, parts: Sequence[memoryview]) -> int:
        handle = os.open(self._prefix + path, os.O_RDONLY)
        try:
            wanted = sum(part.nbytes for part in parts)
            done = os.preadv(
                handle, [*parts, bytearray(1)], 0
            )  # one byte more tells whether the file ends where it should
            if done == wanted:
                return done
            if done < wanted:  # the file is short, or the system gave less than it has
                _read_rest(handle, parts, done)
            return os.fstat(handle).st_size
        except OSError as error:
            error.filename = self._prefix + path
            raise
        finally:
            os.close(handle)

    def remove(self, path: str) -> None:
        os.unlink(self.root / path)

    def remove_directory(self, path: str) -> None:
        os.rmdir(self.root / path)

    def listing(self, path: str) -> dict[str, int]:
        found = {}
        try:
            with os.scandir(self.root / path) as entries:
                for entry in entries:
                    with suppress(
                        FileNotFoundError
                    ):  # another rank removed it just now; the others are there all the same
                        found[entry.name] = -1 if entry.is_dir() else entry.stat().st_size
        except FileNotFoundError:
            return {}
        return found


def write_whole(files: Files, path: str, parts: Sequence[Buffer]) -> None:
    """A file that is whole as soon as it has its name. Its name is durable after sync_directory of its directory."""
    files.create(path + TEMPORARY, parts)
    files.rename(path + TEMPORARY, path)


def remove_tree(files: Files, path: str) -> None:
    """A directory and everything below it."""
    for name, size in sorted(files.listing(path).items()):
        remove_tree(files, f"{path}/{name}") if size < 0 else remove_any(files, f"{path}/{name}")
    with suppress(FileNotFoundError):  # another rank was faster
        files.remove_directory(path)


def remove_any(files: Files, path: str) -> None:
    """A file, or a directory with everything below it; nothing to do where there is neither."""
    try:
        files.remove(path)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        remove_tree(files, path)


def _write_all(handle: int, parts: Sequence[Buffer]) -> None:
    left = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
    while left:
        done = os.writev(handle, left)
        while left and done >= len(left[0]):
            done -= len(left.pop(0))
        if done:
            left[0] = left[0][done:]


def _read_rest(handle: int, parts: Sequence[memoryview], start: int) -> None:
    """Read on from byte `start` until the parts are full or the file ends."""
    first = 0
    for part in parts:
        skip = min(max(start - first, 0), part.nbytes)
        while skip < part.nbytes:
            done = os.preadv(handle, [part[skip:]], first + skip)
            if not done:
                return
            skip += done
        first += part.nbytes
