"""What a run cannot read: each image told once with its reason, counted once, and too many of them end the run.

Every rank sees how many places of a step are unreadable (engine/step.py gathers that), and so all decide alike. Which images they are
only the rank knows that tried; it tells the others when a line of the log is due, and when the run is to end.

The limit is a share of the images that a window visits: `max_share` x G x the window's steps. It is looked at in every step, so a folder
that breaks down is noticed after a tenth of a window, and three steps in which nothing at all was read are enough whatever the
window is. What a window really visited counts at its end, and at the end of the run. One image is always allowed, unless none is.
"""

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np

from datasets.batch import Unreadable
from engine.ranks import Ranks

EMPTY, FILLED, UNREADABLE = 0, 1, 2  # what a place of a step is
_STEPS_OF_NOTHING = 3
_NAMED = 3  # images that an error names
_REMEMBERED = 100_000  # images; those beyond are counted at every visit and not named


class TooMuchUnread(Exception):
    """More images could not be read than the config allows."""


@dataclass
class Reading:
    """Of one run, on one rank.

    max_share         of a window's images that may be unreadable
    steps_per_window, end   in steps; the run ends at `end`
    file_bytes        instance -> the size of its file, kept so that a repaired file is not taken for another image
    lines             opens unreadable.jsonl, to add lines to; None: another rank writes it
    known             the images that could not be read so far: instance -> the size of its file at this start, as in the fingerprint
    beyond            visits to unreadable images that are not in `known` because that is full
    """

    max_share: float
    steps_per_window: int
    end: int
    file_bytes: Callable[[int], int]
    lines: Callable[[], AbstractContextManager[TextIO]] | None = None
    known: dict[int, int] = field(default_factory=dict)
    beyond: int = 0
    _first: list[str] = field(default_factory=list)  # in this window: what an error names
    _untold: list[Unreadable] = field(default_factory=list)
    _visited: int = 0
    _unread: int = 0
    _nothing: int = 0  # steps in a row

    @property
    def count(self) -> int:
        """Images that could not be read, each once."""
        return len(self.known) + self.beyond

    def know(self, instances: Iterable[int]) -> None:
        """Take up what an earlier start could not read."""
        self.known |= {instance: self.file_bytes(instance) for instance in instances}

    def add(self, step: int, places_RP: np.ndarray, unreadable: Iterable[Unreadable]) -> str | None:
        """Take up a step, before it is trained on; why the run is to end, or None. The same on every rank.

        places_RP    what each place of each rank is, uint8     unreadable   this rank's
        """
        if step % self.steps_per_window == 0:
            self._visited = self._unread = 0
            self._first.clear()
        self._untold += unreadable
        filled, unread = int((places_RP == FILLED).sum()), int((places_RP == UNREADABLE).sum())
        self._visited += filled + unread
        self._unread += unread
        self._nothing = self._nothing + 1 if unread and not filled else 0
        if self._nothing >= _STEPS_OF_NOTHING:
            return f"none of the images of {_STEPS_OF_NOTHING} steps in a row could be read"
        is_last = (step + 1) % self.steps_per_window == 0 or step + 1 == self.end
        most = self._visited if is_last else self.steps_per_window * places_RP.size
        if self._unread > max(self.max_share * most, self.max_share > 0):
            return (
                f"{self._unread:,} of {self._visited:,} images of this window could not be read, "
                f"more than data.max_unreadable ({self.max_share:g}) allows"
            )
        return None

    def tell(self, ranks: Ranks) -> list[str]:
        """A line for each image that no line named before; every rank calls it, and hears of the images of all."""
        lines, entries = [], []
        for one in (one for told in ranks.share(self._untold) for one in told):
            if len(self._first) < _NAMED and one.name not in self._first:
                self._first.append(one.name)
            if one.instance in self.known:
                continue
            if len(self.known) >= _REMEMBERED:
                self.beyond += 1
                continue
            self.known[one.instance] = self.file_bytes(one.instance)
            entry = {
                "instance": one.instance,
                "bytes": self.known[one.instance],
                "name": one.name,
                "reason": one.reason,
            }
            entries.append(json.dumps(entry) + "\n")
            lines.append(f"cannot read {one.name}: {one.reason}; its place stays empty")
        self._untold = []
        if self.lines and entries:
            with self.lines() as file:
                file.writelines(entries)
        return lines

    def first_names(self) -> str:
        """The first images of this window that could not be read, for an error; after `tell`."""
        return ", ".join(self._first)


def listed(path: Path) -> dict[int, int]:
    """instance -> file size, of what unreadable.jsonl lists; what cannot be read in it is left out."""
    found: dict[int, int] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return found
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            entry = json.loads(line)
            instance, size = entry["instance"], entry["bytes"]
            if type(instance) is int and type(size) is int and instance >= 0:
                found[instance] = size
    return found
