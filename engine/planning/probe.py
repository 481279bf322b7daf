"""What job=linear takes beside the network and its images: features on the disk, and the classifiers on the device of rank 0.

    features    float32, mapped into memory, so that the system may keep them or drop them
    SGD         at L rates: weights, momentum, gradient, and the step that is taken off
    C           logistic regression asks for 37 vectors of all its weights in float64: 25 of L-BFGS with ten steps of memory (scipy),
                and those of bounds, loss and gradient; and all rows in float64 where they fit into 1 GiB, else a slice

The 37 was measured (weights of 4 and 8 MiB, 13 and 39 iterations: 35.6 to 36.6 vectors; 23 to 28 after 5 to 7 iterations). Left
out: what the C library keeps of freed vectors under 32 MiB. glibc kept 5 vectors of 8 MiB, and up to 29 of 4 MiB (120 MiB); how
many differs from run to run.
"""

from dataclasses import dataclass

from engine.probing.logistic import HELD_BYTES
from engine.probing.rows import ROWS_AT_ONCE

_FLOAT_BYTES, _DOUBLE_BYTES = 4, 8
_SGD_COPIES, _SEARCH_VECTORS = 4, 37


@dataclass(frozen=True)
class ProbeSizes:
    """
    trained, tested   images      width    D, of the features     classes   C
    rates             L, of SGD; 0: none                          strengths   of logistic regression; 0: none
    """

    trained: int
    tested: int
    width: int
    classes: int
    rates: int
    strengths: int


def features_bytes(images: int, width: int) -> int:
    """On the disk."""
    return images * width * _FLOAT_BYTES


def sgd_bytes(sizes: ProbeSizes) -> int:
    return sizes.rates * (sizes.width + 1) * sizes.classes * _FLOAT_BYTES * _SGD_COPIES


def logistic_bytes(sizes: ProbeSizes) -> int:
    if not sizes.strengths:
        return 0
    rows = sizes.trained * sizes.width * _DOUBLE_BYTES
    if rows > HELD_BYTES:
        rows = ROWS_AT_ONCE * sizes.width * _DOUBLE_BYTES
    slice_ = min(sizes.trained, ROWS_AT_ONCE) * (sizes.width * _FLOAT_BYTES + 2 * sizes.classes * _DOUBLE_BYTES)
    return rows + slice_ + _SEARCH_VECTORS * (sizes.width + 1) * sizes.classes * _DOUBLE_BYTES


def probe_text(sizes: ProbeSizes, where: str) -> str:
    """A line. where: the directory of the features."""
    features = features_bytes(sizes.trained + sizes.tested, sizes.width)
    text = f"features of {sizes.width:,} numbers: {_mib(features)} MiB on the disk, in {where}"
    counts = {"SGD": sgd_bytes(sizes), "logistic regression": logistic_bytes(sizes)}
    told = [f"{_mib(count)} MiB for {what}" for what, count in counts.items() if count]
    one_by_one = ", one after the other" * (len(told) > 1)
    return text + f"; {sizes.classes:,} classes: {' and '.join(told)}{one_by_one}" * bool(told)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f}"
