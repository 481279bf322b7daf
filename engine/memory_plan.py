"""What a run will hold, by tier and item, before it holds it; printed by --dry-run and compared with what was measured.

    device   K rows: weight, momentum, gradient (4D bytes each); the trunk's weights, gradients and momentum
    host     the pool of blocks: window, blocks behind it that still have active rows; what the loader has ready
    disk     checkpoints

Left out: activations of the trunk and the Python process itself (libraries take a few hundred MB); peak_host_bytes in
summary.json is the whole process.
"""

import numpy as np

_FLOAT_BYTES, _INDEX_BYTES = 4, 8


def host_places(*, window: int, stride: int, block: int, size: int, full: bool) -> int:
    """Blocks that the host tier is planned for: the window, and as many behind as two slides leave with active rows."""
    every = -(-size // block)
    return every if full else min((window + 2 * stride) // block, every)


def plan(
    *,
    active: int,
    dim: int,
    size: int,
    block: int,
    places: int,
    trunk_weights: int,
    views_bytes: int,
    batches_ready: int,
    keep: int,
) -> dict[str, dict[str, int]]:
    """Bytes by tier and item.

    active          K                     places         blocks of the host tier
    trunk_weights   numbers in the trunk  views_bytes    one batch of augmented images
    batches_ready   that workers hold     keep           checkpoints on disk
    """
    row_bytes = 2 * dim * _FLOAT_BYTES + _INDEX_BYTES
    visited_bytes = size * row_bytes
    return {
        "device": {
            "active rows": active * dim * _FLOAT_BYTES,
            "momentum of active rows": active * dim * _FLOAT_BYTES,
            "gradient of active rows": active * dim * _FLOAT_BYTES,
            "trunk (weights, gradients, momentum)": 3 * trunk_weights * _FLOAT_BYTES,
        },
        "host": {
            "window and blocks behind": places * block * (row_bytes + _INDEX_BYTES),
            "store of visited rows (memory)": visited_bytes,
            "batches ready": batches_ready * views_bytes,
        },
        "disk": {"checkpoints": keep * (visited_bytes + active * row_bytes + 2 * trunk_weights * _FLOAT_BYTES)},
    }


def predicted_shrink(*, gap_steps: float, eta: float, weight_decay: float, momentum: float) -> float:
    """By how much weight decay shortens a row that is away for `gap_steps`: exp(-gap * eta * lambda / (1 - m))."""
    return float(np.exp(-gap_steps * eta * weight_decay / (1 - momentum)))


def refuse_underflow(shrink: float) -> None:
    """ValueError where rows would come back shorter than a millionth: their gradient, which goes with 1/|w|, would explode."""
    if shrink < 1e-6:
        raise ValueError(
            f"between two visits weight decay would shorten a row by a factor of {shrink:.1e}, and its next gradient would explode;\n"
            "set optimizer.rows_weight_decay to 0 (the softmax does not see a row's length) or classifier.norm_floor above 0"
        )
