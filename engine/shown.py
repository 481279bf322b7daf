"""Text that others wrote (names of files, labels, messages) as it can be shown anywhere: on a terminal, in a log, on a page.

A file name is bytes. Shown as they are, some end a run (a stream that cannot encode them), some move a terminal's cursor or
hide what follows (escape sequences, marks that turn the direction of writing), and some make one line two. Such characters are
shown as Python writes them in a string; all others stay what they are.
"""

import re
import sys
from typing import Any, TextIO

# Control characters, lone surrogates, separators of lines and paragraphs, and the marks that turn the direction of writing.
_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def shown_text(text: str) -> str:
    """`text` in one line, with whatever a terminal would obey written out: `\\x1b[31m`, `\\n`.

    Bytes of a file name that are not UTF-8, which Python keeps as lone surrogates, are shown as those bytes: `\\xe9`.
    """
    return text if text.isascii() and text.isprintable() else _NOT_SHOWN.sub(_written_out, text)


def shown_lines(text: str) -> str:
    """The same for a text of several lines, which stay several."""
    return "\n".join(map(shown_text, text.split("\n")))


def cut_text(text: str, most: int = 80) -> str:
    """As `shown_text`, at most about `most` characters long; what is cut says how long it was."""
    whole = shown_text(text[: most + 1])
    return whole if len(text) <= most and len(whole) <= 4 * most else f"{whole[:most]}... ({len(text):,} characters)"


def _written_out(found: re.Match[str]) -> str:
    number = ord(found[0])
    if 0xDC80 <= number <= 0xDCFF:  # os.fsdecode's way to keep a byte
        return f"\\x{number - 0xDC00:02x}"
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(found[0]) or (
        f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
    )


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
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test's stand-in has no such thing, and no encoding either
            stream.reconfigure(errors="backslashreplace")
