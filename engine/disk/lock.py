"""One job at a time in an output directory: a lock that names its holder and cannot outlive it.

The system drops the lock when the process ends, however it ends; the file keeps who had it. A POSIX record lock is not inherited
by forked workers, so a killed run does not stay locked by them. Within one process it does not exclude, which the table below does.
"""

import errno
import fcntl
import json
import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path

from engine.disk.shapes import shown

_locked_here: set[str] = set()
_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
_LONGEST_BYTES = 4096  # of the file that is read; what a job writes is a line


class Lock:
    """The lock of `directory`, taken when this returns. left_by: the holder that ended without giving it back, or None.

    Raises ValueError where another job has it, naming that job, or where the file `lock` is a link or no file; OSError where the
    directory is gone, or its file system cannot lock.
    """

    def __init__(self, directory: Path, name: str = "lock") -> None:
        self._path = str(directory.resolve() / name)
        if self._path in _locked_here:
            raise ValueError(f"{directory} is in use by this very process; wait for its job to end")
        self._handle = _opened(self._path, directory)
        try:
            self._take(directory)
            self.left_by = self._holder()
            identity = {
                "process": os.getpid(),
                "host": socket.gethostname(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            }
            self._write(json.dumps(identity))
        except BaseException:
            os.close(self._handle)
            raise
        _locked_here.add(self._path)

    def release(self) -> None:
        """Give it back."""
        try:
            self._write("")
        finally:
            _locked_here.discard(self._path)
            os.close(self._handle)

    def _take(self, directory: Path) -> None:
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD_BY_ANOTHER:
                raise OSError(
                    error.errno,
                    f"the file system of this directory has no locks that work ({error.strerror}), and two jobs could write into it; "
                    "choose an output on another file system",
                    str(directory),
                ) from None
            raise ValueError(
                f"{directory} is in use by {self._holder() or 'another job'}; wait for it to end, stop it, or choose another output"
            ) from None

    def _holder(self) -> str | None:
        """Whom the file names, None where it is empty. It may hold anything: it is shown short and escaped."""
        try:
            content = os.pread(self._handle, _LONGEST_BYTES, 0)
        except OSError as error:
            return f"somebody whom the lock cannot tell ({error.strerror})"
        text = content.decode("utf-8", "backslashreplace").strip()
        try:
            holder = json.loads(text)
            process, host, since = (shown(str(holder[key]), 40) for key in ("process", "host", "since"))
            return f"process {process} on {host} since {since}"
        except (ValueError, KeyError, TypeError, RecursionError):
            return shown(text) or None

    def _write(self, text: str) -> None:
        """For people alone: a full disk, which a job may be about to make room on, is no reason to fail."""
        with suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, text.encode(), 0)


def _opened(path: str, directory: Path) -> int:
    """A descriptor of the file, made where it is not there, and never behind a link."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise ValueError(_not_a_lock(path)) from None
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise OSError(error.errno, "the output directory is not there any more", str(directory)) from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(_not_a_lock(path))
    return handle


def _not_a_lock(path: str) -> str:
    what = "a link" if os.path.islink(path) else "no file"
    return f"{shown(path, 200)} is {what}, and a lock is a file that a job makes itself; move it away, or choose another output"
