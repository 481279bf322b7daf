"""Features of many images, computed once and kept in a memory-mapped file: train.npy, float32 [M, D], NaN where an image cannot be read.

Beside the file lies train.json, which says of what the features are and how many rows are filled:

    {"key": "...", "shape": [M, D], "filled": 25600}

The key is a hash over the network, the images and how they are read, made by whoever asks. Where it is another one, or where a file
is missing or cut short, everything is computed again. A row counts as filled once it is on the disk, so a job that is killed goes on
behind the rows that are counted.

The ranks share the images: of each R x 256 of them a rank embeds 256, always the same 256 together, so the features do not depend on R.
Rank 0 writes, and holds a batch of every rank at a time.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from datasets.batch import Batch
from engine.probing.tellers import Pace, Say
from engine.ranks.ranks import Channel
from engine.results.json_files import read_text
from engine.results.output import Output
from engine.results.progress import duration_text
from engine.results.whole_files import reserve

BATCH = 256  # images that go through the network together
_SYNC_ROUNDS = 16  # batches of every rank between two looks that all is on the disk
_SAY_SECONDS = 10.0


class FeatureCache:
    """
    output   None at all ranks but the first
    name     of the two files below `linear`
    key      of network and images
    count    M
    `filled` rows are there when the object is made; `fill` computes the others, and then `features_MD` has all of them.
    """

    def __init__(self, output: Output | None, name: str, key: str, count: int, ranks: Channel) -> None:
        self._output, self._ranks, self._key, self.count, self.name = output, ranks, key, count, name
        self._array, self._record = f"linear/{name}.npy", f"linear/{name}.json"
        self.features_MD: np.ndarray = np.empty((0, 0), np.float32)
        self.filled = int(ranks.from_first(self._open() if output else 0))

    @property
    def first_step(self) -> int:
        """The batch of all ranks with which `fill` begins; behind the last one where all is filled."""
        return self.steps if self.filled == self.count else self.filled // (BATCH * self._ranks.size)

    @property
    def steps(self) -> int:
        """Batches of all ranks."""
        return -(-self.count // (BATCH * self._ranks.size))

    def fill(self, stream: Iterator[Batch], embed: Callable[[torch.Tensor], torch.Tensor], say: Say) -> None:
        """Embed what is not filled. All ranks call it together.

        stream   this rank's batches of 256 images in order (datasets/passes.py), from `first_step` on; a place behind the last is empty
        """
        if self.filled == self.count:
            return
        started, pace = time.monotonic(), Pace(_SAY_SECONDS)
        begun = done = self.first_step * BATCH * self._ranks.size
        for round_, batch in enumerate(stream, 1):
            by_rank = self._ranks.to_first(embedded(batch, embed))
            if not self._output:
                continue
            for rows_BD in by_rank:
                here = min(len(rows_BD), self.count - done)
                if here > 0:
                    self._rows(rows_BD.shape[1])[done : done + here] = rows_BD[:here]
                    done += here
            if round_ % _SYNC_ROUNDS == 0 or done == self.count:
                self._sync(done)
            if done < self.count and pace.is_due():
                left = (time.monotonic() - started) * (self.count - done) / (done - begun)
                say(f"features of {self.name}: {done:,} of {self.count:,} images, left {duration_text(left)}")
        self.filled = int(self._ranks.from_first(done if self._output else 0))

    def _open(self) -> int:
        """How many rows are filled already, and with them the file; 0 where it is to be made anew."""
        assert self._output
        path = self._output.path / self._array
        try:
            record = json.loads(read_text(self._output.path / self._record))
            shape, filled = tuple(record["shape"]), record["filled"]
            if record["key"] != self._key or shape[0] != self.count or not 0 < filled <= self.count:
                return 0
            # Opened for reading first: a file that is cut short is then refused, where it would be made longer.
            there_MD = np.load(self._output.enter(self._array), mmap_mode="r", allow_pickle=False)
            if there_MD.shape != shape or there_MD.dtype != np.float32:
                return 0
            features_MD = np.load(path, mmap_mode="r+", allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError):
            return 0
        self.features_MD = features_MD
        return int(filled)

    def _rows(self, width: int) -> np.ndarray:
        """The array, made where it is not there: with room on the disk for all of it, or OSError."""
        if self.features_MD.shape != (self.count, width):
            assert self._output
            self._output.remove(self._record)  # which would speak of the array before
            path = self._output.enter(self._array)
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666), "r+b") as file:
                head = {"descr": "<f4", "fortran_order": False, "shape": (self.count, width)}
                np.lib.format.write_array_header_1_0(file, head)
                file.flush()
                reserve(file.fileno(), file.tell() + 4 * self.count * width, Path(path))
            self.features_MD = np.load(path, mmap_mode="r+", allow_pickle=False)
        return self.features_MD

    def _sync(self, filled: int) -> None:
        """Only rows that are on the disk count."""
        assert self._output and isinstance(self.features_MD, np.memmap)
        self.features_MD.flush()
        self._output.write_json(
            self._record, {"key": self._key, "shape": list(self.features_MD.shape), "filled": filled}
        )


def embedded(batch: Batch, embed: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """float32 [B, D]; NaN where an image cannot be read, and at places behind the last one."""
    features_BD = embed(batch.views[0]).cpu().numpy()
    features_BD[~batch.filled_G] = np.nan
    return features_BD
