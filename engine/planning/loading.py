"""What the loader of a rank takes: batches that are ready, images while they are decoded, images that are kept, worker processes.

Workers are forked (datasets/workers.py): what they share with the run costs nothing, what they write is their own. Batches that are
ready lie in memory of their own between a worker and the run (datasets/parcel.py); the one that a step works on is the run's.

Left out: what Python's own objects in a worker take beyond `_FORKED_BYTES`, and page tables.
"""

from dataclasses import dataclass

from engine.planning import components as names
from engine.planning.components import HOST, TRAINING, Component, passing

# Of bytes of pixels, while an image is decoded. Photos: three of Pillow's images, which have 4 bytes a pixel, and two arrays of 3; grey
# images: two arrays and one of floats.
_WHILE_DECODED = 6
_KEPT_IMAGE_BYTES = 250  # beside the pixels, of an array that is kept
# That a worker comes to hold for itself of the interpreter's objects, as it counts references.
_FORKED_BYTES = 40 * 2**20


@dataclass(frozen=True)
class LoaderSizes:
    """
    views      bytes of one batch of augmented images           held      batches in memory at a time
    workers    processes that decode, 0: the run itself         at_once   images that each of them holds decoded
    largest    bytes of one image's pixels                      mean      of the typical image, as it is kept
    cached     images that are kept in memory, or 0             most_cached   bytes that these may take, None: any
    how        in which way largest and mean are known          decodes   False: no image is read, features are given
    """

    views: int
    held: int
    workers: int
    at_once: int
    largest: int
    mean: float
    cached: int
    most_cached: int | None
    how: str
    decodes: bool


def loader_components(sizes: LoaderSizes) -> list[Component]:
    """Host memory of a rank, its workers included."""
    decoding = sizes.at_once * sizes.largest * _WHILE_DECODED if sizes.decodes else 0
    kept = round(sizes.cached * (sizes.mean + _KEPT_IMAGE_BYTES))
    kept = kept if sizes.most_cached is None else min(kept, sizes.most_cached)
    own = [
        Component(HOST, names.BATCHES, sizes.views),
        Component(HOST, names.KEPT, kept, how=sizes.how),
    ]
    if not sizes.workers:
        # The next batch is made when it is asked for, while the last one is still in the step's hands.
        return [*own, passing(HOST, names.DECODING, decoding + sizes.views, TRAINING, how=sizes.how)]
    # A worker makes a batch and hands it over view by view, so that one view is there twice.
    each = decoding + 2 * sizes.views + _FORKED_BYTES
    return [
        *own,
        Component(HOST, names.BATCHES + ", between the processes", (sizes.held - 1) * sizes.views, beside=True),
        Component(HOST, names.WORKERS, sizes.workers * each, beside=True, how=sizes.how),
    ]
