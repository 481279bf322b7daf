"""The learning rate of a step: linear warm-up, then half a cosine (Loshchilov and Hutter 2017) or steps down, all by the step's number."""

import math
from collections.abc import Sequence


def learning_rate(step: int, *, total: int, warmup: int, highest: float, lowest: float, warmup_factor: float) -> float:
    """eta at `step` (0-based) of `total`; the first `warmup` steps rise from highest * warmup_factor."""
    if step < warmup:
        return _warming(step, warmup, highest, warmup_factor)
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * done))


def stepped_rate(
    step: int, *, warmup: int, highest: float, warmup_factor: float, drops: Sequence[int], gamma: float
) -> float:
    """eta at `step` (0-based): from each of the steps `drops` on, which count from step 0, it is `gamma` times what it was before.

    The first `warmup` steps are those of `learning_rate`.
    """
    if step < warmup:
        return _warming(step, warmup, highest, warmup_factor)
    return highest * gamma ** sum(drop <= step for drop in drops)


def _warming(step: int, warmup: int, highest: float, warmup_factor: float) -> float:
    return highest * (warmup_factor + (1 - warmup_factor) * step / warmup)
