"""The trunk: backbone and head, trained by a DeepSpeed engine; the only module that imports deepspeed.

DeepSpeed's config is the user's `deepspeed` block plus what this engine owns: batch, accumulation, clipping, and the optimizer,
torch.optim.SGD. The rows live outside the module that DeepSpeed trains; the trunk receives the loss's gradient at z, as the scalar
(z * dz).sum(), so that DeepSpeed's loss scaling and reduction do what they do for any loss.

Traps that this module steps around: without gradient_clipping DeepSpeed's ZeRO clips to 1; on a CPU it compiles a shared-memory
operator at the first start (minutes, and a lock that hangs later runs when killed); an optimizer that it does not know needs a
permission; under torch_autocast a gradient scaler can skip a step without was_step_applied() telling.
"""

import logging
import os
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from engine import ranks

# Set before the first import, which would otherwise print its guess.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

MOMENTUM = "momentum_buffer"  # torch.optim.SGD's name for u


class Trunk:
    """A network under DeepSpeed.

    network          module: list of views -> z [V*B, D]
    places           G/R, instances of a step on this rank
    micro_batches    A
    clip             largest gradient norm, 0 = no clipping
    config           the user's `deepspeed` block

    Raises ValueError where DeepSpeed refuses the block.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        places: int,
        micro_batches: int,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
        clip: float,
        config: dict[str, Any],
        device: torch.device,
    ) -> None:
        _quiet()
        ranks.start(device)
        if device.type == "cpu":
            # DeepSpeed would compile a shared-memory all-reduce here; gloo serves without it. The table says of every operator
            # whether it can be built; reading it as it is would try them all out.
            deepspeed.ops.__compatible_ops__ = defaultdict(bool)
        optimizer = torch.optim.SGD(
            network.parameters(), lr=1.0, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
        )
        full_config = {
            "steps_per_print": None,
            **config,
            "train_micro_batch_size_per_gpu": places // micro_batches,
            "gradient_accumulation_steps": micro_batches,
            "gradient_clipping": clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # offload keeps torch's SGD
        }
        try:
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=network, optimizer=optimizer, config=full_config, dist_init_required=False
            )
        except Exception as error:  # DeepSpeed raises plain Exceptions too
            raise ValueError(f"deepspeed refuses its block: {str(error).splitlines()[0]}") from error
        self._has_momentum = momentum > 0
        if self._has_momentum:
            _start_momentum(self.optimizer)
        self.device = device
        self.micro_batches = micro_batches
        self._micro = 0
        self._buffers = list(network.buffers())
        self._buffers_before = [buffer.clone() for buffer in self._buffers]

    @property
    def network(self) -> nn.Module:
        return self.engine.module

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        """views: V tensors [B, C, H, W] on the host -> z [V*B, D] with its graph."""
        if self._micro == 0:
            for before, buffer in zip(self._buffers_before, self._buffers, strict=True):
                before.copy_(buffer)
        self.engine.train()
        return self.engine([view.to(self.device, non_blocking=True) for view in views])

    def backward(self, z_XD: torch.Tensor, dz_XD: torch.Tensor) -> None:
        """Accumulate the gradient, given the loss's gradient at z (already divided by the global count of places)."""
        self._micro += 1
        if self.micro_batches > 1:
            self.engine.set_gradient_accumulation_boundary(self._micro == self.micro_batches)
        self.engine.backward((z_XD * dz_XD.to(z_XD.dtype)).sum(), scale_wrt_gas=False)

    def update(self, lr: float) -> bool:
        """Apply the step; False where DeepSpeed's loss scaler skipped it."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        scaler = self.engine.torch_autocast_z0_gradscaler
        scale = scaler.get_scale() if scaler else None
        self.engine.step()
        self._micro = 0
        skipped_by_scaler = scaler is not None and scaler.get_scale() < scale
        return bool(self.engine.was_step_applied()) and not skipped_by_scaler

    def discard(self) -> None:
        """Forget this step: its gradients, and what it did to running statistics."""
        self.engine.zero_grad()
        if self.optimizer is not self.engine.basic_optimizer:
            _forget_accumulated(self.optimizer)
        self._micro = 0
        for before, buffer in zip(self._buffers_before, self._buffers, strict=True):
            buffer.copy_(before)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """(parameters and buffers, momentum), float32 on the host, gathered from every ZeRO stage."""
        kept = self.network.state_dict().keys()
        buffers = self.network.named_buffers()
        model = {name: buffer.detach().cpu().clone() for name, buffer in buffers if name in kept}
        momentum: dict[str, torch.Tensor] = {}
        for name, parameter in self.network.named_parameters():
            if self._partitioned(parameter):
                value = safe_get_full_fp32_param(parameter)
                buffer = safe_get_full_optimizer_state(parameter, MOMENTUM) if self._has_momentum else None
            else:
                value, buffer = parameter.detach(), self.optimizer.state[parameter].get(MOMENTUM)
            model[name] = value.cpu().clone(memory_format=torch.contiguous_format)
            if buffer is not None:  # torch keeps none where the momentum is 0
                momentum[name] = buffer.cpu().clone(memory_format=torch.contiguous_format)
        return model, momentum

    @torch.no_grad()
    def load(self, model: dict[str, torch.Tensor], momentum: dict[str, torch.Tensor]) -> None:
        """Take up what `state` gave."""
        for name, buffer in self.network.named_buffers():
            if name in model:
                buffer.copy_(model[name])
        for name, parameter in self.network.named_parameters():
            if self._partitioned(parameter):
                value = model[name].to(self.device)
                safe_set_full_fp32_param(parameter, value)
                # The master is set; the copy that the forward pass uses would follow only after the next step.
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.copy_(value)
                if name in momentum:
                    safe_set_full_optimizer_state(parameter, momentum[name].to(self.device), MOMENTUM)
            else:
                parameter.copy_(model[name])
                if name in momentum:
                    self.optimizer.state[parameter][MOMENTUM].copy_(momentum[name])

    def close(self) -> None:
        """Release DeepSpeed's buffers. The process group stays: DeepSpeed keeps it for the life of the process."""
        self.engine.destroy()

    def _partitioned(self, parameter: nn.Parameter) -> bool:
        return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _start_momentum(optimizer: Any) -> None:
    """Give every weight a momentum of zero now, where torch and ZeRO would wait for the first step.

    The first step is the same to the bit (m * 0 + g), and DeepSpeed's accessors can then write a checkpoint's momentum into a
    fresh engine. ZeRO 1 and 2 keep the weights in flat partitions, ZeRO 3 in sub-groups, stage 0 leaves torch's optimizer alone.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    stage_3 = getattr(optimizer, "fp32_partitioned_groups_flat", None)
    weights = stage_3 or [weight for group in inner.param_groups for weight in group["params"]]
    for weight in weights:
        inner.state[weight][MOMENTUM] = torch.zeros_like(weight, requires_grad=False)
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()


def _forget_accumulated(zero_optimizer: Any) -> None:
    """Drop what ZeRO accumulated apart from .grad, as its own overflow path does."""
    zero_optimizer.zero_grad()
    if hasattr(zero_optimizer, "all_grad_tensors"):  # stages 1 and 2; stage 3 overwrites at the first micro-batch
        for kept in (zero_optimizer.averaged_gradients, zero_optimizer.all_grad_tensors):
            kept.update(dict.fromkeys(kept))
        zero_optimizer.micro_step_id = -1


def _quiet() -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
