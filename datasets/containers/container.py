"""Where the bytes of images are: what an index and a decoder need of a folder, a zip, or what may come.

A container holds no list of its images, only where they all are. It reads one when it is given its entry: by a whole read or a pread,
from any number of forked workers, none of which shares the place in a file with another.
"""

from typing import IO, Protocol

from datasets.index.rows import Entry


class BadContent(Exception):
    """The image itself is at fault; the message says how and does not name it."""


class Container(Protocol):
    """kind: as in `data.source`, and in an index"""

    kind: str

    def read(self, entry: Entry) -> IO[bytes]:
        """The encoded image, to be read and closed by the caller. What has another size than its entry says is not shown.

        Raises BadContent, and OSError or MemoryError where the machine fails: the caller is patient (regular_file.patiently).
        """
        ...

    def place(self, entry: Entry) -> tuple[bytes, int]:
        """(path of a file, offset in it) where its bytes begin, roughly."""
        ...

    def shown_name(self, entry: Entry) -> str:
        """For people: a path on one line."""
        ...

    def size_bytes(self, entry: Entry) -> int:
        """Of the encoded image; -1 where there is none."""
        ...
