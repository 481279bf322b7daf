"""The slow line: torch.optim.SGD itself, on parameters that share the rows' memory."""

import torch
from torch import Tensor


def row_update_reference_(
    rows_KD: Tensor,
    momentum_KD: Tensor,
    drows_KD: Tensor,
    *,
    eta: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """What `row_update_` does, by torch.optim.SGD (with momentum 0, which keeps no buffer there: momentum_KD = gradient)."""
    rows = torch.nn.Parameter(rows_KD.detach())
    rows.grad = drows_KD.detach()
    sgd = torch.optim.SGD(
        [rows], lr=eta, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, foreach=False
    )
    sgd.state[rows]["momentum_buffer"] = momentum_KD
    if momentum == 0:
        momentum_KD.copy_(drows_KD.add(rows_KD, alpha=weight_decay))
    sgd.step()
