"""Whether the arguments of the op fit together: every public function asks here first, and implementations trust the answer."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)
_HALVES = (torch.bfloat16, torch.float16)


def in_rows_dtype(features_BD: Tensor, rows_KD: Tensor) -> Tensor:
    """Features of 16 bits in the dtype of the rows; all others as they are."""
    return features_BD.to(rows_KD.dtype) if features_BD.dtype in _HALVES else features_BD


def expect(
    name: str, tensor: Tensor, shape: Sequence[int], device: torch.device, dtypes: Sequence[torch.dtype]
) -> None:
    """ValueError with `name` if the tensor is another one."""
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name} is {tensor.dtype}, expected {expected}: convert it")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, rows_KD on {device}: move it there")


def check_own(features_BD: Tensor, rows_KD: Tensor, own_B: Tensor | None, own_vector_BD: Tensor | None) -> None:
    """ValueError if what stands for the own term does not fit the rest."""
    samples, device = len(features_BD), rows_KD.device
    if own_vector_BD is not None:
        if own_B is None:
            raise ValueError("own_vector_BD is given without own_B: give the coefficient of each sample's vector, too")
        expect("own_vector_BD", own_vector_BD, (samples, rows_KD.shape[1]), device, FLOATS + _HALVES)
    if own_B is not None:
        expect("own_B", own_B, (samples,), device, FLOATS)


def check(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    temperature: float,
    *,
    row_mask_K: Tensor | None,
    lse_B: Tensor | None = None,
    weight_B: Tensor | None = None,
    rows_need_grad_B: Tensor | None = None,
    own_B: Tensor | None = None,
) -> None:
    """ValueError if the arguments do not fit together."""
    if rows_KD.ndim != 2 or rows_KD.shape[1] == 0:
        raise ValueError(f"rows_KD has shape {tuple(rows_KD.shape)}, expected [rows, features] with features >= 1")
    if features_BD.ndim != 2 or features_BD.shape[1] != rows_KD.shape[1]:
        raise ValueError(
            f"features_BD has shape {tuple(features_BD.shape)}, expected [samples, {rows_KD.shape[1]}] to fit rows_KD "
            f"{tuple(rows_KD.shape)}"
        )
    samples, rows, device = features_BD.shape[0], rows_KD.shape[0], rows_KD.device
    expect("rows_KD", rows_KD, rows_KD.shape, device, FLOATS)
    expect("features_BD", features_BD, features_BD.shape, device, (rows_KD.dtype,))
    expect("targets_B", targets_B, (samples,), device, (torch.int64,))
    for name, tensor, shape, dtypes in (
        ("row_mask_K", row_mask_K, (rows,), (torch.bool,)),
        ("lse_B", lse_B, (samples,), FLOATS),
        ("weight_B", weight_B, (samples,), FLOATS),
        ("rows_need_grad_B", rows_need_grad_B, (samples,), (torch.bool,)),
        ("own_B", own_B, (samples,), FLOATS),
    ):
        if tensor is not None:
            expect(name, tensor, shape, device, dtypes)
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}: it divides the logits, give a finite number above 0")
    if device.type == "cpu" and samples > 0:
        low, high = int(targets_B.min()), int(targets_B.max())
        if low < -1 or high >= rows:
            raise ValueError(
                f"targets_B reaches from {low} to {high}, expected -1 (none) or a row from 0 to {rows - 1}"
            )
