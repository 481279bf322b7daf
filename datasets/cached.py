"""A source that keeps the decoded images of some instances in memory, so that a run decodes each of them once.

    fill(ids)    decodes these instances, in order, and keeps what the source gave; once, before the loader's workers are forked
    image(i)     a copy of what was kept, or else the source's

With R ranks each one fills in the instances of its own lanes, about N/R, and its loader reads no other: what is too much for one
machine may fit into the memory of many. Forked workers share the pages, since nobody writes into them: arrays are read-only, and
callers, who own what they get, get copies.

What is left out: a limit (`bytes` tells what is held; an image is height x width x channels), eviction, images that cannot be decoded
(the source is asked for them every time and raises as before; where the machine fails, `fill` raises), and probes: `make_probe` goes by
a source's class, so give it `source`.
What it costs beyond the pixels: about 250 bytes for each image, half of which a worker comes to hold for itself, as it counts references;
and the time until all are decoded, before the first step.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from datasets.batch import UnreadableImage
from datasets.source import Source


class CachedSource:
    """A Source like `source`, with the images in memory that `fill` was told to keep."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name, self.channels, self.notes = source.name, source.channels, source.notes
        self._images: dict[int, np.ndarray] = {}

    def fill(self, ids: Iterable[int]) -> None:
        """Decode these instances in this order and keep those that can be decoded; one that is kept already is left as it is."""
        for instance in map(int, ids):
            if instance in self._images:
                continue
            try:
                image = self.source.image(instance)
            except UnreadableImage:
                continue
            image.flags.writeable = False
            self._images[instance] = image

    @property
    def bytes(self) -> int:
        """What the kept images hold."""
        return sum(image.nbytes for image in self._images.values())

    def __len__(self) -> int:
        return len(self.source)

    def image(self, instance: int) -> np.ndarray:
        image = self._images.get(instance)
        return self.source.image(instance) if image is None else image.copy()

    def labels(self) -> np.ndarray | None:
        return self.source.labels()

    def instance_name(self, instance: int) -> str:
        return self.source.instance_name(instance)

    def file_bytes(self, instance: int) -> int:
        return self.source.file_bytes(instance)

    def fingerprint(self, count: int | None = None, were: Mapping[int, int] | None = None) -> str:
        return self.source.fingerprint(count, were)

    def save_index(self, path: Path) -> None:
        self.source.save_index(path)
