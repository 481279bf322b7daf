"""data.exclude: patterns of files and directories that are left out.

A pattern is as in a shell, and letters are compared with their case. One without a slash is compared with every name, one with a slash
with the path from data.root, part by part. Letters with accents match however they are composed.
"""

import os
import re
import unicodedata
from collections.abc import Iterable
from fnmatch import translate

from datasets.shown import shown


class Patterns:
    """Patterns as the config has them, for what lies below data.root, or below the directory there that is a split.

    `Patterns(["*.gif", "train/b/*"], "train")` leaves `a.gif`, `x/a.gif` and `b/1.png` of `train` out, and not `x/b/1.png`.

    others    names of other splits below the root: a path in one of them leaves nothing out here. A path in none is one within the split
    is_told   whether `note` names patterns: where there are splits, those of the one that is trained on
    """

    def __init__(
        self, patterns: Iterable[str] = (), split: str = "", others: Iterable[str] = (), is_told: bool = True
    ) -> None:
        self.split, self._is_told = split, is_told
        self._names: dict[str, re.Pattern[str]] = {}
        self._paths: dict[str, list[re.Pattern[str]]] = {}
        others = tuple(others)
        for pattern in patterns:
            if "/" not in pattern:
                self._names[pattern] = _compiled(pattern)
                continue
            parts = [_compiled(part) for part in _parts(pattern.removeprefix("./").strip("/"))]
            if split and parts[0].match(_composed(split)):
                self._paths[pattern] = parts[1:]
            elif not any(parts[0].match(_composed(other)) for other in others):
                self._paths[pattern] = parts
        self._any_name = re.compile("|".join(one.pattern for one in self._names.values())) if self._names else None

    def __len__(self) -> int:
        """Of those that can leave something out here."""
        return len(self._names) + len(self._paths)

    def matching(self, prefix: bytes, name: bytes) -> list[str]:
        """The patterns that leave out what is called `name` in a directory.

        prefix: the path of the directory with a slash behind it; empty for the top one
        """
        matching: list[str] = []
        if self._any_name is not None:
            composed = _composed(os.fsdecode(name))
            if self._any_name.match(composed):
                matching = [pattern for pattern, one in self._names.items() if one.match(composed)]
        if self._paths:
            parts = _parts(os.fsdecode(prefix + name))
            matching += [pattern for pattern, ones in self._paths.items() if _match(ones, parts)]
        return matching

    def note(self, used: set[str]) -> str | None:
        """A line that names the patterns that are not among `used`; None where there is nothing to tell."""
        every = (*self._names, *self._paths) if self._is_told else ()
        unused = [repr(pattern) for pattern in every if pattern not in used]
        where = f" of {shown(self.split)}" if self.split else ""
        return f"data.exclude: {', '.join(unused)} left nothing{where} out" if unused else None


def _match(ones: list[re.Pattern[str]], parts: list[str]) -> bool:
    return len(ones) == len(parts) and all(one.match(part) for one, part in zip(ones, parts, strict=True))


def _parts(path: str) -> list[str]:
    return _composed(path).split("/")


def _compiled(pattern: str) -> "re.Pattern[str]":
    return re.compile(translate(_composed(pattern)))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
