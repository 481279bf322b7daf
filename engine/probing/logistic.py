"""Multinomial logistic regression with an L2 penalty, by L-BFGS in float64: the classifier that has nothing to tune but C.

    minimise over W, c    1/n sum_i -log softmax(x_i W + c)[label_i] + |W|^2 / (2 C n)

It is what scikit-learn's LogisticRegression minimises, with the same C; the bias has no penalty. scipy's L-BFGS takes the steps.
Loss and gradient are summed here, in slices of rows on the device, so features may lie in a memory map; where all rows fit into
HELD_BYTES, they are made once. Left out: steps that look at a part of the rows, which would be faster for millions of images and
not exact.
"""

from collections.abc import Callable, Iterable
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize

from engine.probing.heads import Head, on_device
from engine.probing.rows import Rows
from engine.probing.tellers import Tell, nobody

HELD_BYTES = 2**30
_GRADIENT = 1e-5  # largest entry of the gradient at which it ends
MOST_ITERATIONS = 500

Slice = tuple[torch.Tensor, torch.Tensor]  # x float64 [B, D], labels int64 [B]


class Fit(NamedTuple):
    """head: in float32, as it is saved and asked. is_converged: False where the iterations ran out."""

    head: Head
    iterations: int
    is_converged: bool


def fit_logistic(
    rows: Rows,
    labels_M: np.ndarray,
    ids_n: np.ndarray,
    C: float,
    classes: int,
    start: Head | None = None,
    tell: Tell = nobody,
) -> Fit:
    """Fitted to the rows `ids_n`; labels_M: of all rows, 0 .. classes - 1. start: where the search begins; None: at zero.

    tell: hears each iteration, with its loss and C.
    """
    slices, width, iterations = _slices(rows, labels_M, ids_n), rows.width, count(1)

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        weight_DC, bias_C = _parts(torch.from_numpy(point).to(rows.device), width, classes)
        loss = weight_DC.square().sum() / (2 * C * len(ids_n))
        slope_DC, slope_C = weight_DC / (C * len(ids_n)), torch.zeros_like(bias_C)
        for x_BD, labels_B in slices():
            log_share_BC = torch.log_softmax(torch.addmm(bias_C, x_BD, weight_DC), dim=1)
            places_B = torch.arange(len(x_BD), device=rows.device)
            loss = loss - log_share_BC[places_B, labels_B].sum() / len(ids_n)
            error_BC = log_share_BC.exp_()
            error_BC[places_B, labels_B] -= 1
            slope_DC.addmm_(x_BD.T, error_BC, alpha=1 / len(ids_n))
            slope_C.add_(error_BC.sum(dim=0), alpha=1 / len(ids_n))
        return float(loss), torch.cat([slope_DC.reshape(-1), slope_C]).cpu().numpy()

    begin = np.zeros((width + 1) * classes)
    if start is not None:
        begin = torch.cat([start.weight_DC.reshape(-1), start.bias_C]).double().cpu().numpy()
    options = {"maxiter": MOST_ITERATIONS, "gtol": _GRADIENT, "ftol": 64 * np.finfo(float).eps}

    def heard(intermediate_result: OptimizeResult) -> None:
        tell(next(iterations), {"loss": float(intermediate_result.fun), "C": C})

    found = minimize(objective, begin, jac=True, method="L-BFGS-B", options=options, callback=heard)
    weight_DC, bias_C = _parts(torch.from_numpy(found.x).float().to(rows.device), width, classes)
    return Fit(Head(weight_DC, bias_C), int(found.nit), found.nit < MOST_ITERATIONS)


def _slices(rows: Rows, labels_M: np.ndarray, ids_n: np.ndarray) -> Callable[[], Iterable[Slice]]:
    """All rows in slices, each time that it is called."""

    def made() -> Iterable[Slice]:
        for ids_B, x_BD in rows.slices(ids_n):
            yield x_BD.double(), on_device(labels_M[ids_B], rows.device)

    if 8 * len(ids_n) * rows.width > HELD_BYTES:
        return made
    held = list(made())
    return lambda: held


def _parts(point: torch.Tensor, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight_DC, bias_C) of what the search sees as one vector."""
    return point[: width * classes].view(width, classes), point[width * classes :]
