"""A trunk without a network: the views are the features already (datasets/given.py), and nothing is trained but the rows.

It answers all that a run asks of engine/trunk/trunk.py. Neither DeepSpeed nor torchvision is imported.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from engine.ranks.ranks import Ranks


class GivenTrunk:
    """forward hands the views on; there are no weights, so nothing else does anything."""

    loss_scale: tuple[float, int] | None = None

    def __init__(self, ranks: Ranks) -> None:
        self._device = ranks.device
        self.network = nn.Identity()

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        """V tensors float32 [B, D] on the host -> z [V*B, D]."""
        return torch.cat([view.to(self._device, non_blocking=True) for view in views])

    def autocast(self) -> AbstractContextManager[None]:
        """Features are handed on as they are."""
        return nullcontext()

    def backward(self, z_XD: torch.Tensor, dz_XD: torch.Tensor) -> None:
        """There is nothing behind z."""

    def update(self, lr: float) -> bool:
        return True

    def discard(self) -> None:
        """Nothing was kept."""

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return {}, {}

    def weights(self) -> dict[str, torch.Tensor]:
        return {}

    def load(self, model: dict[str, torch.Tensor], kept: dict[str, torch.Tensor]) -> None:
        assert not model and not kept, "a run goes on with the backbone that it had"

    def for_evaluation(self) -> nn.Module:
        return self.network

    def held(self) -> dict[str, list[torch.Tensor]]:
        return {}

    def close(self) -> None:
        """Nothing is open."""
