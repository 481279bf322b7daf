"""One step of SGD for all rows, in one pass over memory.

    g = drows + weight_decay w;    u = momentum u + g;    w = w - eta (g + momentum u if nesterov else u)

is torch.optim.SGD with dampening 0 for each row w with momentum u. Written as torch calls it passes over memory four or five
times; the compiled implementations read drows, w and u once and write w and u once (20 bytes a number in float32), and
`aten.py` stays in the cache between its passes.

Left out: dampening, maximize, learning rates that differ between rows, gradients of the step, dtypes other than float32 and
float64, and arrays that are not contiguous.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.compiled import choose, load
from kernels.operator import operator
from kernels.row_update import aten

__all__ = ["row_update_"]


@torch.no_grad()
def row_update_(
    rows_KD: Tensor,
    momentum_KD: Tensor,
    drows_KD: Tensor,
    *,
    eta: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    backend: str | None = None,
) -> None:
    """Update rows_KD and momentum_KD in place by one step of torch.optim.SGD(lr=eta, dampening=0).

    rows_KD, momentum_KD   float32 or float64, contiguous, no memory in common; K may be 0
    drows_KD               the gradient, as the rows; it is left as it is
    eta, momentum, weight_decay   finite; converted to the rows' dtype, in which all is computed
    nesterov               torch refuses it at momentum 0; here the gradient then counts once, as without
    backend                "aten", "cpu" or "cuda", as `kernels.compiled.choose` names it; None: what it chooses

    A row whose gradient is not finite is not finite afterwards. Same inputs give the same bits whatever the number of threads;
    "cpu" and "cuda" give each other's. Takes no part in autograd. Returns nothing.
    Raises ValueError for shapes, dtypes, devices and memory that do not fit.
    """
    _check(rows_KD, momentum_KD, drows_KD, eta=eta, momentum=momentum, weight_decay=weight_decay)
    name = choose("row_update", rows_KD.device).name if backend is None else backend
    if name not in ("aten", rows_KD.device.type):
        raise ValueError(
            f"backend is {name!r}, but the rows are on {rows_KD.device}: give aten, {rows_KD.device.type} or None"
        )
    torch.ops.pic.row_update_(
        rows_KD,
        momentum_KD,
        drows_KD,
        eta,
        momentum,
        weight_decay,
        nesterov,
        backend=name,
    )


def _compiled(device: str) -> Callable[..., None]:
    def row_update_(*arguments: Tensor | float) -> None:
        load("row_update", device)
        getattr(torch.ops, f"pic_row_update_{device}").row_update_(*arguments)

    return row_update_


_IMPLEMENTATIONS: dict[str, Callable[..., None]] = {
    "aten": aten.row_update_,
    "cpu": _compiled("cpu"),
    "cuda": _compiled("cuda"),
}


@operator(changes=("rows_KD", "momentum_KD"))
def _row_update_(
    rows_KD: Tensor,
    momentum_KD: Tensor,
    drows_KD: Tensor,
    eta: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    *,
    backend: str,
) -> None:
    _IMPLEMENTATIONS[backend](rows_KD, momentum_KD, drows_KD, eta, momentum, weight_decay, nesterov)


@torch.library.register_fake(_row_update_)
def _(*arguments: Any, **named: Any) -> None:
    return None


def _check(rows_KD: Tensor, momentum_KD: Tensor, drows_KD: Tensor, **numbers: float) -> None:
    """ValueError if the arguments do not fit together."""
    if rows_KD.ndim != 2:
        raise ValueError(f"rows_KD has shape {tuple(rows_KD.shape)}, expected [rows, features]")
    if rows_KD.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"rows_KD is {rows_KD.dtype}, expected torch.float32 or torch.float64: convert it")
    for name, tensor in (("rows_KD", rows_KD), ("momentum_KD", momentum_KD), ("drows_KD", drows_KD)):
        if tensor.shape != rows_KD.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, rows_KD {tuple(rows_KD.shape)}: they must agree")
        if tensor.dtype != rows_KD.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, rows_KD {rows_KD.dtype}: convert it")
        if tensor.device != rows_KD.device:
            raise ValueError(f"{name} is on {tensor.device}, rows_KD on {rows_KD.device}: move it there")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()} and is not contiguous: give {name}.contiguous()")
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"{name} is {number}: give a finite number")
