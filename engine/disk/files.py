"""The one way by which a checkpoint's bytes reach the disk and come back: ten operations, and what those promise that others build on.

    put_whole       a file with these bytes, at once or not at all; another of the name is replaced
    put_if_absent   the same where there is none: of two who try at the same time, one succeeds
    sync_directory  the names in a directory are durable when it returns: those put, moved and removed before

The bytes are durable before the file has its name. So no file is ever half there, and one sync_directory at the end makes any number of
them permanent. Everything of a checkpoint goes through here, which is what lets tests cut the power between any two operations, fill
the disk, or tear a write; tests/engine/disk/files_contract.py says it as tests, for whoever writes another `Files`: an object store
has puts like these, nothing to do for sync_directory and make_directory, and directories wherever a name has one.

Paths are relative to the root, with "/" between parts. Errors are OSErrors, as the system gives them; and Damaged where the path leads
through a link, or to a link, a FIFO or a device.

Links. The root itself may be a link, to a disk that is elsewhere: it is resolved once. Below it no link is followed, neither to
read nor to write, and none is removed. A directory is looked at when it is used for the first time and whenever it is listed, not at
each file in it.
"""

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from engine.disk import shapes
from engine.disk.shapes import TEMPORARY
from engine.rows.damaged import Damaged

CHECKPOINTS = "checkpoints"  # in an output directory
_MOST_KNOWN = 4096  # directories that are remembered, of 20,000 generations with four each

# What a listing says of what is not a file.
DIRECTORY, LINK, SPECIAL = -1, -2, -3
WHAT = {
    DIRECTORY: "is a directory",
    LINK: "is a link; put the files themselves there, or link the whole checkpoints directory",
    SPECIAL: "is neither a file nor a directory",
}

Buffer = bytes | bytearray | memoryview


class Files(Protocol):
    """A directory tree. `DiskFiles` is the real one; the tests have one in memory that loses what was not synced."""

    def put_whole(self, path: str, parts: Sequence[Buffer]) -> None:
        """A file of `parts`, one after the other, in a directory that is there. Its name is durable after sync_directory."""

    def put_if_absent(self, path: str, parts: Sequence[Buffer]) -> None:
        """The same. FileExistsError where there is a file already, which stays as it is."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name; replaces `new` where it exists. A power cut may leave both names."""

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
        """Names in a directory and their sizes in bytes; DIRECTORY, LINK or SPECIAL for what is no file.

        Empty where there is no such directory.
        """


def checkpoint_files(output: Path) -> "DiskFiles":
    """Those of the run in an output directory. Raises ValueError, as DiskFiles does."""
    return DiskFiles(output / CHECKPOINTS)


class DiskFiles:
    """Files below `root`, which is made when the first directory is.

    Raises ValueError where the root is a link that leads nowhere, or no directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        real = os.path.realpath(root)
        if root.is_symlink() and not os.path.lexists(real):
            raise ValueError(
                f"{root} is a link to {real}, and nothing is there; mount that disk, make the directory, or remove the link"
            )
        if os.path.lexists(real) and not os.path.isdir(real):
            raise ValueError(f"{root} is no directory; move it away, or choose another output")
        # Joined by hand where a block is read or written: pathlib takes as long as opening a file.
        self._prefix = real.rstrip("/") + "/"
        self._known = {""}  # directories that were looked at: none of them is behind a link
        self._made: set[str] = set()  # those of them that were made here, where nothing foreign can be

    def put_whole(self, path: str, parts: Sequence[Buffer]) -> None:
        self._require_known(path.rpartition("/")[0])
        self._require_ours(path)
        self._create(path + TEMPORARY, parts)
        self.rename(path + TEMPORARY, path)

    def put_if_absent(self, path: str, parts: Sequence[Buffer]) -> None:
        part = path + TEMPORARY
        self._create(part, parts)
        try:
            has_two_names = self._link(part, path)
        except FileExistsError:
            self.remove(part)
            raise
        if has_two_names:
            self.remove(part)
        else:  # the run's lock alone keeps others out between the look and this
            self.rename(part, path)

    def rename(self, old: str, new: str) -> None:
        source, target = self._path_of(old), self._path_of(new)
        for path in (old, new):
            self._require_ours(path)
        os.rename(source, target)

    def sync_directory(self, path: str) -> None:
        self._require_known(path)
        handles = [self._open_directory(path)]
        try:
            if not path:  # the root's own name is in the directory above
                handles.append(os.open(self.root.absolute().parent, os.O_RDONLY | os.O_DIRECTORY))
            for handle in handles:
                os.fsync(handle)
        finally:
            for handle in handles:
                os.close(handle)

    def make_directory(self, path: str) -> None:
        os.makedirs(self._prefix, exist_ok=True)
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            directory = "/".join(parts[:depth])
            if directory in self._known and depth < len(parts):
                continue
            _require_plain(parts[depth - 1], path)
            try:
                os.mkdir(self._prefix + directory)
            except FileExistsError:
                self._require_directory(directory)
                self._remember(directory)
            else:
                self._remember(directory)
                self._made.add(directory)

    def read(self, path: str) -> bytes:
        handle = self._open(path)
        try:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                with open(handle, "rb", closefd=False) as file:
                    return file.read()
        finally:
            os.close(handle)
        self._require_ours(path, always=True)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._prefix + path)

    def read_into(self, path: str, parts: Sequence[memoryview]) -> int:
        handle = self._open(path)
        try:
            wanted = sum(part.nbytes for part in parts)
            # One byte more tells whether the file ends where it should.
            done = os.preadv(handle, [*parts, bytearray(1)], 0)
            if done == wanted:
                return done
            if done < wanted:  # the file is short, or the system gave less than it has
                _read_rest(handle, parts, done)
            return os.fstat(handle).st_size
        except OSError as error:
            if error.errno == errno.ESPIPE:
                raise Damaged(f"{path} {WHAT[SPECIAL]}") from None
            error.filename = self._prefix + path
            raise
        finally:
            os.close(handle)

    def remove(self, path: str) -> None:
        place = self._path_of(path)
        self._require_ours(path)
        os.unlink(place)

    def remove_directory(self, path: str) -> None:
        os.rmdir(self._path_of(path))
        self._known.discard(path)
        self._made.discard(path)

    def listing(self, path: str) -> dict[str, int]:
        found = {}
        try:
            self._require_known(path)
            handle = self._open_directory(path)
        except FileNotFoundError:
            return {}
        try:
            with os.scandir(handle) as entries:
                for entry in entries:
                    with suppress(
                        FileNotFoundError
                    ):  # another rank removed it just now; the others are there all the same
                        found[entry.name] = _size(entry)
        finally:
            os.close(handle)
        return found

    def _create(self, path: str, parts: Sequence[Buffer]) -> None:
        """A new file, whose bytes are durable when it returns. FileExistsError where there is one."""
        handle = os.open(self._path_of(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write_all(handle, parts)
            os.fsync(handle)
        except OSError as error:
            error.filename = self._prefix + path  # the system does not say which file it was
            raise
        finally:
            os.close(handle)

    def _link(self, old: str, new: str) -> bool:
        """A second name for a file; FileExistsError where there is one already. False: the file system has no second names, as FAT."""
        source, target = self._path_of(old), self._path_of(new)
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
            return False
        return True

    def _path_of(self, path: str) -> str:
        """Where a file is, after a look at the directories above it."""
        self._require_known(path.rpartition("/")[0])
        return self._prefix + path

    def _require_known(self, directory: str) -> None:
        """Look at a directory and at those above it, at each once."""
        if directory in self._known:
            return
        parts = directory.split("/")
        for depth in range(1, len(parts) + 1):
            above = "/".join(parts[:depth])
            if above not in self._known:
                _require_plain(parts[depth - 1], directory)
                self._require_directory(above)
                self._remember(above)

    def _remember(self, directory: str) -> None:
        """That it was looked at; of very many, only the last."""
        if len(self._known) >= _MOST_KNOWN:
            self._known, self._made = {""}, set()
        self._known.add(directory)

    def _require_directory(self, directory: str) -> None:
        """Raises Damaged where it is no directory itself, FileNotFoundError where nothing is."""
        mode = os.lstat(self._prefix + directory).st_mode
        if not stat.S_ISDIR(mode):
            raise Damaged(f"{shapes.shown(directory)} {_not_a_directory(mode)}")

    def _require_ours(self, path: str, always: bool = False) -> None:
        """Damaged where a link or a device has this name; in directories that were made here there is none."""
        if not always and path.rpartition("/")[0] in self._made:
            return
        with suppress(FileNotFoundError):
            mode = os.lstat(self._prefix + path).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise Damaged(f"{shapes.shown(path)} {WHAT[LINK if stat.S_ISLNK(mode) else SPECIAL]}")

    def _open(self, path: str) -> int:
        try:
            # Without waiting: a FIFO that has a file's name would never answer.
            return os.open(self._path_of(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                self._require_ours(path, always=True)
            raise

    def _open_directory(self, path: str) -> int:
        try:
            return os.open((self._prefix + path).rstrip("/"), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except NotADirectoryError:
            self._require_directory(path)
            raise


def remove_tree(files: Files, path: str) -> int:
    """What the engine wrote into a directory, and the directory if nothing else is in it; returns the bytes of the files that went.

    What has no name of ours (engine/disk/shapes.py) stays, and so does every link.
    """
    try:
        sizes = files.listing(path)
    except Damaged:  # a link
        return 0
    total = 0
    for name, size in sorted(sizes.items()):
        below = f"{path}/{name}"
        if size == DIRECTORY and shapes.is_directory(below):
            total += remove_tree(files, below)
        elif size >= 0 and shapes.is_file(below):
            with suppress(FileNotFoundError, Damaged):  # another rank was faster; or it has become a link
                files.remove(below)
                total += size
    remove_if_empty(files, path)
    return total


def remove_any(files: Files, path: str) -> None:
    """A file of ours, or a directory with everything of ours below it; nothing to do where there is neither, or a link."""
    assert shapes.is_file(path) or shapes.is_directory(path), path
    try:
        files.remove(path)
    except (FileNotFoundError, Damaged):
        return
    except IsADirectoryError:
        remove_tree(files, path)


def remove_if_empty(files: Files, path: str) -> None:
    """A directory in which nothing is. Whatever else has this name stays."""
    try:
        if not files.listing(path):
            files.remove_directory(path)
    except (FileNotFoundError, Damaged):  # another rank was faster; a link
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):  # filled meanwhile; a disk is mounted there
            raise


def _require_plain(part: str, path: str) -> None:
    if part in ("", ".", "..") or "\0" in part:
        raise Damaged(f"{shapes.shown(path)!r} is no path below the checkpoints directory")


def _not_a_directory(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return WHAT[LINK]
    return "is a file where a directory should be" if stat.S_ISREG(mode) else WHAT[SPECIAL]


def _size(entry: os.DirEntry) -> int:
    if entry.is_symlink():
        return LINK
    if entry.is_dir(follow_symlinks=False):
        return DIRECTORY
    return entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else SPECIAL


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
