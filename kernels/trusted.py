"""Which compiled libraries may be loaded: those that are whole, and that nobody else can have put there.

A library is code, and loading it runs it. It is whole where its last bytes, which the linker did not write and the loader does not
read, are a checksum of all bytes before them: a file that was cut short, by a full disk or a copy that broke off, would kill the
process when it is loaded (SIGBUS), without a word. It is nobody else's where it and every directory above it belong to this user or
to root, and neither their group nor others may write there. A directory as /tmp, where everybody may make names but nobody may
change those of others, is fine above one that is ours.

What was looked at is what is loaded as far as dlopen allows, which wants a path: names are resolved once, before they are checked,
and the file is compared again at the end.
"""

import hashlib
import os
import stat
from pathlib import Path

_SEAL = b"\nsha256 of the bytes before: "
_SEAL_BYTES = len(_SEAL) + 64
_TIMES = 5  # another process's build may end just here, and put the same library in place of this one
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Refused(Exception):
    """A library that is there and must not be loaded; says why. is_damaged: it is not whole, which building it again mends."""

    def __init__(self, reason: str, is_damaged: bool = False) -> None:
        super().__init__(reason)
        self.is_damaged = is_damaged


def seal(made: Path, sealed: Path) -> None:
    """Write `made` and the checksum of its bytes as the file `sealed`, which is on the disk when this returns. Raises OSError."""
    content = made.read_bytes()
    handle = os.open(sealed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(handle, "wb") as file:
        file.write(content + _SEAL + hashlib.sha256(content).hexdigest().encode())
        os.fchmod(handle, 0o644)  # whatever umask there is
        file.flush()
        os.fsync(handle)


def checked_library(library: Path, is_cache: bool) -> Path | None:
    """The path to load the library by; None where there is none. is_cache: it must be nobody else's, too.

    Raises Refused, and OSError where it cannot be read.
    """
    for _ in range(_TIMES):
        path = Path(os.path.realpath(library))
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        looked_at = os.fstat(handle)
        if not stat.S_ISREG(looked_at.st_mode):
            os.close(handle)
            raise Refused(f"{library} is not loaded: it is no file; remove it")
        with open(handle, "rb") as file:
            if is_cache and (reason := _unsafe(path, looked_at) or unsafe_directory(path.parent)):
                raise Refused(f"{library} is not loaded: {reason}, or set PIC_KERNELS_CACHE to a directory of your own")
            _check_whole(library, file.read())
        if _identity(os.stat(path, follow_symlinks=False)) == _identity(looked_at):
            return path
    raise Refused(f"{library} is written again and again while it is looked at", is_damaged=True)


def unsafe_directory(directory: Path) -> str | None:
    """What is wrong with a directory from which code is loaded, with the way out; None where only this user and root may write.

    It need not exist: then the nearest above it that does is looked at, and those above that. Raises OSError.
    """
    path = Path(os.path.realpath(directory))
    for place in (path, *path.parents):
        try:
            status = os.stat(place, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(status.st_mode):
            return f"{place} is not a directory"
        if reason := _unsafe(place, status):
            return reason
    return None


def make_directory(directory: Path, mode: int) -> None:
    """Make a directory, and those above it that are missing, with `mode` less the umask. Raises OSError."""
    missing = [place for place in (directory, *directory.parents) if not os.path.lexists(place)]
    for place in reversed(missing):
        place.mkdir(mode, exist_ok=True)
    if not directory.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(directory))


def _unsafe(path: Path, status: os.stat_result) -> str | None:
    """Why others may change a file or directory, and what helps; None where they may not."""
    mine = os.geteuid()
    if status.st_uid not in (mine, 0):
        return f"{path} belongs to another user ({status.st_uid}); chown it to {mine}"
    # In such a directory each may change his own names only, and whose the next one is, is looked at too.
    is_shared = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & _OTHERS and not is_shared:
        return f"others may write to {path} (mode {stat.S_IMODE(status.st_mode):04o}); chmod go-w {path}"
    return None


def _check_whole(library: Path, content: bytes) -> None:
    body, tail = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    if not tail.startswith(_SEAL):
        raise Refused(f"{library} has no checksum: it was cut short, or built by an earlier version", is_damaged=True)
    if tail != _SEAL + hashlib.sha256(body).hexdigest().encode():
        raise Refused(f"{library} is damaged: its checksum is that of other bytes", is_damaged=True)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
