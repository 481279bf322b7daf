"""Cosine softmax cross entropy over K sampled rows, without ever holding B x K logits.

    loss_b = logsumexp_k(logit_bk) - logit_b,target(b),    logit_bk = cos(feature_b, row_k) / temperature

The sum runs over the rows that `row_mask_K` lets take part; with `leave_own_out` over these without the sample's own. Features
and rows come as they are: both normalisations and their gradients belong to the op, because rows become short over a long
training (and squares of short rows underflow).

`sampled_softmax` is the whole, for one process. Its parts are for ranks that hold a part of the rows each, and for training, which
wants the features' gradient first and the rows' last and pays for each product once (two forward, two for the rows). A loss of
another form may give them the coefficient of the own term:

    softmax_forward            (max, sumexp, positive) over the rows held here; ranks combine the first two and sum the third
    softmax_forward_negatives  the same, and what the features' gradient needs of the rows
    features_gradient          the features' gradient from that: no work over K; to be summed over ranks
    softmax_rows_gradient      the rows' gradient, complete for the rows held here; or
    softmax_rows_update_       one step of SGD for every row, in place: the rows' gradient [K, D] is never written

Costs: four matrix products of 2 B K D operations instead of three, for logits are computed twice. Who computes: `backend`.
Left out: gradients of temperature and of gradients; targets that are probabilities; half-precision rows.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.compiled import Choice, choose
from kernels.sampled_softmax import ops
from kernels.sampled_softmax.arguments import check, check_own, expect, in_rows_dtype
from kernels.sampled_softmax.ops import combine

__all__ = [
    "Forward",
    "backend",
    "combine",
    "features_gradient",
    "sampled_softmax",
    "softmax_forward",
    "softmax_forward_negatives",
    "softmax_rows_gradient",
    "softmax_rows_update_",
]

PRODUCTS = ("float32", "tf32", "bfloat16", "float16")
_CUDA_FEATURES = (64, 128, 256)


def backend(
    device: torch.device, *, dtype: torch.dtype = torch.float32, features: int = 128, wanted: str = "auto"
) -> Choice:
    """The implementation that serves rows of `features` numbers of `dtype` on `device`, and why.

    "cpu" (cpu.cpp: any D, float32 and float64), "cuda" (cuda.cu: float32 rows, D of 64, 128 or 256) or "aten" (aten.py:
    anything, anywhere). wanted: "auto" takes the compiled one where there is one, "compiled" or "aten" insist.
    Raises ValueError where what is wanted cannot be had, and for other devices.
    """
    if device.type == "cuda" and wanted != "aten" and (dtype != torch.float32 or features not in _CUDA_FEATURES):
        reason = f"the CUDA kernels are for float32 rows of 64, 128 or 256 numbers, not for {features} of {dtype}"
        if wanted == "compiled":
            raise ValueError(f"compiled kernels were asked for: {reason}")
        return Choice("aten", reason)
    return choose("sampled_softmax", device, wanted)


def sampled_softmax(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    *,
    temperature: float,
    row_mask_K: Tensor | None = None,
    rows_need_grad_B: Tensor | None = None,
    leave_own_out: bool = False,
    backend: str | None = None,
    products: str = "float32",
) -> Tensor:
    """Cross entropy of each feature against its own row, differentiable (once) in features and rows.

    Equals `F.cross_entropy(F.normalize(features) @ F.normalize(rows).T / temperature, targets,
    reduction="none", ignore_index=-1)` with the logits of masked rows at -inf.

    features_BD       float32 or float64 as the rows, or bfloat16/float16, which are first converted to the rows' dtype
    rows_KD           float32 or float64; a row of zeros has cosine 0 with everything and gets no gradient
    targets_B         int64: the index of the sample's own row; -1 = an empty place, with loss 0 and no gradient
    temperature       > 0
    row_mask_K        bool, True = the row takes part; what a row that does not holds is never looked at.
                      The loss of a sample whose own row is left out is inf (NaN where every row is)
    rows_need_grad_B  bool, False = this sample's loss sends no gradient into rows; its own feature's is unaffected
    leave_own_out     True: the log-sum-exp is over all rows but the sample's own, the loss that of decoupled contrastive
                      learning (arXiv 2110.06848, equation 6 with weight 1). It may be negative, and is -inf where
                      no other row takes part (K = 1); gradients are finite there too
    backend           "aten", "cpu" or "cuda"; None: what the function `backend` chooses
    products          what the numbers of the matrix products are rounded to; sums are float32. Only "cuda" knows others
                      than "float32" (the rows' own dtype): "tf32", "bfloat16", "float16"

    Returns loss_B in the rows' dtype. Same inputs give the same bits. Finite inputs never give NaN; a row shorter than
    about 1e-37 in float32 can have a gradient that is too large for its dtype (inf).
    Raises ValueError for shapes, dtypes and devices that do not fit, and for targets outside -1..K-1 on a CPU. On a GPU
    looking at them would stall the stream: there such a sample's loss is NaN.
    """
    # Converted out here, so that autograd takes the gradient back to the caller's dtype.
    features_BD = in_rows_dtype(features_BD, rows_KD)
    check(
        features_BD,
        rows_KD,
        targets_B,
        temperature,
        row_mask_K=row_mask_K,
        rows_need_grad_B=rows_need_grad_B,
    )
    chosen = _named(backend, rows_KD, products)
    loss_B: Tensor
    loss_B, *_ = ops.sampled_softmax(
        features_BD, rows_KD, targets_B, temperature, row_mask_K, rows_need_grad_B, leave_own_out, chosen, products
    )
    return loss_B


class Forward(NamedTuple):
    """What the forward half knows of B samples, in float64 whatever the rows' dtype.

    max_B         the largest logit; -inf where no row takes part (K = 0, or all masked)
    sumexp_B      sum over rows of exp(logit - max_B); 0 where no row takes part
    positive_B    the logit of the sample's own row; 0 where the target is -1: it lives elsewhere or nowhere
    negatives_BD  sum over rows, without the sample's own, of exp(logit - max_B) row / |row|
    shortest      the length of the shortest row that takes part and is not all zeros; inf where there is none

    With `leave_own_out` the first two are over all rows but the sample's own: -inf and 0 where no other takes part.
    """

    max_B: Tensor
    sumexp_B: Tensor
    positive_B: Tensor
    negatives_BD: Tensor
    shortest: Tensor


@torch.no_grad()
def softmax_forward(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    *,
    temperature: float,
    row_mask_K: Tensor | None = None,
    leave_own_out: bool = False,
    backend: str | None = None,
    products: str = "float32",
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward half over the rows held here: (max_B, sumexp_B, positive_B) of `Forward`.

    leave_own_out: max_B and sumexp_B do not count the row targets_B[b]; where that is -1 all rows count. The other
    arguments and errors as for `sampled_softmax`. Takes no part in autograd.
    """
    features_BD = in_rows_dtype(features_BD, rows_KD)
    check(features_BD, rows_KD, targets_B, temperature, row_mask_K=row_mask_K)
    max_B, sumexp_B, positive_B, *_ = ops.softmax_forward(
        features_BD,
        rows_KD,
        targets_B,
        temperature,
        row_mask_K,
        False,
        leave_own_out,
        _named(backend, rows_KD, products),
        products,
    )
    return max_B, sumexp_B, positive_B


@torch.no_grad()
def softmax_forward_negatives(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    *,
    temperature: float,
    row_mask_K: Tensor | None = None,
    leave_own_out: bool = False,
    backend: str | None = None,
    products: str = "float32",
) -> Forward:
    """The forward half with all that `features_gradient` needs: a second product, and B x D numbers, which ranks sum.

    leave_own_out as for `softmax_forward`. Other arguments and errors as for `sampled_softmax`. Takes no part in autograd.
    """
    features_BD = in_rows_dtype(features_BD, rows_KD)
    check(features_BD, rows_KD, targets_B, temperature, row_mask_K=row_mask_K)
    chosen = _named(backend, rows_KD, products)
    return Forward(
        *ops.softmax_forward(
            features_BD, rows_KD, targets_B, temperature, row_mask_K, True, leave_own_out, chosen, products
        )
    )


@torch.no_grad()
def features_gradient(
    forward: Forward,
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    lse_B: Tensor,
    weight_B: Tensor,
    *,
    temperature: float,
    row_mask_K: Tensor | None = None,
    own_B: Tensor | None = None,
    own_vector_BD: Tensor | None = None,
) -> Tensor:
    """d(sum_b weight_b (lse_b - positive_b)) / d(features), as far as the rows held here make it; [B, D] in the rows' dtype.

    lse_B     floating, the log-sum-exp over the rows of all ranks. Keep it float64, as `combine` gives it: rounding it
              to float32 adds an error to 1 - p that is many times the gradient of a well-classified sample
    weight_B  floating, d(objective)/d(loss_b); 0 for an empty place, whose lse_b may then be anything. With float32 rows those
              under 1e-22 lose digits in the gradient of rows: scale them up, and the gradient down
    own_B     floating (float64 keeps its digits), the coefficient of the own term, in the place of p_own - 1. -1 where the sum
              of `lse_B` is without the own row; lse_B = -inf then means that it is over no row, and gives the others p = 0
    own_vector_BD  floating, the sample's own vector in the place of the row targets_B[b], for instance a key that is not
              among the rows; any length. It counts for every sample that weighs something, whatever its target, which
              then says only what `negatives_BD` is without. Of ranks that sum their gradients one is to give it

    With p the softmax and f the feature: (1/temperature) weight (sum_{k != own} p_k u_k - (1 - p_own) u_own), projected
    onto the plane that f is normal to and divided by |f|. Computed in float64. ValueError where the last two do not fit.
    """
    features_BD = in_rows_dtype(features_BD, rows_KD)
    check_own(features_BD, rows_KD, own_B, own_vector_BD)
    is_empty_B = weight_B == 0
    lse_B = torch.where(is_empty_B, math.inf, lse_B.double())
    if own_B is None:
        own_B = torch.expm1(forward.positive_B - lse_B)
    else:
        own_B = own_B.double().masked_fill(is_empty_B, 0.0)
        lse_B = torch.where(lse_B == -math.inf, math.inf, lse_B)
    rest_BD = forward.negatives_BD * torch.exp(forward.max_B - lse_B)[:, None]
    scale_B = weight_B.double() / temperature
    if own_vector_BD is not None:
        return ops.gradient_towards(features_BD, own_vector_BD, rest_BD, own_B, scale_B)
    return ops.gradient_of_features(features_BD, rows_KD, targets_B, rest_BD, own_B, scale_B, row_mask_K)


@torch.no_grad()
def softmax_rows_gradient(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    lse_B: Tensor,
    weight_B: Tensor,
    *,
    temperature: float,
    row_mask_K: Tensor | None = None,
    rows_need_grad_B: Tensor | None = None,
    own_B: Tensor | None = None,
    backend: str | None = None,
    products: str = "float32",
) -> Tensor:
    """d(sum_b weight_b (lse_b - positive_b)) / d(rows), complete for the rows held here; [K, D] in the rows' dtype.

    lse_B, weight_B and own_B as for `features_gradient`, the others as for `sampled_softmax`. own_B = 0: the own row gets nothing
    from its sample. In float32 |own_B| up to 1e19, with products in float16 up to 2. Takes no part in autograd.
    """
    features_BD = in_rows_dtype(features_BD, rows_KD)
    check(
        features_BD,
        rows_KD,
        targets_B,
        temperature,
        lse_B=lse_B,
        weight_B=weight_B,
        row_mask_K=row_mask_K,
        rows_need_grad_B=rows_need_grad_B,
        own_B=own_B,
    )
    chosen = _named(backend, rows_KD, products)
    drows_KD: Tensor = ops.softmax_rows_gradient(
        features_BD,
        rows_KD,
        targets_B,
        lse_B,
        weight_B,
        temperature,
        row_mask_K,
        rows_need_grad_B,
        own_B,
        chosen,
        products,
    )
    return drows_KD


@torch.no_grad()
def softmax_rows_update_(
    features_BD: Tensor,
    rows_KD: Tensor,
    momentum_KD: Tensor,
    targets_B: Tensor,
    lse_B: Tensor,
    weight_B: Tensor,
    *,
    temperature: float,
    eta: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    row_mask_K: Tensor | None = None,
    rows_need_grad_B: Tensor | None = None,
    own_B: Tensor | None = None,
    backend: str | None = None,
    products: str = "float32",
) -> None:
    """torch.optim.SGD's step (no dampening) for all K rows, in place, with `softmax_rows_gradient`'s gradient, never written.

    Rows that the mask leaves out have gradient 0, so they decay and move by their momentum. rows_KD and momentum_KD (as the
    rows, both contiguous) change; nothing is checked for being finite: who calls has looked at the loss, at the features'
    gradient and at `Forward.shortest` (the gradient of row k is at most sum_b |weight_b| / (temperature |row_k|)).
    The other arguments and errors as for `softmax_rows_gradient`.
    """
    features_BD = in_rows_dtype(features_BD, rows_KD)
    check(
        features_BD,
        rows_KD,
        targets_B,
        temperature,
        lse_B=lse_B,
        weight_B=weight_B,
        row_mask_K=row_mask_K,
        rows_need_grad_B=rows_need_grad_B,
        own_B=own_B,
    )
    expect("momentum_KD", momentum_KD, rows_KD.shape, rows_KD.device, (rows_KD.dtype,))
    if momentum_KD.numel() and momentum_KD.data_ptr() == rows_KD.data_ptr():
        raise ValueError("momentum_KD and rows_KD are the same memory: give the momentum its own")
    for name, tensor in (("rows_KD", rows_KD), ("momentum_KD", momentum_KD)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}: it changes in place and has to be contiguous")
    ops.softmax_rows_update_(
        features_BD,
        rows_KD,
        momentum_KD,
        targets_B,
        lse_B,
        weight_B,
        temperature,
        row_mask_K,
        rows_need_grad_B,
        own_B,
        eta,
        momentum,
        weight_decay,
        nesterov,
        _named(backend, rows_KD, products),
        products,
    )


def _named(name: str | None, rows_KD: Tensor, products: str) -> str:
    """The implementation that was asked for, checked against what it can do."""
    chosen = name or backend(rows_KD.device, dtype=rows_KD.dtype, features=rows_KD.shape[1]).name
    if chosen not in ("aten", "cpu", "cuda") or chosen not in ("aten", rows_KD.device.type):
        raise ValueError(f"backend is {chosen!r}, rows_KD on {rows_KD.device}: choose aten or {rows_KD.device.type}")
    if products not in PRODUCTS or (products != "float32" and chosen != "cuda"):
        raise ValueError(
            f"products is {products!r}; {chosen} knows {'/'.join(PRODUCTS) if chosen == 'cuda' else 'float32'}"
        )
    return chosen
