"""The learning rate of a step: linear warm-up, then half a cosine, both per step (Loshchilov and Hutter 2017)."""

import math


def learning_rate(step: int, *, total: int, warmup: int, highest: float, lowest: float, warmup_factor: float) -> float:
    """eta at `step` (0-based) of `total`; the first `warmup` steps rise from highest * warmup_factor."""
    if step < warmup:
        return highest * (warmup_factor + (1 - warmup_factor) * step / warmup)
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * done))
