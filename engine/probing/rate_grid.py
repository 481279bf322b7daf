"""A linear classifier at each of a grid of learning rates, all in one pass over cached features (engine/probing/heads.py).

SGD with momentum 0.9, no weight decay, batches drawn without replacement in a new order each epoch, each rate falling to zero by a cosine.
Which rate is best is asked of held-out images by whoever calls.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from engine.probing.heads import Heads, cosine, on_device
from engine.probing.kept import Kept
from engine.probing.rows import Rows
from engine.probing.tellers import Tell


def train_grid(
    rows: Rows,
    labels_M: np.ndarray,
    ids_n: np.ndarray,
    rates: Sequence[float],
    *,
    classes: int,
    epochs: int,
    batch: int,
    order: Callable[[int], np.ndarray],
    kept: Kept,
    tell: Tell,
) -> Heads:
    """The heads after `epochs` passes over the n rows `ids_n`.

    labels_M   of all rows, 0 .. classes - 1      order   an epoch's permutation of range(n)
    kept       where it goes on, and what a killed one goes on from, to the bit
    tell       hears the mean loss of each rate at the end of an epoch
    """
    heads = Heads(len(rates), rows.width, classes, rows.device)
    rates_L = torch.tensor(rates, device=rows.device)
    steps_per_epoch = -(-len(ids_n) // batch)
    total = epochs * steps_per_epoch
    losses_L = torch.zeros_like(rates_L)
    first, before = kept.load() or (0, {})
    if before:
        losses_L = before.pop("losses").to(rows.device)
        heads.load(before)
    for step in range(first, total):
        epoch, place = divmod(step, steps_per_epoch)
        ids_B = ids_n[order(epoch)[place * batch : (place + 1) * batch]]
        labels_B = on_device(labels_M[ids_B], rows.device)
        losses_L += heads.step(rows(ids_B), labels_B, cosine(step, total) * rates_L)
        if place == steps_per_epoch - 1:
            mean_L = (losses_L / steps_per_epoch).tolist()
            tell(step + 1, {f"loss at {rate:g}": loss for rate, loss in zip(rates, mean_L, strict=True)})
            losses_L.zero_()
        kept.save(step + 1, partial(_state, heads, losses_L), is_last=step + 1 == total)
    return heads


def _state(heads: Heads, losses_L: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**heads.state(), "losses": losses_L.cpu()}
