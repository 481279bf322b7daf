"""Seeded problems for the tests of sampled_softmax, and how its gradients are taken."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.sampled_softmax import features_gradient, softmax_forward_negatives, softmax_rows_gradient

Inputs = tuple[Tensor, Tensor, Tensor]


def draw(samples: int, rows: int, features: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    features_BD = torch.randn(samples, features, generator=generator)
    rows_KD = torch.randn(rows, features, generator=generator) * 0.01
    return features_BD.to(dtype), rows_KD.to(dtype), torch.randint(rows, (samples,), generator=generator)


def options(samples: int, rows: int, targets_B: Tensor, seed: int = 1) -> dict[str, Tensor]:
    """A mask that spares the targets, and samples that bar their gradient from rows."""
    generator = torch.Generator().manual_seed(seed)
    row_mask_K = torch.rand(rows, generator=generator) < 0.6
    row_mask_K[targets_B[targets_B >= 0]] = True
    return {
        "row_mask_K": row_mask_K,
        "rows_need_grad_B": torch.rand(samples, generator=generator) < 0.5,
    }


def backward_half(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    lse_B: Tensor,
    weight_B: Tensor,
    *,
    temperature: float,
    row_mask_K: Tensor | None = None,
    rows_need_grad_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(dfeatures_BD, drows_KD) of sum_b weight_b (lse_b - positive_b) from the rows given, whatever log-sum-exp they get."""
    inputs, taking_part = (features_BD, rows_KD, targets_B), {"temperature": temperature, "row_mask_K": row_mask_K}
    drows_KD = softmax_rows_gradient(*inputs, lse_B, weight_B, rows_need_grad_B=rows_need_grad_B, **taking_part)
    forward = softmax_forward_negatives(*inputs, **taking_part)
    return features_gradient(forward, *inputs, lse_B, weight_B, **taking_part), drows_KD


def loss_and_gradients(
    op: Callable[..., Tensor], features_BD: Tensor, rows_KD: Tensor, targets_B: Tensor, **keywords: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss per sample, and the gradients of a sum in which no two samples weigh the same."""
    features_BD, rows_KD = features_BD.clone().requires_grad_(), rows_KD.clone().requires_grad_()
    loss_B = op(features_BD, rows_KD, targets_B, **keywords)
    weight_B = torch.linspace(0.5, 1.5, len(loss_B), dtype=loss_B.dtype)
    (loss_B * weight_B).sum().backward()
    assert features_BD.grad is not None
    assert rows_KD.grad is not None
    return loss_B.detach(), features_BD.grad, rows_KD.grad


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of elements that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result
