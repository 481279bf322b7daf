"""L linear classifiers side by side, trained by SGD with momentum on the same batches, each at its own learning rate.

    loss_l = mean over b of -log softmax(x_b W_l + c_l)[label_b]
    g      = d loss_l / d(W_l, c_l) + lambda (W_l, c_l)        u <- m u + g        (W_l, c_l) <- (W_l, c_l) - eta_l u

That is torch.optim.SGD over all weights and biases, written out: the gradient of a linear map is one product, and no graph is
kept. Heads do not see each other, so one that diverges leaves the others as they are.
"""

import math

import numpy as np
import torch

from engine.probing.rows import Standard

MOMENTUM = 0.9


class Heads:
    """weight_LDC, bias_LC, and their momenta, float32 on the device; zeros at first, or normal with `deviation`, keyed by `seed`."""

    def __init__(
        self, heads: int, width: int, classes: int, device: torch.device, *, deviation: float = 0.0, seed: int = 0
    ) -> None:
        drawn = torch.Generator().manual_seed(seed)
        weight_LDC = torch.randn(heads, width, classes, generator=drawn) * deviation
        self.weight_LDC = weight_LDC.to(device)
        self.bias_LC = torch.zeros(heads, classes, device=device)
        self.momenta = [torch.zeros_like(self.weight_LDC), torch.zeros_like(self.bias_LC)]

    def step(
        self, x_BD: torch.Tensor, labels_B: torch.Tensor, rates_L: torch.Tensor, weight_decay: float = 0.0
    ) -> torch.Tensor:
        """One step of SGD; the loss of each head before it, float32 [L]. labels_B: int64, on the device."""
        heads, places_B = len(self.weight_LDC), torch.arange(len(x_BD), device=x_BD.device)
        x_LBD = x_BD.expand(heads, -1, -1)
        log_share_LBC = torch.log_softmax(torch.baddbmm(self.bias_LC[:, None], x_LBD, self.weight_LDC), dim=2)
        loss_L = -log_share_LBC[:, places_B, labels_B].mean(dim=1)
        error_LBC = log_share_LBC.exp_()
        error_LBC[:, places_B, labels_B] -= 1
        error_LBC /= len(x_BD)
        gradients = [torch.bmm(x_LBD.transpose(1, 2), error_LBC), error_LBC.sum(dim=1)]
        for weight, momentum, gradient in zip((self.weight_LDC, self.bias_LC), self.momenta, gradients, strict=True):
            momentum.mul_(MOMENTUM).add_(gradient).add_(weight, alpha=weight_decay)
            weight.sub_(momentum * rates_L.view(-1, *[1] * (weight.dim() - 1)))
        return loss_L

    def head(self, number: int) -> "Head":
        return Head(self.weight_LDC[number], self.bias_LC[number])

    def state(self) -> dict[str, torch.Tensor]:
        """All that a later process needs to go on, on the host."""
        tensors = dict(zip(_STATE, (self.weight_LDC, self.bias_LC, *self.momenta), strict=True))
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self.weight_LDC, self.bias_LC, *self.momenta = (state[name].to(self.weight_LDC.device) for name in _STATE)


_STATE = ("weight", "bias", "weight_momentum", "bias_momentum")


class Head:
    """One classifier: weight_DC and bias_C, float32 on the device."""

    def __init__(self, weight_DC: torch.Tensor, bias_C: torch.Tensor) -> None:
        self.weight_DC, self.bias_C = weight_DC, bias_C

    def logits(self, x_BD: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias_C, x_BD, self.weight_DC)

    @property
    def is_finite(self) -> bool:
        return bool(self.weight_DC.isfinite().all() and self.bias_C.isfinite().all())

    def tensors(self, name: str, standard: Standard) -> dict[str, torch.Tensor]:
        """For a file, on the host: with the standard of the rows that it takes."""
        parts = (self.weight_DC, self.bias_C, standard.mean_D, standard.scale_D)
        return {f"{name}.{part}": tensor.cpu().clone().contiguous() for part, tensor in zip(_PARTS, parts, strict=True)}

    @staticmethod
    def loaded(tensors: dict[str, torch.Tensor], name: str, device: torch.device) -> "tuple[Head, Standard]":
        """Raises KeyError where the file has no such head."""
        weight_DC, bias_C, mean_D, scale_D = (tensors[f"{name}.{part}"].to(device) for part in _PARTS)
        return Head(weight_DC, bias_C), Standard(mean_D, scale_D)


_PARTS = ("weight", "bias", "mean", "scale")


def cosine(step: int, total: int) -> float:
    """The share of the highest learning rate at a step of `total`: 1 at the first, 0 behind the last."""
    return 0.5 * (1 + math.cos(math.pi * step / total))


def on_device(labels_B: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(labels_B)).to(device)
