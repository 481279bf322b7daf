"""What a run cannot read: each image told once with its reason, counted once, and too many of them end the run.

Every rank sees how many places of a step are unreadable (engine/training/step.py gathers that), and so all decide alike. Which
images they are only the rank knows that tried; it tells the others when a line of the log is due, and when the run is to end.

The limit is a share of the images that a window visits: `max_share` x G x the window's steps. It is looked at in every step, so a folder
that breaks down is noticed after a tenth of a window, and three steps in which nothing at all was read are enough whatever the
window is. One image is always allowed, unless none is. A run in which nothing was read does not end as one that is finished. Counts go
into checkpoints, so a run that is cut into pieces is judged as a whole one.
"""

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np

from datasets.batch import Unreadable
from engine.disk.body import RunState
from engine.ranks.ranks import Ranks
from engine.results.json_files import read_text

# What a place of a step is; the last: the rank was asked to stop and waits no longer.
EMPTY, FILLED, UNREADABLE, NO_BATCH = range(4)
_STEPS_OF_NOTHING = 3
_NAMED = 3  # images that an error names
_REMEMBERED = 100_000  # images; those beyond are counted at every visit and not named


class TooMuchUnread(Exception):
    """More images could not be read than the config allows."""


@dataclass
class Reading:
    """Of one run, on one rank.

    places            G/R, of this rank
    max_share         of a window's images that may be unreadable
    steps_per_window, end   in steps; the run ends at `end`
    file_bytes        instance -> the size of its file, kept so that a repaired file is not taken for another image
    lines             opens unreadable.jsonl, to add lines to; None: another rank writes it
    known             the images that could not be read so far: instance -> the size of its file at this start, as in the fingerprint
    beyond            visits to unreadable images that are not in `known` because that is full
    visited, unread   images of this window so far, and those of them that could not be read
    has_read          whether any image of the run could be
    """

    places: int
    max_share: float
    steps_per_window: int
    end: int
    file_bytes: Callable[[int], int]
    lines: Callable[[], AbstractContextManager[TextIO]] | None = None
    known: dict[int, int] = field(default_factory=dict)
    beyond: int = 0
    visited: int = 0
    unread: int = 0
    has_read: bool = False
    _first: list[str] = field(default_factory=list)  # in this window: what an error names
    _unreported: list[Unreadable] = field(default_factory=list)
    _nothing: int = 0  # steps in a row

    @property
    def count(self) -> int:
        """Images that could not be read, each once."""
        return len(self.known) + self.beyond

    def state(self) -> dict[str, object]:
        """What a checkpoint's manifest keeps of it."""
        return {"unreadable": list(self.known.items()), "window_reads": [self.visited, self.unread]}

    def take_up(self, state: RunState, images: int) -> None:
        """Go on after a checkpoint whose manifest says this, of a run that had read so many images."""
        self.know(instance for instance, _ in state.unreadable or [])
        self.visited, self.unread = state.window_reads or (0, 0)
        self.has_read = images > 0

    def know(self, instances: Iterable[int]) -> None:
        """Take up what an earlier start could not read."""
        self.known |= {instance: self.file_bytes(instance) for instance in instances}

    def add(self, step: int, places_RP: np.ndarray, unreadable: Iterable[Unreadable]) -> str | None:
        """Take up a step, before it is trained on; why the run is to end, or None. The same on every rank.

        places_RP    what each place of each rank is, uint8     unreadable   this rank's
        """
        if step % self.steps_per_window == 0:
            self.visited = self.unread = 0
            self._first.clear()
        self._unreported += unreadable
        filled, unread = int((places_RP == FILLED).sum()), int((places_RP == UNREADABLE).sum())
        self.visited += filled + unread
        self.unread += unread
        self.has_read |= filled > 0
        self._nothing = self._nothing + 1 if unread and not filled else 0
        if self._nothing >= _STEPS_OF_NOTHING:
            return f"none of the images of {_STEPS_OF_NOTHING} steps in a row could be read"
        if step + 1 == self.end and self.unread and not self.has_read:
            return "none of the images of this run could be read"
        is_last = (step + 1) % self.steps_per_window == 0
        most = self.visited if is_last else self.steps_per_window * places_RP.size
        if self.unread > max(self.max_share * most, self.max_share > 0):
            return (
                f"{self.unread:,} of {self.visited:,} images of this window could not be read, "
                f"more than data.max_unreadable ({self.max_share:g}) allows"
            )
        return None

    def report(self, ranks: Ranks) -> list[str]:
        """A line for each image that no line named before; every rank calls it, and hears of the images of all."""
        lines, entries = [], []
        for one in (one for of_rank in ranks.share(self._unreported) for one in of_rank):
            named = f"{one.name} ({one.reason})"
            if len(self._first) < _NAMED and named not in self._first:
                self._first.append(named)
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
        self._unreported = []
        if self.lines and entries:
            with self.lines() as file:
                file.writelines(entries)
        return lines

    def first_names(self) -> str:
        """The first images of this window that could not be read, and why, for an error; after `tell`."""
        return ", ".join(self._first)


def listed(path: Path) -> dict[int, int]:
    """instance -> file size, of what unreadable.jsonl lists; what cannot be read in it is left out."""
    found: dict[int, int] = {}
    try:
        text = read_text(path)
    except OSError:
        return found
    for line in text.split("\n"):
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            entry = json.loads(line)
            instance, size = entry["instance"], entry["bytes"]
            if type(instance) is int and type(size) is int and instance >= 0:
                found[instance] = size
    return found
