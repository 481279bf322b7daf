"""The op as torch sees it: schemas, shapes without values (fake), autograd, and the implementation that is asked for by name.

    pic::softmax_forward          -> max_B, sumexp_B, positive_B, negatives_BD, shortest
    pic::softmax_rows_gradient    -> drows_KD
    pic::softmax_rows_update_     rows_KD and momentum_KD change
    pic::sampled_softmax          -> loss_B, and lse_B and rest_BD for its backward; differentiable in features and rows

Arguments are as checked by `kernels.sampled_softmax`, which explains them. An implementation is a module, or a namespace of
torch.ops, with `forward`, `rows_gradient` and `rows_update_`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.compiled import load
from kernels.operator import operator
from kernels.sampled_softmax import aten
from kernels.sampled_softmax.aten import normalise, through_normalise_


def _implementation(name: str) -> Any:
    if name == "aten":
        return aten
    load("sampled_softmax", name)
    return getattr(torch.ops, f"pic_sampled_softmax_{name}")


def _extra(backend: str, products: str) -> tuple[str, ...]:
    """CUDA alone has a choice of products."""
    return (products,) if backend == "cuda" else ()


@operator()
def softmax_forward(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    temperature: float,
    row_mask_K: Tensor | None,
    with_negatives: bool,
    leave_own_out: bool,
    backend: str,
    products: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    max_B, sumexp_B, positive_B, negatives_BD, shortest = _implementation(backend).forward(
        features_BD,
        rows_KD,
        targets_B,
        temperature,
        row_mask_K,
        with_negatives,
        leave_own_out,
        *_extra(backend, products),
    )
    if rows_KD.device.type != "cpu":
        out_of_range_B = (targets_B < -1) | (targets_B >= rows_KD.shape[0])
        positive_B = positive_B.masked_fill(out_of_range_B, math.nan)
    return max_B, sumexp_B, positive_B, negatives_BD.double(), shortest


@torch.library.register_fake(softmax_forward)
def _(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    temperature: float,
    row_mask_K: Tensor | None,
    with_negatives: bool,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    max_B, sumexp_B, positive_B = (targets_B.new_empty(targets_B.shape, dtype=torch.float64) for _ in range(3))
    negatives_BD = max_B.new_empty(features_BD.shape[0] if with_negatives else 0, rows_KD.shape[1])
    return max_B, sumexp_B, positive_B, negatives_BD, rows_KD.new_empty((), dtype=torch.float64)


@operator()
def softmax_rows_gradient(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    lse_B: Tensor,
    weight_B: Tensor,
    temperature: float,
    row_mask_K: Tensor | None,
    rows_need_grad_B: Tensor | None,
    own_B: Tensor | None,
    backend: str,
    products: str,
) -> Tensor:
    drows_KD: Tensor = _implementation(backend).rows_gradient(
        features_BD,
        rows_KD,
        targets_B,
        lse_B,
        weight_B,
        temperature,
        row_mask_K,
        rows_need_grad_B,
        own_B,
        *_extra(backend, products),
    )
    return drows_KD


@torch.library.register_fake(softmax_rows_gradient)
def _(features_BD: Tensor, rows_KD: Tensor, *arguments: Any) -> Tensor:
    return rows_KD.new_empty(rows_KD.shape)


@operator(changes=("rows_KD", "momentum_KD"))
def softmax_rows_update_(
    features_BD: Tensor,
    rows_KD: Tensor,
    momentum_KD: Tensor,
    targets_B: Tensor,
    lse_B: Tensor,
    weight_B: Tensor,
    temperature: float,
    row_mask_K: Tensor | None,
    rows_need_grad_B: Tensor | None,
    own_B: Tensor | None,
    eta: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    backend: str,
    products: str,
) -> None:
    _implementation(backend).rows_update_(
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
        *_extra(backend, products),
    )


@torch.library.register_fake(softmax_rows_update_)
def _(*arguments: Any) -> None:
    return None


@operator()
def sampled_softmax(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    temperature: float,
    row_mask_K: Tensor | None,
    rows_need_grad_B: Tensor | None,
    leave_own_out: bool,
    backend: str,
    products: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """loss_B in the rows' dtype, lse_B, and rest_BD: the sum over all rows but the own of p row / |row|."""
    max_B, sumexp_B, positive_B, negatives_BD, _ = softmax_forward(
        features_BD, rows_KD, targets_B, temperature, row_mask_K, True, leave_own_out, backend, products
    )
    lse_B = combine([(max_B, sumexp_B)])
    loss_B = torch.where(targets_B == -1, 0.0, lse_B - positive_B).to(rows_KD.dtype)
    # Where its own row alone takes part, the others' p is 0, and -inf - -inf would be NaN.
    finite_B = torch.where(lse_B == -math.inf, math.inf, lse_B) if leave_own_out else lse_B
    return loss_B, lse_B, negatives_BD * torch.exp(max_B - finite_B)[:, None]


@torch.library.register_fake(sampled_softmax)
def _(features_BD: Tensor, rows_KD: Tensor, targets_B: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    lse_B = targets_B.new_empty(targets_B.shape, dtype=torch.float64)
    return rows_KD.new_empty(targets_B.shape), lse_B, lse_B.new_empty(features_BD.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    features_BD, rows_KD, targets_B, temperature, row_mask_K, rows_need_grad_B, leave_own_out, backend, products = (
        inputs
    )
    ctx.save_for_backward(features_BD, rows_KD, targets_B, row_mask_K, rows_need_grad_B, *output)
    ctx.temperature, ctx.backend, ctx.products, ctx.leave_own_out = temperature, backend, products, leave_own_out


def _backward(ctx: Any, dloss_B: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if (
        torch.is_grad_enabled()
    ):  # create_graph: what follows would be taken for constant, and the result be wrong in silence
        raise RuntimeError("sampled_softmax is differentiable once: its gradients have none of their own")
    features_BD, rows_KD, targets_B, row_mask_K, rows_need_grad_B, loss_B, lse_B, rest_BD = ctx.saved_tensors
    weight_B = torch.where(targets_B == -1, 0.0, dloss_B)
    dfeatures_BD = drows_KD = None
    given_B = torch.full_like(lse_B, -1.0) if ctx.leave_own_out else None
    if ctx.needs_input_grad[0]:
        own_B = torch.expm1(-loss_B.double()) if given_B is None else given_B
        dfeatures_BD = gradient_of_features(
            features_BD, rows_KD, targets_B, rest_BD, own_B, weight_B.double() / ctx.temperature, row_mask_K
        )
    if ctx.needs_input_grad[1]:
        drows_KD = softmax_rows_gradient(
            features_BD,
            rows_KD,
            targets_B,
            lse_B,
            weight_B,
            ctx.temperature,
            row_mask_K,
            rows_need_grad_B,
            given_B,
            ctx.backend,
            ctx.products,
        )
    return dfeatures_BD, drows_KD, None, None, None, None, None, None, None


torch.library.register_autograd(sampled_softmax, _backward, setup_context=_keep)


def combine(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """lse_B, float64, from the (max_B, sumexp_B) of every rank; -inf where no row takes part anywhere."""
    max_RB = torch.stack([part[0] for part in parts]).double()
    sumexp_RB = torch.stack([part[1] for part in parts]).double()
    max_B = max_RB.amax(0)
    shift_B = max_B.masked_fill(max_B == -math.inf, 0.0)
    return shift_B + (sumexp_RB * torch.exp(max_RB - shift_B)).sum(0).log()


def gradient_of_features(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    rest_BD: Tensor,
    own_B: Tensor,
    scale_B: Tensor,
    row_mask_K: Tensor | None,
) -> Tensor:
    """scale (rest + own unit_row_target) through the Jacobian of f/|f|, in float64, returned in the features' dtype.

    rest_BD, own_B, scale_B   float64: sum over the other rows of p u, p_own - 1 or what is given for it, weight / temperature
    """
    if len(targets_B) == 0 or len(rows_KD) == 0:
        return torch.zeros_like(features_BD)
    here_B = (targets_B >= 0) & (targets_B < len(rows_KD))
    own_row_B = targets_B.clamp(0, len(rows_KD) - 1)
    takes_part_B = None if row_mask_K is None else row_mask_K[own_row_B]
    own_BD = rows_KD[own_row_B].double()
    unit_own_BD = torch.empty_like(own_BD)
    normalise(own_BD, takes_part_B, unit_own_BD, torch.empty_like(own_BD))
    return _through_features(features_BD, rest_BD, torch.where(here_B, own_B, 0.0), unit_own_BD, scale_B)


def gradient_towards(
    features_BD: Tensor, own_vector_BD: Tensor, rest_BD: Tensor, own_B: Tensor, scale_B: Tensor
) -> Tensor:
    """`gradient_of_features` with own_vector_BD, floating and of any length, for each sample's own row."""
    if len(features_BD) == 0:
        return torch.zeros_like(features_BD)
    own_BD = own_vector_BD.double()
    unit_own_BD = torch.empty_like(own_BD, memory_format=torch.contiguous_format)
    normalise(own_BD, None, unit_own_BD, torch.empty_like(unit_own_BD))
    return _through_features(features_BD, rest_BD, own_B, unit_own_BD, scale_B)


def _through_features(
    features_BD: Tensor, rest_BD: Tensor, own_B: Tensor, unit_own_BD: Tensor, scale_B: Tensor
) -> Tensor:
    dunit_BD = rest_BD + own_B[:, None] * unit_own_BD
    dunit_BD *= scale_B[:, None]
    source_BD = features_BD.double()
    unit_BD = torch.empty_like(source_BD, memory_format=torch.contiguous_format)
    length_B1 = normalise(source_BD, None, unit_BD, torch.empty_like(unit_BD))
    through_normalise_(dunit_BD, unit_BD, length_B1, torch.empty_like(unit_BD))
    return dunit_BD.to(features_BD.dtype)
