"""Whether weight decay leaves anything of a row between two visits."""

import numpy as np


def predicted_shrink(*, gap_steps: float, eta: float, weight_decay: float, momentum: float) -> float:
    """By how much weight decay shortens a row that is away for `gap_steps`: exp(-gap * eta * lambda / (1 - m))."""
    return float(np.exp(-gap_steps * eta * weight_decay / (1 - momentum)))


def refuse_underflow(shrink: float) -> None:
    """ValueError where rows would come back shorter than a millionth: their gradient, which goes with 1/|w|, would explode."""
    if shrink < 1e-6:
        raise ValueError(
            f"between two visits weight decay would shorten a row by a factor of {shrink:.1e}, and its next gradient would explode;\n"
            "set optimizer.rows_weight_decay to 0 (the softmax does not see a row's length) or method.norm_floor above 0"
        )
