"""How often a classifier is right: its first answer, one of its first five, and both by class."""

from typing import Any, NamedTuple

import numpy as np
import torch

from engine.probing.heads import Head, on_device
from engine.probing.rows import Rows

_AT_ONCE = 1024  # rows whose logits are there together
_FIRST = 5


class Score(NamedTuple):
    """Shares right of the images that were asked.

    top1, top5   top5 is None where there are no more than five classes
    right_C      float64, share right by class; NaN for a class without an image
    five_C       the same of the first five; None where top5 is
    count_C      int64, images by class
    """

    top1: float
    top5: float | None
    right_C: np.ndarray
    five_C: np.ndarray | None
    count_C: np.ndarray

    def figures(self) -> dict[str, Any]:
        return {"top1": self.top1, "top5": self.top5}


def score(head: Head, rows: Rows, labels_M: np.ndarray, ids_M: np.ndarray) -> Score:
    """labels_M: of all rows, 0 .. C-1; ids_M: which of them are asked, at least one. A head that is not finite is never right."""
    classes = len(head.bias_C)
    first_C, five_C, first = np.zeros(classes, np.int64), np.zeros(classes, np.int64), min(_FIRST, classes)
    if head.is_finite:
        for ids_B, x_BD in rows.slices(ids_M, _AT_ONCE):
            labels_B = on_device(labels_M[ids_B], rows.device)
            right_BF = head.logits(x_BD).topk(first, dim=1).indices == labels_B[:, None]
            for right_B, found_C in ((right_BF[:, 0], first_C), (right_BF.any(dim=1), five_C)):
                found_C += torch.bincount(labels_B[right_B], minlength=classes).cpu().numpy()
    count_C = np.bincount(labels_M[ids_M], minlength=classes)
    right_C, right_five_C = (
        np.divide(found_C, count_C, out=np.full(classes, np.nan), where=count_C > 0) for found_C in (first_C, five_C)
    )
    top1, top5 = (float(found_C.sum() / len(ids_M)) for found_C in (first_C, five_C))
    if classes <= _FIRST:
        return Score(top1, None, right_C, None, count_C)
    return Score(top1, top5, right_C, right_five_C, count_C)
