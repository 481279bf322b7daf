"""What took long to find out and never changes, kept for the next start: files in a directory of this user's.

    $PIC_GLYPHS_CACHE, else pic-engine/glyphs in $XDG_CACHE_HOME or ~/.cache

A name stands for one content for ever: who keeps something puts into the name what the content depends on. The last bytes of a
file are a checksum of all others. A file that is not whole, or that others may have written, is not read: its content is made again,
and a line says why. Where nothing can be kept, a line says so, and all goes on without. Any file may be removed at any time.
"""

import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from datasets.shown import shown

_SEAL = b"\nsha256 of the bytes before: "
_SEAL_BYTES = len(_SEAL) + 64
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_REMEDY = "set PIC_GLYPHS_CACHE to a directory of your own"
_printed: set[str] = set()


def cached_bytes(name: str, make: Callable[[], bytes]) -> bytes:
    """The content that is in the cache as `name`; else what `make` returns, which is written there."""
    try:
        directory = cache_directory()
        if reason := _unsafe_directory(directory):
            raise OSError(reason)
    except OSError as error:
        _say(f"nothing is kept: {shown(str(error))}; {_REMEDY}")
        return make()
    content = _read(directory / name)
    if content is None:
        content = make()
        try:
            _write(directory, name, content)
        except OSError as error:
            _say(f"nothing is kept: {shown(directory)}: {error.strerror}; {_REMEDY}")
    return content


def cache_directory() -> Path:
    """Where files are kept. OSError where this user has no home and no variable names another place.

    An empty variable is one that is not set, and so is a relative XDG_CACHE_HOME, as its specification says.
    """
    chosen, caches = (os.environ.get(name, "").strip() for name in ("PIC_GLYPHS_CACHE", "XDG_CACHE_HOME"))
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        return Path(caches if os.path.isabs(caches) else Path.home() / ".cache") / "pic-engine" / "glyphs"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _unsafe_directory(directory: Path) -> str | None:
    """Why others may put files into a directory; None where they may not, and where there is none yet."""
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        return None
    return _unsafe(directory, status) if stat.S_ISDIR(status.st_mode) else f"{shown(directory)} is not a directory"


def _unsafe(path: Path, status: os.stat_result) -> str | None:
    if status.st_uid not in (os.geteuid(), 0):
        return f"{shown(path)} belongs to another user ({status.st_uid})"
    if status.st_mode & _OTHERS:
        return f"others may write to {shown(path)} (mode {stat.S_IMODE(status.st_mode):04o}); chmod go-w ends that"
    return None


def _read(path: Path) -> bytes | None:
    """What was kept; None where there is nothing, or nothing to be trusted, which is said."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            reason = _unsafe(path, status) if stat.S_ISREG(status.st_mode) else f"{shown(path)} is not a regular file"
            content = b"" if reason else file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        reason, content = f"{shown(path)} cannot be read ({error.strerror})", b""
    body = content[:-_SEAL_BYTES]
    if reason is None and content[-_SEAL_BYTES:] != _seal(body):
        reason = f"{shown(path)} is damaged"
    if reason:
        _say(f"{reason}: what it is to hold is found out again")
        return None
    return body


def _write(directory: Path, name: str, content: bytes) -> None:
    """Write a file that is whole or not there. Raises OSError."""
    directory.mkdir(0o700, parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=directory, prefix=f".{name[:16]}-")
    try:
        with open(handle, "wb") as file:
            file.write(content + _seal(content))
            file.flush()
            os.fsync(handle)
        os.replace(part, directory / name)
    except BaseException:
        os.unlink(part)
        raise


def _seal(body: bytes) -> bytes:
    return _SEAL + hashlib.sha256(body).hexdigest().encode()


def _say(why: str) -> None:
    """Once in a process: a directory that cannot be written to is one for every file."""
    if why not in _printed:
        _printed.add(why)
        print(f"glyphs: {why}", file=sys.stderr, flush=True)
