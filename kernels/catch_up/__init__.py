"""Rows that come back: gathered from host memory, taken through the steps they missed, put into their slots. In one pass.

    w, u = source[indices_m];    rows[slots_m] = P00 w + P01 u;    momentum[slots_m] = P10 w + P11 u

with one 2 x 2 product P a row, the steps it missed. Computed in float64 with every product and every sum rounded by itself, and
rounded once to the rows' dtype: the bits that numpy gives for the same formula, on every backend. Written as numpy or torch
calls, the rows pass through memory some fifteen times in between; the compiled implementations read 2 M rows and write 2 M rows,
and on a GPU they read them across the bus, straight from pinned memory.

Left out: sources of another dtype than the rows, slots that occur twice, gradients.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.catch_up import aten
from kernels.compiled import choose, load
from kernels.operator import operator

__all__ = ["catch_up_"]


@torch.no_grad()
def catch_up_(
    rows_KD: Tensor,
    momentum_KD: Tensor,
    slots_M: Tensor,
    source_rows_PD: Tensor,
    source_momentum_PD: Tensor,
    indices_M: Tensor,
    products_M22: Tensor,
    *,
    backend: str | None = None,
) -> None:
    """Write M caught-up rows into slots of rows_KD and momentum_KD, in place; the other rows stay as they are.

    rows_KD, momentum_KD                 float32 or float64, contiguous, on a CPU or a GPU
    slots_M                              int64, 0..K-1, distinct (that is not checked: of two, either may win); M may be 0
    source_rows_PD, source_momentum_PD   the rows' dtype, contiguous, in host memory, ordinary or pinned
    indices_M                            int64, 0..P-1; a row may come more than once
    products_M22                         float64, contiguous
    backend                              "aten", "cpu" or "cuda", as `kernels.compiled.choose` names it; None: what it chooses

    slots, indices and products are in host memory, where it was decided which rows come; so their range is checked always.
    On a GPU the work is queued on the current stream, and pinned sources are read when its turn comes: they have to stay as
    they are until then. Of ordinary memory the rows asked for are copied before this returns.
    Takes no part in autograd. Returns nothing. Raises ValueError for shapes, dtypes, devices, memory and numbers that do not fit.
    """
    _check(rows_KD, momentum_KD, slots_M, source_rows_PD, source_momentum_PD, indices_M, products_M22)
    name = choose("catch_up", rows_KD.device).name if backend is None else backend
    if name not in ("aten", rows_KD.device.type):
        raise ValueError(
            f"backend is {name!r}, but the rows are on {rows_KD.device}: give aten, {rows_KD.device.type} or None"
        )
    torch.ops.pic.catch_up_(
        rows_KD,
        momentum_KD,
        slots_M,
        source_rows_PD,
        source_momentum_PD,
        indices_M,
        products_M22,
        backend=name,
    )


def _on_cpu(*tensors: Tensor) -> None:
    load("catch_up", "cpu")
    torch.ops.pic_catch_up_cpu.catch_up_(*tensors)


def _on_cuda(
    rows_KD: Tensor,
    momentum_KD: Tensor,
    slots_M: Tensor,
    source_rows_PD: Tensor,
    source_momentum_PD: Tensor,
    indices_M: Tensor,
    products_M22: Tensor,
) -> None:
    load("catch_up", "cuda")
    device = rows_KD.device
    if not (source_rows_PD.is_pinned() and source_momentum_PD.is_pinned()):
        source_rows_PD = source_rows_PD.index_select(0, indices_M).to(device)
        source_momentum_PD = source_momentum_PD.index_select(0, indices_M).to(device)
        indices_M = torch.arange(len(indices_M))
    torch.ops.pic_catch_up_cuda.catch_up_(
        rows_KD,
        momentum_KD,
        slots_M.to(device),
        source_rows_PD,
        source_momentum_PD,
        indices_M.to(device),
        products_M22.to(device),
    )


_IMPLEMENTATIONS: dict[str, Callable[..., None]] = {"aten": aten.catch_up_, "cpu": _on_cpu, "cuda": _on_cuda}


@operator(changes=("rows_KD", "momentum_KD"))
def _catch_up_(
    rows_KD: Tensor,
    momentum_KD: Tensor,
    slots_M: Tensor,
    source_rows_PD: Tensor,
    source_momentum_PD: Tensor,
    indices_M: Tensor,
    products_M22: Tensor,
    *,
    backend: str,
) -> None:
    _IMPLEMENTATIONS[backend](
        rows_KD, momentum_KD, slots_M, source_rows_PD, source_momentum_PD, indices_M, products_M22
    )


@torch.library.register_fake(_catch_up_)
def _(*arguments: Any, **named: Any) -> None:
    return None


def _check(
    rows_KD: Tensor,
    momentum_KD: Tensor,
    slots_M: Tensor,
    source_rows_PD: Tensor,
    source_momentum_PD: Tensor,
    indices_M: Tensor,
    products_M22: Tensor,
) -> None:
    """ValueError if the arguments do not fit together."""
    for name, tensor in (("rows_KD", rows_KD), ("source_rows_PD", source_rows_PD)):
        if tensor.ndim != 2:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected [rows, features]")
    if slots_M.ndim != 1:
        raise ValueError(f"slots_M has shape {tuple(slots_M.shape)}, expected [rows that come]")
    dtype, features, count = rows_KD.dtype, rows_KD.shape[1], len(slots_M)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"rows_KD is {dtype}, expected torch.float32 or torch.float64: convert it")
    if source_rows_PD.shape[1] != features:
        raise ValueError(
            f"source_rows_PD has shape {tuple(source_rows_PD.shape)}, expected {features} features as rows_KD has"
        )
    host = torch.device("cpu")
    for name, tensor, like, expected_dtype, device in (
        ("rows_KD", rows_KD, rows_KD.shape, dtype, rows_KD.device),
        ("momentum_KD", momentum_KD, rows_KD.shape, dtype, rows_KD.device),
        ("slots_M", slots_M, (count,), torch.int64, host),
        ("source_rows_PD", source_rows_PD, source_rows_PD.shape, dtype, host),
        ("source_momentum_PD", source_momentum_PD, source_rows_PD.shape, dtype, host),
        ("indices_M", indices_M, (count,), torch.int64, host),
        ("products_M22", products_M22, (count, 2, 2), torch.float64, host),
    ):
        if tensor.shape != torch.Size(like):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(like)}")
        if tensor.dtype != expected_dtype:
            raise ValueError(f"{name} is {tensor.dtype}, expected {expected_dtype}: convert it")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, expected {device}: move it there")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()} and is not contiguous: give {name}.contiguous()")
    for name, tensor, end in (("slots_M", slots_M, len(rows_KD)), ("indices_M", indices_M, len(source_rows_PD))):
        if count:
            low, high = (int(x) for x in torch.aminmax(tensor))
            if low < 0 or high >= end:
                raise ValueError(f"{name} reaches from {low} to {high}, expected rows from 0 to {end - 1}")
