"""A source that keeps some of its images in memory, so that a run reads each of them once.

    fill(ids)    reads these instances, in order, and keeps what the source gave; once, before the loader's workers are forked
    image(i)     what was kept, or else the source's

What is kept are pixels, so that each image is decoded once, or the bytes of its file (`is_encoded`), which are some ten times smaller
and are decoded at each visit. A rank fills in the instances of its own lanes, about N/R, and its loader reads no other: what is too
much for one machine may fit into the memory of many. Forked workers share the pages, since nobody writes into them: arrays are
read-only, and callers, who own what they get, get copies.

`most_bytes` bounds what is kept: the first image that does not fit ends the filling, and it and those behind are read at each visit.

What is left out: eviction, images that cannot be read (the source is asked for them every time and raises as before; where the machine
fails, `fill` raises), and probes: `make_probe` goes by a source's class, so give it `source`.
What it costs beyond the content: about 250 bytes for each image, half of which a worker comes to hold for itself, as it counts references;
and the time until all are read, before the first step.
"""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from datasets.batch import UnreadableImage
from datasets.decode import Undecodable, decode
from datasets.indexed import IndexedImages
from datasets.source import Source

BESIDE_BYTES = 250  # of each image that is kept, beside its content


class CachedSource:
    """A Source like `source`, with the images in memory that `fill` was told to keep.

    is_encoded    keep bytes of files, of which a folder and a zip have some; ValueError of another source
    most_bytes    of what is kept, or None for any
    left_over     how many images did not fit
    """

    def __init__(self, source: Source, is_encoded: bool = False, most_bytes: int | None = None) -> None:
        if is_encoded and not isinstance(source, IndexedImages):
            raise ValueError(f'data.cache_of: {source.name} has no encoded images; set it to "decoded"')
        self.source = source
        self.name, self.channels, self.notes = source.name, source.channels, source.notes
        self.left_over = 0
        self.bytes = 0  # of the content that is kept
        self._is_encoded, self._most_bytes = is_encoded, most_bytes
        self._kept: dict[int, np.ndarray | bytes] = {}

    def fill(self, ids: Iterable[int]) -> None:
        """Read these instances in this order and keep those that can be read; one that is kept already is left as it is."""
        for instance in map(int, ids):
            if instance in self._kept:
                continue
            if self.left_over:
                self.left_over += 1
                continue
            try:
                content = self._content(instance)
            except UnreadableImage:
                continue
            size = len(content) if isinstance(content, bytes) else content.nbytes
            held = self.bytes + size + BESIDE_BYTES * (len(self._kept) + 1)
            if self._most_bytes is not None and held > self._most_bytes:
                self.left_over = 1
                continue
            self._kept[instance] = content
            self.bytes += size

    def _content(self, instance: int) -> np.ndarray | bytes:
        if self._is_encoded:
            assert isinstance(self.source, IndexedImages)
            return self.source.encoded(instance)
        image = self.source.image(instance)
        image.flags.writeable = False
        return image

    def __len__(self) -> int:
        return len(self.source)

    def image(self, instance: int) -> np.ndarray:
        content = self._kept.get(instance)
        if content is None:
            return self.source.image(instance)
        if isinstance(content, np.ndarray):
            return content.copy()
        try:
            return decode(io.BytesIO(content))
        except Undecodable as error:
            raise UnreadableImage(self.instance_name(instance), str(error)) from error

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
