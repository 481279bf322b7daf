"""One job at a time in an output directory: a lock that names its holder and cannot outlive it.

The system drops the lock when the process ends, however it ends; the file keeps who had it. A POSIX record lock is not inherited
by forked workers, so a killed run does not stay locked by them. Within one process it does not exclude, which the table below does.
"""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import IO

_held: set[str] = set()


class Lock:
    """The lock of `directory`, taken when this returns. left_by: the holder that ended without giving it back, or None.

    Raises ValueError where another job has it, naming that job.
    """

    def __init__(self, directory: Path) -> None:
        self._path = str((directory / "lock").resolve())
        if self._path in _held:
            raise ValueError(f"{directory} is in use by this very process; wait for its job to end")
        self._file: IO[str] = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115  kept open: the lock is the file's
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = self._holder()
            self._file.close()
            raise ValueError(
                f"{directory} is in use by {holder or 'another job'}; wait for it to end, stop it, or choose another output"
            ) from None
        self.left_by = self._holder()
        _held.add(self._path)
        identity = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._write(json.dumps(identity))

    def release(self) -> None:
        """Give it back."""
        self._write("")
        _held.discard(self._path)
        self._file.close()

    def _holder(self) -> str | None:
        self._file.seek(0)
        text = self._file.read()
        try:
            holder = json.loads(text)
            return f"process {holder['process']} on {holder['host']} since {holder['since']}"
        except (ValueError, KeyError, TypeError):
            return text.strip()[:80] or None

    def _write(self, text: str) -> None:
        self._file.truncate(0)
        self._file.write(text)
        self._file.flush()
