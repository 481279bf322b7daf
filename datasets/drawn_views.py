"""Random views of chosen images, for figures that need no labels: as the run's own augmentation makes them, with draws of their own.

    draw d of instance i: the first view that the augmentation makes for the key (SEED, 0, 2 i + d),    d = 0 or 1

The seed is fixed and nothing of the run goes into the key. So all evaluations of a run look at the same pixels, and so do those of another
run with the same augmentation, whatever its seed, its method and its number of views are.

Where views have several sizes these are of the first one. An image is decoded once for all of its draws, and of photographs one is held
at a time, as in training; what else the augmentation makes of it (the other crops) is made and thrown away.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from datasets.batch import ImageSet, Loaded, UnreadableImage
from datasets.loader import Augmentation, Source

SEED = 20203  # beside those of datasets/probes.py


def drawn_views(source: Source, augmentation: Augmentation, instances_M: np.ndarray, draws: Sequence[int]) -> ImageSet:
    """M len(draws) images, those of an instance one after the other. Those of an image that cannot be decoded are not readable.

    instances_M   int64              draws   some of 0 and 1
    """
    assert set(draws) <= {0, 1}, draws
    instances = np.repeat(np.asarray(instances_M, dtype=np.int64), len(draws))
    keys = 2 * instances + np.tile(np.asarray(draws, dtype=np.int64), len(instances_M))

    def load(start: int, stop: int) -> Loaded:
        readable = np.zeros(stop - start, dtype=bool)
        images = _decoded(source, instances[start:stop], readable)
        return Loaded(augmentation.views(images, SEED, 0, keys[start:stop])[0], readable)

    return ImageSet("views", len(instances), load)


def _decoded(source: Source, instances_B: np.ndarray, readable_B: np.ndarray) -> Iterator[np.ndarray | None]:
    """The image of each, None where it cannot be decoded; equal neighbours share one. Notes in readable_B which can be."""
    before, image = -1, None
    for place, instance in enumerate(instances_B.tolist()):
        if instance != before:
            image = None  # let go before the next one is decoded
            try:
                image = source.image(instance)
            except UnreadableImage:
                image = None
        before = instance
        readable_B[place] = image is not None
        yield image
