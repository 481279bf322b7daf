"""A batch as its parts: which places each of them has, and the batch put together again.

The views of an image do not depend on which other images are in the same call. So a batch that several workers made has the bits of one
that one of them made.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from datasets.batch import Batch


def places_of_part(places: int, part: int, parts: int) -> slice:
    """Those of `places` that part `part` of `parts` has: all parts together have each of them once, in order."""
    return slice(places * part // parts, places * (part + 1) // parts)


def joined(parts: Sequence[Batch]) -> Batch:
    """The batch whose parts these are, in their order. Views are taken out of them one by one, so that one of them is there twice."""
    if len(parts) == 1:
        return parts[0]
    firsts = np.cumsum([0, *(len(part.ids_G) for part in parts)])
    return Batch(
        parts[0].step,
        [torch.cat([part.views.pop(0) for part in parts]) for _ in range(len(parts[0].views))],
        np.concatenate([part.positions_G for part in parts]),
        np.concatenate([part.ids_G for part in parts]),
        np.concatenate([part.filled_G for part in parts]),
        [
            replace(one, place=one.place + int(first))
            for part, first in zip(parts, firsts, strict=False)
            for one in part.unreadable
        ],
        read_bytes=sum(part.read_bytes for part in parts),
        cpu_seconds=sum(part.cpu_seconds for part in parts),
    )
