"""Cosine softmax cross entropy over K sampled rows, without ever holding B x K logits.

    loss_b = logsumexp_k(logit_bk) - logit_b,target(b),    logit_bk = cos(feature_b, row_k) / temperature + offset_k

The sum runs over the rows that `row_mask_K` lets take part. Features and rows come as they are: both normalisations and
their gradients belong to the op, because rows become short over a long training (and squares of short rows underflow).

`sampled_softmax` is the whole, for one process. Ranks that hold a part of the rows each use its halves:

    softmax_forward   (max, sumexp, positive) over the rows held here; ranks combine the first two and sum the third
    softmax_backward  the gradients of sum_b weight_b loss_b, given the combined log-sum-exp: those of rows are whole,
                      those of features are to be summed over ranks

Costs: four matrix products of 2 B K D operations instead of three, for logits are computed twice. `aten.py` says how.
Left out: gradients of temperature, offsets and gradients; targets that are probabilities; half-precision rows.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.sampled_softmax import aten

__all__ = ["backend", "combine", "sampled_softmax", "softmax_backward", "softmax_forward"]


def backend(device: torch.device) -> str:
    """The name of the implementation that serves tensors on `device`: "aten". ValueError where there is none."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"sampled_softmax runs on cpu and cuda, not on {device.type}: move the tensors")
    return "aten"


def sampled_softmax(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    *,
    temperature: float,
    row_mask_K: Tensor | None = None,
    offset_K: Tensor | None = None,
    rows_need_grad_B: Tensor | None = None,
) -> Tensor:
    """Cross entropy of each feature against its own row, differentiable (once) in features and rows.

    Equals `F.cross_entropy(F.normalize(features) @ F.normalize(rows).T / temperature + offset, targets,
    reduction="none", ignore_index=-1)` with the logits of masked rows at -inf.

    features_BD       float32 or float64 as the rows, or bfloat16/float16, which are first converted to the rows' dtype
    rows_KD           float32 or float64; a row of zeros has cosine 0 with everything and gets no gradient
    targets_B         int64: the index of the sample's own row; -1 = an empty place, with loss 0 and no gradient
    temperature       > 0
    row_mask_K        bool, True = the row takes part; what a row that does not holds is never looked at.
                      The loss of a sample whose own row is left out is inf (NaN where every row is)
    offset_K          floating, added to the logits (a logQ correction, say); finite, gets no gradient
    rows_need_grad_B  bool, False = this sample's loss sends no gradient into rows; its own feature's is unaffected

    Returns loss_B in the rows' dtype. Same inputs give the same bits. Finite inputs never give NaN; a row shorter than
    about 1e-37 in float32 can have a gradient that is too large for its dtype (inf).
    Raises ValueError for shapes, dtypes and devices that do not fit, and for targets outside -1..K-1 on a CPU. On a GPU
    looking at them would stall the stream: there such a sample's loss is NaN.
    """
    # Converted out here, so that autograd takes the gradient back to the caller's dtype.
    features_BD = _in_rows_dtype(features_BD, rows_KD)
    loss_B: Tensor = _SampledSoftmax.apply(
        features_BD, rows_KD, targets_B, temperature, row_mask_K, offset_K, rows_need_grad_B
    )
    return loss_B


@torch.no_grad()
def softmax_forward(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    *,
    temperature: float,
    row_mask_K: Tensor | None = None,
    offset_K: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward half over the rows held here: (max_B, sumexp_B, positive_B), float64 whatever the rows' dtype.

    max_B       the largest logit; -inf where no row takes part (K = 0, or all masked)
    sumexp_B    sum over rows of exp(logit - max_B); 0 where no row takes part
    positive_B  the logit of the sample's own row; 0 where the target is -1: it lives elsewhere or nowhere

    Arguments and errors as for `sampled_softmax`. Takes no part in autograd.
    """
    features_BD = _in_rows_dtype(features_BD, rows_KD)
    _check(features_BD, rows_KD, targets_B, temperature, row_mask_K=row_mask_K, offset_K=offset_K)
    max_B, sumexp_B, positive_B = _IMPLEMENTATIONS[backend(rows_KD.device)].forward(
        features_BD,
        rows_KD,
        targets_B,
        temperature=temperature,
        row_mask_K=row_mask_K,
        offset_K=offset_K,
    )
    if rows_KD.device.type != "cpu":
        out_of_range_B = (targets_B < -1) | (targets_B >= rows_KD.shape[0])
        positive_B = positive_B.masked_fill(out_of_range_B, math.nan)
    return max_B, sumexp_B, positive_B


@torch.no_grad()
def softmax_backward(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    lse_B: Tensor,
    weight_B: Tensor,
    *,
    temperature: float,
    row_mask_K: Tensor | None = None,
    offset_K: Tensor | None = None,
    rows_need_grad_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The backward half: gradients of sum_b weight_b (lse_b - positive_b), as far as the rows held here make them.

    lse_B     floating, the log-sum-exp over the rows of all ranks. Keep it float64, as `combine` gives it: rounding it
              to float32 adds an error to 1 - p that is many times the gradient of a well-classified sample
    weight_B  floating, d(objective)/d(loss_b); 0 for an empty place, whose lse_b may then be anything

    The other arguments as in the forward half. Returns (dfeatures_BD, drows_KD) in the rows' dtype: drows is complete,
    dfeatures is to be summed over ranks. The positive's part comes from the rank that has the target. Takes no part in
    autograd.
    """
    features_BD = _in_rows_dtype(features_BD, rows_KD)
    _check(
        features_BD,
        rows_KD,
        targets_B,
        temperature,
        lse_B=lse_B,
        weight_B=weight_B,
        row_mask_K=row_mask_K,
        offset_K=offset_K,
        rows_need_grad_B=rows_need_grad_B,
    )
    gradients: tuple[Tensor, Tensor] = _IMPLEMENTATIONS[backend(rows_KD.device)].backward(
        features_BD,
        rows_KD,
        targets_B,
        lse_B,
        weight_B,
        temperature=temperature,
        row_mask_K=row_mask_K,
        offset_K=offset_K,
        rows_need_grad_B=rows_need_grad_B,
    )
    return gradients


def combine(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """lse_B, float64, from the (max_B, sumexp_B) of every rank; -inf where no row takes part anywhere."""
    max_RB = torch.stack([part[0] for part in parts]).double()
    sumexp_RB = torch.stack([part[1] for part in parts]).double()
    max_B = max_RB.amax(0)
    shift_B = max_B.masked_fill(max_B == -math.inf, 0.0)
    return shift_B + (sumexp_RB * torch.exp(max_RB - shift_B)).sum(0).log()


class _SampledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features_BD: Tensor,
        rows_KD: Tensor,
        targets_B: Tensor,
        temperature: float,
        row_mask_K: Tensor | None,
        offset_K: Tensor | None,
        rows_need_grad_B: Tensor | None,
    ) -> Tensor:
        if rows_need_grad_B is not None:
            _expect("rows_need_grad_B", rows_need_grad_B, features_BD.shape[:1], rows_KD.device, (torch.bool,))
        max_B, sumexp_B, positive_B = softmax_forward(
            features_BD, rows_KD, targets_B, temperature=temperature, row_mask_K=row_mask_K, offset_K=offset_K
        )
        lse_B = combine([(max_B, sumexp_B)])
        ctx.save_for_backward(features_BD, rows_KD, targets_B, lse_B, row_mask_K, offset_K, rows_need_grad_B)
        ctx.temperature = temperature
        return torch.where(targets_B == -1, 0.0, lse_B - positive_B).to(rows_KD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss_B: Tensor) -> tuple[Tensor | None, ...]:
        features_BD, rows_KD, targets_B, lse_B, row_mask_K, offset_K, rows_need_grad_B = ctx.saved_tensors
        dfeatures_BD, drows_KD = softmax_backward(
            features_BD,
            rows_KD,
            targets_B,
            lse_B,
            torch.where(targets_B == -1, 0.0, dloss_B),
            temperature=ctx.temperature,
            row_mask_K=row_mask_K,
            offset_K=offset_K,
            rows_need_grad_B=rows_need_grad_B,
        )
        return dfeatures_BD, drows_KD, None, None, None, None, None


# A further implementation is a module (or object) with the same forward and backward; `backend` decides by name.
_IMPLEMENTATIONS: dict[str, Any] = {"aten": aten}
_FLOATS = (torch.float32, torch.float64)
_HALVES = (torch.bfloat16, torch.float16)


def _in_rows_dtype(features_BD: Tensor, rows_KD: Tensor) -> Tensor:
    return features_BD.to(rows_KD.dtype) if features_BD.dtype in _HALVES else features_BD


def _expect(
    name: str, tensor: Tensor, shape: Sequence[int], device: torch.device, dtypes: Sequence[torch.dtype]
) -> None:
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name} is {tensor.dtype}, expected {expected}: convert it")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, rows_KD on {device}: move it there")


def _check(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    temperature: float,
    *,
    row_mask_K: Tensor | None,
    offset_K: Tensor | None,
    lse_B: Tensor | None = None,
    weight_B: Tensor | None = None,
    rows_need_grad_B: Tensor | None = None,
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
    _expect("rows_KD", rows_KD, rows_KD.shape, device, _FLOATS)
    _expect("features_BD", features_BD, features_BD.shape, device, (rows_KD.dtype,))
    _expect("targets_B", targets_B, (samples,), device, (torch.int64,))
    for name, tensor, shape, dtypes in (
        ("row_mask_K", row_mask_K, (rows,), (torch.bool,)),
        ("offset_K", offset_K, (rows,), _FLOATS),
        ("lse_B", lse_B, (samples,), _FLOATS),
        ("weight_B", weight_B, (samples,), _FLOATS),
        ("rows_need_grad_B", rows_need_grad_B, (samples,), (torch.bool,)),
    ):
        if tensor is not None:
            _expect(name, tensor, shape, device, dtypes)
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}: it divides the logits, give a finite number above 0")
    if device.type == "cpu" and samples > 0:
        low, high = int(targets_B.min()), int(targets_B.max())
        if low < -1 or high >= rows:
            raise ValueError(
                f"targets_B reaches from {low} to {high}, expected -1 (none) or a row from 0 to {rows - 1}"
            )
