"""LARS: SGD whose step of a tensor is as long as the tensor itself says (You, Gitman and Ginsburg 2017, as SimCLR trains with it).

    g <- g + lambda w
    t  = trust |w| / |g|                    1 where one of the norms is 0
    v <- m v + lr t g
    w <- w - v

The rate is inside the momentum, so v goes on with the rates of its own steps. Biases and the weights of normalisations, which are the
tensors of one axis, have neither decay nor t. Norms are of whole tensors: a rank that holds a part of one cannot take this step.

torch has no LARS. Those of other libraries add a term to the denominator or keep the rate outside of v, which are other steps.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

MOMENTUM = "momentum_buffer"  # v, under torch's name for the momentum of SGD


class Lars(torch.optim.Optimizer):
    """parameters: those to step, float32. Each needs its v under MOMENTUM in `state` from the second step on; it starts at 0."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float, trust: float
    ) -> None:
        whole = list(parameters)
        groups = [
            {"params": [one for one in whole if one.dim() > 1], "adapts": True},
            {"params": [one for one in whole if one.dim() <= 1], "adapts": False},
        ]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self._step(w, w.grad, group)

    def _step(self, w: torch.Tensor, g: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[w]
        if MOMENTUM not in state:
            state[MOMENTUM] = torch.zeros_like(w)
        v = state[MOMENTUM].mul_(group["momentum"])
        if not group["adapts"]:
            v.add_(g, alpha=group["lr"])
        else:
            g = g.add(w, alpha=group["weight_decay"])
            length, of_g = torch.linalg.vector_norm(w), torch.linalg.vector_norm(g)
            # Without a read of either norm, for which a GPU would have to be waited for.
            t = torch.where((length > 0) & (of_g > 0), group["trust"] * length / of_g, 1.0)
            v.add_(g.mul_(t), alpha=group["lr"])
        w.sub_(v)
