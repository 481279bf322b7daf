"""Chosen images of a source in passes: what a classifier on a network that does not change is trained on, and what is read once in order.

    step s    places s' B, ..., s' B + B - 1 of pass s // P, with P = ceil(M / B) steps a pass and s' = s mod P
    place i   image order(pass)[i]; a place behind the last image is empty

It is what datasets/loader.py asks of a schedule. A batch is cut into R parts of B/R places, one after the other, so all ranks together
have the places in their order, whatever R is. Nothing is kept between steps but the order of one pass.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from datasets.clean import PHOTO_MARGIN, to_tensor
from datasets.keyed import keyed, shuffle
from datasets.source import Source

_ORDER = 20206


class Passes:
    """A schedule of datasets/loader.py.

    instances_M   int64, the images
    batch         B, of all ranks together; a multiple of `parts`
    parts         R
    seed          keys the order of each pass; None: every pass has the order of instances_M
    """

    def __init__(self, instances_M: np.ndarray, batch: int, parts: int = 1, seed: int | None = None) -> None:
        assert len(instances_M) and batch % parts == 0, (len(instances_M), batch, parts)
        self.instances_M, self.batch, self.lanes = instances_M, batch, parts
        self.steps_per_pass = -(-len(instances_M) // batch)
        self._order = (lambda _: np.arange(len(instances_M))) if seed is None else orders(seed, len(instances_M))

    def positions(self, step: int) -> np.ndarray:
        """int64 [B]: pass x M + place; -1 where a place is empty."""
        of_pass, within = divmod(step, self.steps_per_pass)
        places_B = within * self.batch + np.arange(self.batch)
        count = len(self.instances_M)
        return np.where(places_B < count, of_pass * count + places_B, -1)

    def instances(self, positions_B: np.ndarray) -> np.ndarray:
        """int64 [B] of one pass -> int64 [B]."""
        if not len(positions_B):
            return np.empty(0, np.int64)
        of_pass = int(positions_B[0]) // len(self.instances_M)
        return self.instances_M[self._order(of_pass)[positions_B % len(self.instances_M)]]


def orders(seed: int, count: int) -> Callable[[int], np.ndarray]:
    """The permutation of range(count) of each pass, int64; that of the last pass that was asked for is kept."""
    kept: dict[int, np.ndarray] = {}

    def order(of_pass: int) -> np.ndarray:
        if of_pass not in kept:
            kept.clear()
            kept[of_pass] = shuffle(int(keyed(_ORDER, seed, of_pass)), count)
        return kept[of_pass]

    return order


class AsTheyAre:
    """Images without augmentation, as datasets/clean.py makes them: an `Augmentation` of datasets/loader.py."""

    rows_grad_V: tuple[bool, ...] = (True,)

    def __init__(self, image_size: int, channels: int) -> None:
        self.image_size, self.channels = image_size, channels

    def views(self, images: Iterable[np.ndarray | None], seed: int, step: int, ids_B: np.ndarray) -> list[torch.Tensor]:
        margin = PHOTO_MARGIN if self.channels == 3 else 1.0
        view_BCSS = torch.zeros(len(ids_B), self.channels, self.image_size, self.image_size, dtype=torch.uint8)
        place = 0
        # No enumerate: it would keep an image while the next one is made.
        for image in images:
            if image is not None:
                view_BCSS[place] = to_tensor([image], self.image_size, margin)[0]
            del image
            place += 1
        assert place == len(ids_B), (place, len(ids_B))
        return [view_BCSS]


class InColour:
    """The images of a source with three channels, whatever it has: for views that are made of photographs."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def image(self, instance: int) -> np.ndarray:
        image = self._source.image(instance)
        return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)

    def file_bytes(self, instance: int) -> int:
        return self._source.file_bytes(instance)
