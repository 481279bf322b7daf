"""What every source of images offers: a numbered set whose number i means the same image for ever.

The engine keeps one classifier row for each instance, so the map instance -> image may never move under a run. A source
therefore fixes its order when it is opened, and sums up what fixes it in a fingerprint that a resumed run compares.
A source may grow between two starts of a run, at its end only: the fingerprint of its first N instances is then still
the one that the run had with N. Where new files would fall between old ones, an index that was saved keeps their numbers.
Nothing here reads ahead, caches or augments: a source decodes one image when asked and forgets it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np


class Source(Protocol):
    """N images, decoded on demand, by any number of forked or spawned processes.

    name      what the source is called in messages
    channels  1 (grey, images are [H, W]) or 3 (RGB, images are [H, W, 3])
    notes     lines for the user: what was left out and may be missed
    """

    name: str
    channels: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        """N. Instances are 0 .. N-1."""
        ...

    def image(self, instance: int) -> np.ndarray:
        """uint8 [H, W] or [H, W, 3], 0 = black, the caller's own copy.

        UnreadableImage where it is the image that cannot be decoded; ImagesUnavailable, an OSError, where the machine fails.
        """
        ...

    def labels(self) -> np.ndarray | None:
        """int64 [N], or None where nothing is known. For evaluation only: training never asks."""
        ...

    def instance_name(self, instance: int) -> str:
        """For people: a path, or a font face and a character; one line, and nothing that a terminal obeys."""
        ...

    def file_bytes(self, instance: int) -> int:
        """Size of the image's own file as the fingerprint has it; 0 where images have none."""
        ...

    def fingerprint(self, count: int | None = None, were: Mapping[int, int] | None = None) -> str:
        """sha256 (hex) over what fixes instance -> image for the first `count` instances, at most N (None: all N).

        Equal to that of a source which has these instances alone. Cheap: it does not read every image of a folder.
        were: of some instances the `file_bytes` that they had, to be taken instead of today's: an image that could not be read
        may be repaired without being another one.
        """
        ...

    def save_index(self, path: Path) -> None:
        """Write down the order where files appended later would change it, whole or not at all; else do nothing.

        A later `open_source(known=path)` then numbers the same images as now and all new ones behind them.
        """
        ...
