"""Seeded problems for the tests of sampled_softmax, and how its gradients are taken."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = tuple[Tensor, Tensor, Tensor]


def draw(samples: int, rows: int, features: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    features_BD = torch.randn(samples, features, generator=generator)
    rows_KD = torch.randn(rows, features, generator=generator) * 0.01
    return features_BD.to(dtype), rows_KD.to(dtype), torch.randint(rows, (samples,), generator=generator)


def options(samples: int, rows: int, targets_B: Tensor, seed: int = 1) -> dict[str, Tensor]:
    """A mask that spares the targets, an offset, and samples that bar their gradient from rows."""
    generator = torch.Generator().manual_seed(seed)
    row_mask_K = torch.rand(rows, generator=generator) < 0.6
    row_mask_K[targets_B[targets_B >= 0]] = True
    return {
        "row_mask_K": row_mask_K,
        "offset_K": torch.randn(rows, generator=generator, dtype=torch.float64),
        "rows_need_grad_B": torch.rand(samples, generator=generator) < 0.5,
    }


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
