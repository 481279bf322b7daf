"""Streams that take any text: what their encoding lacks is written out. Without that, a letter in a file name could end a run.

What a terminal would obey is written out before, by datasets/shown.py.
"""

import os
import sys
from typing import Any, TextIO


class Escaping:
    """A text stream that writes out what its encoding lacks (`\\u2713`) instead of raising UnicodeEncodeError."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None)
        if not text.isascii() and encoding:
            try:
                text = text.encode(encoding, "backslashreplace").decode(encoding)
            except LookupError:  # a name that Python knows no encoding for
                text = text.encode("ascii", "backslashreplace").decode("ascii")
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def let_standard_streams_escape() -> None:
    """From here on whatever this process prints is shown, if need be written out; called once, before the first print."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  for as long as the process is there
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test's stand-in has no such thing, and no encoding either
            stream.reconfigure(errors="backslashreplace")
