"""The words of a config: a JSON file and overrides, read into one tree of plain values, or refused in a line that names the key.

What reaches the schema from here is finite numbers, text that a terminal and a file system can take, and not deeply nested; so what
the schema says of a value, and what is written of it later, cannot go wrong by the value's form.
"""

import json
import math
import os
import stat
from collections.abc import Callable
from typing import Any

from datasets.shown import cut_text
from datasets.shown import shown as shown_text

MOST_BYTES = 16 * 2**20  # of a config file
MOST_LEVELS = 50  # of nesting; a config of our own has four, and DeepSpeed's block few more
_MOST_DIGITS = 400  # of a number; the largest float has 309


Tree = dict[str, Any]


def read_tree(path: str, overrides: list[str], translated: Callable[[Tree], Tree]) -> Tree:
    """The config file at `path` with `section.key=value` words applied.

    translated    what a tree is by the present names of keys. The file and each word are translated before they meet, so that a word
                  replaces what the file says whichever name either has; all words together may not name a key in two ways.
    Raises ValueError with at most three lines where the file cannot be read, is not JSON, or where a value is none that a config can hold.
    """
    name = shown_text(path, 200)  # cut in the middle, so that a long path keeps the file's name
    try:
        text = _decoded(_bytes_of(path, name), name)
        tree = _parsed(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except OSError as error:
        raise ValueError(
            f"cannot read the config {name}: {error.strerror}; give --config an existing JSON file"
        ) from None
    except _Refused as error:
        raise ValueError(f"{name} {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{name} must hold one JSON object")
    tree = translated(tree)
    put_words(tree, overrides, translated)
    return tree


def put_words(tree: Tree, words: list[str], translated: Callable[[Tree], Tree]) -> None:
    """Apply `section.key=value` words to a tree of present names. Raises ValueError as `read_tree` does."""
    as_written: Tree = {}  # by all words, as they stand
    for word in words:
        names, value = _parsed_word(word)
        _put(as_written, names, value, word)
        for now in _translated_word(names, value, translated):
            _put(tree, *now, word)
    translated(as_written)
    _check_values(tree)


class _Refused(Exception):
    """JSON that is no config's; the words follow the name of the file or key."""


def _bytes_of(path: str, name: str) -> bytes:
    """The content of a regular file, or of what a shell hands over: /dev/stdin, <(...)."""
    if "\0" in path:
        raise ValueError(f"cannot read the config {name}: no file has such a name; give --config an existing JSON file")
    # Opening a named pipe would wait for a writer that may never come.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if stat.S_ISFIFO(status.st_mode):
            is_read = os.readlink(f"/proc/self/fd/{handle}").startswith("pipe:")
        else:
            is_read = stat.S_ISREG(status.st_mode) or stat.S_ISCHR(status.st_mode)
        if not is_read:
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a file"
            raise ValueError(f"cannot read the config {name}: it is {what}; give --config an existing JSON file")
        os.set_blocking(handle, True)
        content = bytearray()
        while len(content) <= MOST_BYTES and (more := os.read(handle, 2**20)):
            content += more
    finally:
        os.close(handle)
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"the config {name} has more than {MOST_BYTES // 2**20} MiB; give --config a JSON file of keys and values"
        )
    return bytes(content)


def _decoded(content: bytes, name: str) -> str:
    encoding = json.detect_encoding(content)  # UTF-8, 16 or 32, with or without its mark at the start
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name} is not text in UTF-8: byte 0x{content[error.start]:02x} at line {line}; save it as UTF-8"
        ) from None


def _parsed(text: str) -> Any:
    """JSON, in which no object has a key twice. Raises json.JSONDecodeError, or _Refused."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise _Refused(f"has the key {cut_text(twice)} twice in one object; leave one")
        return found

    def whole(digits: str) -> int:
        if len(digits) > _MOST_DIGITS:
            raise _Refused(f"has a number of {len(digits):,} digits ({digits[:20]}...); write one that fits")
        return int(digits)

    try:
        return json.loads(text, object_pairs_hook=once, parse_int=whole)
    except RecursionError:
        raise _Refused(f"is nested more than {MOST_LEVELS} deep; a config has few levels") from None


def _parsed_word(word: str) -> tuple[list[str], Any]:
    """section.key=value as (["section", "key"], value)."""
    path, equals, text = word.partition("=")
    if not equals or not path:
        hint = ", or --config before the file of a config" if word.endswith(".json") else ""
        raise ValueError(f'"{cut_text(word)}" is not an override; write section.key=value{hint}')
    try:
        value = _parsed(text)
    except json.JSONDecodeError:
        value = text
    except _Refused as error:
        raise ValueError(f"{cut_text(path)} {error}") from None
    names = path.split(".")
    if len(names) > MOST_LEVELS:
        raise ValueError(f"{cut_text(path)} is nested more than {MOST_LEVELS} deep; a config has few levels")
    return names, value


def _translated_word(names: list[str], value: Any, translated: Callable[[Tree], Tree]) -> list[tuple[list[str], Any]]:
    """Names and value by the present names; one word may mean several keys."""
    part = value
    for name in reversed(names):
        part = {name: part}
    found = [([], translated(part))]  # type: list[tuple[list[str], Any]]
    for _ in names:
        found = [
            ([*above, name], below)
            for above, section in found
            for name, below in (section.items() if isinstance(section, dict) else [])
        ] or found
    return found


def _put(tree: Tree, names: list[str], value: Any, word: str) -> None:
    """Set the value at the place of these names, for which sections are made where there are none."""
    *sections, key = names
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ValueError(f"{cut_text(word.partition('=')[0])}: {cut_text(section)} is not a section")
    tree[key] = value


def _check_values(tree: dict[str, Any]) -> None:
    """ValueError for what no key can hold, with the key. Without recursion: the tree may be deeper than Python can go."""
    waiting: list[tuple[str, Any, int]] = [("", tree, 1)]
    while waiting:
        where, value, level = waiting.pop()
        if level > MOST_LEVELS:
            raise ValueError(f"{cut_text(where, 40)} is nested more than {MOST_LEVELS} deep; a config has few levels")
        if isinstance(value, dict):
            for key, part in value.items():
                full = f"{where}.{key}" if where else key
                _check_text(f"the key {cut_text(full)}", key)
                waiting.append((full, part, level + 1))
        elif isinstance(value, list):
            waiting += [(where, part, level + 1) for part in value]
        elif isinstance(value, str):
            _check_text(cut_text(where), value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{cut_text(where)} is {json.dumps(value)}, which is no finite number; write one")


def _check_text(where: str, text: str) -> None:
    shown = shown_text(text)
    if shown == text:
        return
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(
            f"{where} is not UTF-8: {cut_text(text)}; rename the file or directory, or make a link to it that has a plain name"
        )
    raise ValueError(
        f"{where} holds characters that cannot be shown: {cut_text(text)}; take out line ends, NUL and control characters"
    )


def at_home(path: str) -> str:
    """The path with ~ written out, as a shell does it where a word begins with one."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        home = path.partition("/")[0]
        raise ValueError(
            f"there is no home directory for {home}; write the path in full, or ./{path} for a directory of that name"
        )
    return expanded
