"""The trunk: backbone and head, trained by a DeepSpeed engine (engine/trunk/zero.py), the same on every rank.

Lane rows live outside the module that DeepSpeed trains, which overwrites or empties what differs between ranks; the trunk receives the
gradient at z of the loss of all ranks, as the scalar (z * dz).sum(). Batch statistics are those of all ranks' places together.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

from engine.ranks.ranks import Ranks
from engine.trunk.batch_norm import synchronised
from engine.trunk.zero import ZeroEngine


class Trunk:
    """A network under DeepSpeed.

    network   module: list of views -> z [V*B, D], also for B = 0
    ranks     the ranks that train it together
    train     puts a module under DeepSpeed: engine.trunk.zero.ZeroEngine with its settings
    """

    def __init__(self, network: nn.Module, ranks: Ranks, train: Callable[[nn.Module], ZeroEngine]) -> None:
        self._ranks = ranks
        plain = copy.deepcopy(network) if ranks.size > 1 else None
        network = synchronised(network, ranks)
        self._zero = train(network)
        self._plain = None if self._zero.is_whole else plain
        self._buffers = list(network.buffers())
        self._buffers_before = [buffer.clone() for buffer in self._buffers]

    @property
    def network(self) -> nn.Module:
        return self._zero.module

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        """views: V tensors [B, C, H, W] on the host -> z [V*B, D] with its graph."""
        if self._zero.is_new_step:
            for before, buffer in zip(self._buffers_before, self._buffers, strict=True):
                before.copy_(buffer)
        self._zero.engine.train()
        return self._zero.engine([view.to(self._ranks.device, non_blocking=True) for view in views])

    def autocast(self) -> AbstractContextManager[None]:
        """What `forward` computes in, for a network that is to compute as this one does."""
        return self._zero.autocast()

    def backward(self, z_XD: torch.Tensor, dz_XD: torch.Tensor) -> None:
        """Accumulate the gradient, given the loss's gradient at z (already divided by the global count of places)."""
        self._zero.backward((z_XD * dz_XD.to(z_XD.dtype)).sum())

    def update(self, lr: float) -> bool:
        """Apply the step; False where DeepSpeed's loss scaler skipped it."""
        return self._zero.update(lr)

    def discard(self) -> None:
        """Forget this step: its gradients, and what it did to running statistics."""
        self._zero.discard()
        for before, buffer in zip(self._buffers_before, self._buffers, strict=True):
            buffer.copy_(before)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """(parameters and buffers, what the optimizer keeps), float32 on the host; all ranks call it together."""
        return self.weights(), self._zero.optimizer_state()

    def weights(self) -> dict[str, torch.Tensor]:
        """The first half of `state`."""
        return self._zero.weights()

    def load(self, model: dict[str, torch.Tensor], kept: dict[str, torch.Tensor]) -> None:
        """Take up what `state` gave, on however many ranks and at whatever stage of ZeRO."""
        self._zero.load(model, kept)

    @property
    def loss_scale(self) -> tuple[float, int] | None:
        """Of float16, None without it; see engine.trunk.zero.ZeroEngine. To be kept beside `state`."""
        return self._zero.loss_scale

    @loss_scale.setter
    def loss_scale(self, scale_and_steps: tuple[float, int]) -> None:
        self._zero.loss_scale = scale_and_steps

    def for_evaluation(self) -> nn.Module:
        """The network as a rank can run it alone: the trained one itself, or where ranks have parts of its weights a copy for the moment.

        All ranks call it together.
        """
        if self._plain is None:
            return self.network
        network = copy.deepcopy(self._plain)  # which stays on the host
        network.load_state_dict(self.weights())
        return network.to(self._ranks.device)

    def held(self) -> dict[str, list[torch.Tensor]]:
        """The tensors that are there now, by what they are for: those of engine.trunk.zero.ZeroEngine, and "copy": on the host."""
        held = self._zero.held()
        held["weights"] += self._buffers_before
        return {**held, "copy": [] if self._plain is None else list(self._plain.parameters())}

    def close(self) -> None:
        """Release DeepSpeed's buffers."""
        self._zero.close()
