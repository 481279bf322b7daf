"""Files below a directory: a path each. A file is opened at its turn and read whole."""

import errno
import os
import stat
from pathlib import Path
from typing import IO

from datasets.containers.container import BadContent
from datasets.index.rows import Entry
from datasets.regular_file import Changed, Listed, NotRegular, is_of_the_file, open_content, patiently
from datasets.shown import shown
from datasets.walk import identity_of


class Folder:
    """ValueError where the root is no directory; ImagesUnavailable where the machine fails."""

    kind = "folder"

    def __init__(self, root: Path) -> None:
        # As it is now: a process may go to another directory later.
        self.root = os.fsencode(root if root.is_absolute() else Path.cwd() / root)
        self._identity = _root_identity(self.root, shown(root, 200))
        self._shown_root = shown(root)

    def read(self, entry: Entry) -> IO[bytes]:
        """A file that is not there since the root is not there any more is no fault of the file."""
        try:
            return open_content(os.path.join(self.root, entry.path), Listed(entry.size))
        except (NotRegular, Changed) as error:
            raise BadContent(str(error)) from error
        except OSError as error:
            if not is_of_the_file(error):
                raise
            if identity_of(self.root) != self._identity:
                raise OSError(f"data.root ({self._shown_root}) is gone, or another directory lies there now") from error
            raise BadContent(str(error.strerror)) from error

    def place(self, entry: Entry) -> tuple[bytes, int]:
        return os.path.join(self.root, entry.path), 0

    def shown_name(self, entry: Entry) -> str:
        """What is not UTF-8, and what a terminal would obey, is shown as escapes."""
        return shown(entry.path)

    def size_bytes(self, entry: Entry) -> int:
        return entry.size


def _root_identity(root: bytes, name: str) -> tuple[int, int]:
    """(device, inode) of the root; ValueError where it is no directory."""

    def read_identity() -> tuple[int, int]:
        try:
            status = os.stat(root)
        except OSError as error:
            if is_of_the_file(error):
                why = "does not exist" if error.errno == errno.ENOENT else f"is no folder ({error.strerror})"
                raise ValueError(f"data.root: {name} {why}; set it to your folder of images") from error
            raise
        if not stat.S_ISDIR(status.st_mode):
            raise ValueError(f"data.root: {name} is a file; set it to the folder that holds your images")
        return status.st_dev, status.st_ino

    return patiently(lambda: f"data.root, {name}", read_identity)
