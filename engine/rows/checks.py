"""Checksums of blocks of rows: what the digest of a run is made of, so that a stop reads nothing that is on the disk.

    (block, [crc32c of weight, of momentum, of last_step])     of each block that was visited, in ascending order of blocks

A block that has left the host tier has the checksums of the bytes in which its store keeps it; the store knows them. A resident block
has those of what it would hold with the active rows laid over it. A momentum that is missing because the block is folded counts as
zeros. So for one config and one number of ranks the digest does not depend on the kind of store, on checkpoints, or on resumes.
"""

from functools import cache

import google_crc32c
import numpy as np

CHECKED = np.dtype([("block", "<i8"), ("checks", "<u4", (3,))])


def as_bytes(content: np.ndarray) -> np.ndarray:
    """The array's bytes, read-only uint8, without a copy where none is needed."""
    view = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
    view.flags.writeable = False
    return view


def crc_of(content: np.ndarray) -> int:
    """crc32c of the array's bytes."""
    return google_crc32c.value(as_bytes(content))


@cache
def crc_of_zeros(count_bytes: int) -> int:
    return google_crc32c.value(bytes(count_bytes))


def checks_of(weight_CD: np.ndarray, momentum_CD: np.ndarray | None, last_step_C: np.ndarray) -> tuple[int, int, int]:
    """Of a block's three arrays."""
    momentum = crc_of_zeros(weight_CD.nbytes) if momentum_CD is None else crc_of(momentum_CD)
    return crc_of(weight_CD), momentum, crc_of(last_step_C)


def by_block(*parts: np.ndarray) -> np.ndarray:
    """All of them, CHECKED [n] each, in ascending order of blocks. Fast where each part is ascending."""
    whole = np.concatenate([np.empty(0, CHECKED), *parts])
    return whole[np.argsort(np.ascontiguousarray(whole["block"]), kind="stable")]
