"""File names as people may read them: on one line, on any terminal, with nothing in them that a terminal obeys.

A file name is any bytes but "/" and zero. Written out as they are, a newline makes two lines of one message, ESC moves the
cursor, a bidi override turns the rest of the line around, and bytes that are not UTF-8 cannot be written at all. What is shown
is for eyes alone: two names may be shown alike, so nothing is ever looked up by it.
"""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

# Controls, format characters (bidi marks and overrides among them), what stands for bytes that are not UTF-8, line and paragraph ends.
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # which letters of some scripts, and emoji, are put together with


def shown(name: str | bytes | Path, most: int | None = None) -> str:
    """The name on one line; escapes stand for what would not be a character on it. most: cut in the middle to so many characters."""
    text = os.fsdecode(name)
    if (
        not text.isprintable()
    ):  # controls, bidi marks, what stands for bytes that are not UTF-8, ends of lines, odd spaces
        text = "".join(map(_escaped, text))
    if most is not None and len(text) > most:
        half = (most - 3) // 2
        text = f"{text[:half]}...{text[-half:]}"
    return text


def shown_lines(text: str) -> str:
    """The same for a text of several lines, which stay several."""
    return "\n".join(map(shown, text.split("\n")))


def cut_text(text: str, most: int = 80) -> str:
    """As `shown`, at most about `most` characters long; what is cut says how long it was."""
    whole = shown(text[: most + 1])
    return whole if len(text) <= most and len(whole) <= 4 * most else f"{whole[:most]}... ({len(text):,} characters)"


def few(shown_names: Sequence[str], count: int) -> str:
    """The first few of `count` names, which are shown as they are: "a, b, c and 4 more" for three of 7."""
    more = count - len(shown_names)
    return ", ".join(shown_names) + (f" and {more:,} more" if more > 0 else "")


def _escaped(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in _ESCAPED:
        return character
    if "\udc80" <= character <= "\udcff":  # how Python carries a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
