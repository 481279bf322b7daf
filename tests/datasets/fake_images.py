"""Images and a schedule that are computed, for tests of the loader; and what makes two batches the same."""

import hashlib
import time
from dataclasses import dataclass

import numpy as np
import torch

from datasets.batch import Batch, UnreadableImage
from datasets.grey import GreyAugment
from datasets.keyed import keyed, shuffle
from datasets.loader import StepDataset
from datasets.photos import Crop, PhotoAugment

PLACES = 6


@dataclass(frozen=True)
class FakeSource:
    """Every instance another noise image; instances in `broken` cannot be read, those in `buggy` meet a bug."""

    shape: tuple[int, ...] = (32, 32)
    broken: frozenset[int] = frozenset()
    buggy: frozenset[int] = frozenset()
    pause_seconds: float = 0.0

    def image(self, instance: int) -> np.ndarray:
        time.sleep(self.pause_seconds)
        if instance in self.broken:
            raise UnreadableImage(f"photos/{instance}.jpg", "truncated")
        if instance in self.buggy:
            raise KeyError("no such font")
        return (
            (keyed(7, instance, np.arange(np.prod(self.shape))) >> np.uint64(56)).astype(np.uint8).reshape(self.shape)
        )

    def file_bytes(self, instance: int) -> int:
        return 1000 + instance


class FakeSchedule:
    """Six places a step in six lanes, out of 20 positions; position p holds instance 100 - p, but 18 and 19 are empty."""

    lanes = 6

    def positions(self, step: int) -> np.ndarray:
        positions = shuffle(step, 20)[:PLACES]
        return np.where(positions < 18, positions, -1)

    def instances(self, positions_B: np.ndarray) -> np.ndarray:
        assert (positions_B >= 0).all()
        return 100 - positions_B


GREY = GreyAugment(view_count=2)


PHOTOS = PhotoAugment(crops=(Crop(24, 1, (0.3, 1.0)), Crop(16, 2, (0.1, 0.3), rows_grad=False)))


def grey_dataset(**source: object) -> StepDataset:
    return StepDataset(FakeSource(**source), FakeSchedule(), GREY, seed=1)


def assert_same(one: Batch, other: Batch) -> None:
    assert one.step == other.step
    assert len(one.views) == len(other.views)
    assert all(map(torch.equal, one.views, other.views))
    for name in ("positions_G", "ids_G", "filled_G"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.unreadable == other.unreadable
    assert one.read_bytes == other.read_bytes


def digest_of(batch: Batch) -> str:
    """Of all that a step sees."""
    digest = hashlib.sha256()
    for array in (*(view.numpy() for view in batch.views), batch.positions_G, batch.ids_G, batch.filled_G):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(repr(batch.unreadable).encode())
    return digest.hexdigest()
