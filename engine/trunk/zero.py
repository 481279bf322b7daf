"""A module under DeepSpeed with an optimizer of engine/trunk/optimizers.py; the only module that imports deepspeed.

The trunk (engine/trunk/trunk.py) is one such module, under the ZeRO stage that the user asks for, and with `method.sharding` "zero3" the
active rows are another, at stage 3 and under SGD. DeepSpeed's config is the user's block plus what this engine owns: batch, accumulation,
clipping and the optimizer.

Gradients arrive from outside: the caller hands over a scalar whose gradient is what it wants, made of the loss of all ranks. DeepSpeed
takes the mean over ranks, so that scalar is multiplied by R here, and loss scaling and reduction do what they do for any loss.

Traps that this module steps around: without gradient_clipping DeepSpeed's ZeRO clips to 1; on a CPU it compiles a shared-memory
operator at the first start (minutes, and a lock that hangs later runs when killed); an optimizer that it does not know needs a
permission; float16 under torch_autocast has three more. At stage 0 the gradient scaler skips a step without was_step_applied() telling.
At stages 1 to 3 the scale never goes down again, and clipping cuts the scaled gradient: there the scale is kept here (LossScale). And
every engine that is made after such a one gets a scaler too, also one that has no float16 in it.
"""

import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.ranks.machine import first_line, machine_error
from engine.ranks.ranks import of_the_wire
from engine.trunk.lars import MOMENTUM
from engine.trunk.optimizers import STEP, Rule, state_name

# Set before the first import, which would otherwise print its guess.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.runtime.torch_autocast import autocast_if_enabled
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

# Of ZeRO's optimizers: weights in one piece, and this rank's part of their float32 masters.
_FLAT_WEIGHTS = ("bit16_groups_flat", "single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
MOST_BUCKET = 5 * 10**8  # numbers; DeepSpeed's own


class ZeroEngine:
    """A module, its optimizer, and DeepSpeed between them. The process group is there already (engine/ranks/ranks.py).

    module           what is trained
    ranks            R
    places           G/R, instances of a step on this rank
    micro_batches    A
    rule             what steps the weights
    clip             largest gradient norm, 0 = no clipping
    config           the user's `deepspeed` block

    Raises ValueError where DeepSpeed refuses the block, and OSError where the machine's limits end it.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        ranks: int,
        places: int,
        micro_batches: int,
        rule: Rule,
        clip: float,
        config: dict[str, Any],
        device: torch.device,
    ) -> None:
        _quiet()
        if device.type == "cpu":
            # DeepSpeed would compile a shared-memory all-reduce here; gloo serves without it. The table says of every operator
            # whether it can be built; reading it as it is would try them all out.
            deepspeed.ops.__compatible_ops__ = defaultdict(bool)
        full_config = {
            "steps_per_print": None,
            **with_bucket(config, sum(parameter.numel() for parameter in module.parameters())),
            "train_micro_batch_size_per_gpu": places // micro_batches,
            "gradient_accumulation_steps": micro_batches,
            "gradient_clipping": clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # offload keeps this optimizer
        }
        optimizer = rule.make(module.parameters())
        try:
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=module,
                optimizer=optimizer,
                config=full_config,
                dist_init_required=False,
            )
        except Exception as error:  # DeepSpeed raises plain Exceptions too
            if of_the_wire(error):
                raise
            if (limit := machine_error(error)) is not None:
                raise limit from error
            raise ValueError(f"deepspeed refuses its block: {first_line(error)}") from error
        self._own_scale: LossScale | None = None
        if getattr(self.optimizer, "torch_autocast_gradscaler", None) is not None:
            self.optimizer.torch_autocast_gradscaler = None
            if self.engine.torch_autocast_enabled() and self.engine.torch_autocast_dtype() is torch.float16:
                self._own_scale = LossScale()
                # Without the scaler it is the norm that tells of an overflow, which the user's block may have switched off.
                self.optimizer.check_grad_overflow = True
        assert not rule.needs_whole or self.engine.zero_optimization_stage() == 0, "the config refuses it"
        self.rule = rule
        _start_state(self.optimizer, rule)
        self.device, self.ranks, self.micro_batches = device, ranks, micro_batches
        self._micro = 0

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    @property
    def is_whole(self) -> bool:
        """Whether every rank holds all weights, which stage 3 shares out."""
        return self.engine.zero_optimization_stage() < 3

    @property
    def is_new_step(self) -> bool:
        """Whether nothing was added since the last step."""
        return self._micro == 0

    def autocast(self) -> AbstractContextManager[None]:
        """What the engine's forward pass computes in."""
        entered: AbstractContextManager[None] = autocast_if_enabled(self.engine)
        return entered

    def backward(self, scalar: torch.Tensor) -> None:
        """Add the scalar's gradient; summed over ranks, it is that of the loss over the places of all of them."""
        self._micro += 1
        if self.micro_batches > 1:
            self.engine.set_gradient_accumulation_boundary(self._micro == self.micro_batches)
        if self._own_scale:
            self.optimizer.override_loss_scale(self._own_scale.scale)
        self.engine.backward(scalar * self.ranks, scale_wrt_gas=False)

    def update(self, lr: float) -> bool:
        """Apply the step; False where DeepSpeed's loss scaler skipped it."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        scaler = self.engine.torch_autocast_z0_gradscaler
        scale = scaler.get_scale() if scaler else None
        self.engine.step()
        self._micro = 0
        skipped_by_scaler = scaler is not None and scaler.get_scale() < scale
        applied = bool(self.engine.was_step_applied()) and not skipped_by_scaler
        if self._own_scale:
            self._own_scale.follow(applied)
        return applied

    @property
    def loss_scale(self) -> tuple[float, int] | None:
        """(scale, steps since it last changed) of float16; None where nothing is scaled. Settable, for a run that goes on."""
        if self._own_scale:
            return self._own_scale.scale, self._own_scale.good_steps
        if scaler := self.engine.torch_autocast_z0_gradscaler:
            return scaler.get_scale(), scaler._get_growth_tracker()
        return None

    @loss_scale.setter
    def loss_scale(self, saved: tuple[float, int]) -> None:
        if self._own_scale:
            self._own_scale.scale, self._own_scale.good_steps = saved
        elif scaler := self.engine.torch_autocast_z0_gradscaler:
            scaler.load_state_dict({**scaler.state_dict(), "scale": saved[0], "_growth_tracker": saved[1]})

    def discard(self) -> None:
        """Forget the gradients of this step."""
        self.engine.zero_grad()
        if self.optimizer is not self.engine.basic_optimizer:
            _forget_accumulated(self.optimizer)
        self._micro = 0

    def weights(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers, float32 on the host, gathered from every ZeRO stage; all ranks call it together."""
        names = self.module.state_dict().keys()
        model = {name: _on_host(buffer) for name, buffer in self.module.named_buffers() if name in names}
        for name, parameter in self.module.named_parameters():
            model[name] = _on_host(safe_get_full_fp32_param(parameter) if _is_partitioned(parameter) else parameter)
        return model

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """What the optimizer keeps, in the same way; names are those of engine.trunk.optimizers. Empty where it keeps nothing."""
        state = {}
        for name, parameter in self.module.named_parameters():
            for kind in self.rule.kept:
                state[state_name(kind, name)] = _on_host(
                    safe_get_full_optimizer_state(parameter, kind)
                    if _is_partitioned(parameter)
                    else self.optimizer.state[parameter][kind]
                )
            if self.rule.counts_steps:
                state[state_name(STEP, name)] = _on_host(self._counts(parameter)[0])
        return state

    @torch.no_grad()
    def load(self, model: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
        """Take up what `weights` and `optimizer_state` gave on any number of ranks, at any stage; every rank gives the whole of it."""
        for name, buffer in self.module.named_buffers():
            if name in model:
                buffer.copy_(model[name])
        for name, parameter in self.module.named_parameters():
            of_weight = {kind: state[state_name(kind, name)] for kind in self.rule.kept}
            if _is_partitioned(parameter):
                value = model[name].to(self.device)
                safe_set_full_fp32_param(parameter, value)
                # The master is set; the copy that the forward pass uses would follow only after the next step.
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.copy_(value)
                for kind, kept in of_weight.items():
                    safe_set_full_optimizer_state(parameter, kept.to(self.device), kind)
            else:
                parameter.copy_(model[name])
                for kind, kept in of_weight.items():
                    self.optimizer.state[parameter][kind].copy_(kept)
            for count in self._counts(parameter) if self.rule.counts_steps else []:
                count.copy_(state[state_name(STEP, name)])

    def _counts(self, parameter: nn.Parameter) -> list[torch.Tensor]:
        """The numbers of steps in torch's optimizer that are the parameter's. ZeRO keeps pieces of many parameters in one tensor, and
        steps all of them together: there every count is.
        """
        if not _is_partitioned(parameter):
            return [self.optimizer.state[parameter][STEP]]
        return [state[STEP] for state in self.optimizer.optimizer.state.values()]

    def held(self) -> dict[str, list[torch.Tensor]]:
        """The tensors that are there now, by what they are for: "weights", "gradients", "optimizer", "bucket"; several may share memory."""
        optimizer, parameters = self.optimizer, list(self.module.parameters())
        inner = getattr(optimizer, "optimizer", optimizer)
        flat = [getattr(optimizer, name, None) or [] for name in _FLAT_WEIGHTS]
        parts = [one.ds_tensor for one in parameters if hasattr(one, "ds_tensor")]
        gradients = [one.grad for one in parameters if one.grad is not None]
        whole = getattr(optimizer, "grad_partitions_flat_buffer", None)
        averaged = getattr(optimizer, "averaged_gradients", None) or {}
        buckets = (getattr(optimizer, "ipg_buckets", None) or {}).values()
        bucket = [one for held in buckets for one in _tensors(getattr(held, "buffer", None))]
        return {
            "weights": [*parameters, *self.module.buffers(), *(one for group in flat for one in group), *parts],
            "gradients": [*gradients, *_tensors(list(averaged.values())), *_tensors(whole)],
            "optimizer": [one for state in inner.state.values() for one in _tensors(list(state.values()))],
            "bucket": bucket,
        }

    def close(self) -> None:
        """Release DeepSpeed's buffers. The process group stays: DeepSpeed keeps it for the life of the process."""
        self.engine.destroy()


@dataclass
class LossScale:
    """What a float16 loss is multiplied by: halved when a step was refused, doubled after 2,000 that were applied.

    These are the numbers of torch's GradScaler.
    """

    scale: float = 65536.0
    good_steps: int = 0

    def follow(self, applied: bool) -> None:
        self.good_steps = self.good_steps + 1 if applied else 0
        if not applied:
            self.scale /= 2
        elif self.good_steps == 2000:
            self.scale, self.good_steps = 2 * self.scale, 0


def with_bucket(config: dict[str, Any], weights: int) -> dict[str, Any]:
    """The user's block, in which the bucket of gradients has room for all of them and no more, if the user does not say otherwise.

    DeepSpeed would make room for 5 * 10^8 numbers whatever the module is. Up to that size it computes the same with this bucket.
    """
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict) or not zero.get("stage") or "reduce_bucket_size" in zero:
        return config
    return {**config, "zero_optimization": {**zero, "reduce_bucket_size": min(weights, MOST_BUCKET)}}


class PartitionedRows:
    """[R S, D] rows as the one parameter of a ZeRO-3 engine, S whole rows on each rank, through DeepSpeed's local accessors.

    w_SD, u_SD   this rank's part of the float32 master and of the momentum: the memory that DeepSpeed's optimizer works on
    """

    def __init__(self, rows_each: int, dim: int, *, ranks: int, places: int, **settings: Any) -> None:
        module = _Rows(ranks * rows_each, dim)
        stage_3 = {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            # Of the one gradient there is; by default there would be room for 5 * 10^8 numbers.
            "reduce_bucket_size": ranks * rows_each * dim,
        }
        self.zero = ZeroEngine(module, ranks=ranks, places=places, config={"zero_optimization": stage_3}, **settings)
        self._rows = module.rows
        self.w_SD = safe_get_local_fp32_param(self._rows).detach().view(rows_each, dim)
        self._has_momentum = MOMENTUM in settings["rule"].kept
        if self._has_momentum:
            self.u_SD = safe_get_local_optimizer_state(self._rows, MOMENTUM).view(rows_each, dim)
        else:
            self.u_SD = torch.zeros_like(self.w_SD)
        # Without offload the accessors give the memory itself, so that rows can come and go one by one.
        assert safe_get_local_fp32_param(self._rows).data_ptr() == self.w_SD.data_ptr()

    @torch.no_grad()
    def publish(self) -> None:
        """Rows were changed in w_SD and u_SD: let the next gathering see them."""
        safe_set_local_fp32_param(self._rows, self.w_SD)
        if self._has_momentum:
            safe_set_local_optimizer_state(self._rows, self.u_SD, MOMENTUM)
        # The master is set; the copy that is gathered would follow only after the next step.
        self._rows.ds_tensor.copy_(self.w_SD.reshape(-1))  # type: ignore[attr-defined]

    def add(self, gradient_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Add to the rows' gradient. gradient_of: is given the rows of all ranks, [R S, D], and returns their gradient.

        It runs in DeepSpeed's forward pass, which gathers the rows and counts the micro-batches.
        """
        self.zero.backward(self.zero.engine(gradient_of))


def _tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in lists of lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [one for part in value for one in _tensors(part)] if isinstance(value, list | tuple) else []


class _Rows(nn.Module):
    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(count, dim))

    def forward(self, gradient_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return (self.rows * gradient_of(self.rows.detach())).sum()


def _is_partitioned(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _on_host(value: torch.Tensor) -> torch.Tensor:
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _start_state(optimizer: Any, rule: Rule) -> None:
    """Give every weight the state of step 0 now, where torch and ZeRO would wait for the first step.

    The first step is the same to the bit (m * 0 + g), and DeepSpeed's accessors can then write a checkpoint's state into a
    fresh engine. ZeRO 1 and 2 keep the weights in flat partitions, ZeRO 3 in sub-groups, stage 0 leaves torch's optimizer alone.
    """
    if not rule.kept:
        return
    inner = getattr(optimizer, "optimizer", optimizer)
    stage_3 = getattr(optimizer, "fp32_partitioned_groups_flat", None)
    weights = stage_3 or [weight for group in inner.param_groups for weight in group["params"]]
    for weight in weights:
        if rule.counts_steps:
            inner.state[weight][STEP] = torch.tensor(0.0)  # on the host, where torch has it too
        for kind in rule.kept:
            inner.state[weight][kind] = torch.zeros_like(weight, requires_grad=False)
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()


def _forget_accumulated(zero_optimizer: Any) -> None:
    """Drop what ZeRO accumulated apart from .grad, as its own overflow path does."""
    zero_optimizer.zero_grad()
    if hasattr(zero_optimizer, "all_grad_tensors"):  # stages 1 and 2; stage 3 overwrites at the first micro-batch
        for gradients in (zero_optimizer.averaged_gradients, zero_optimizer.all_grad_tensors):
            gradients.update(dict.fromkeys(gradients))
        zero_optimizer.micro_step_id = -1


def _quiet() -> None:
    # DeepSpeed calls torch's collectives by names that torch has new ones for.
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\..* is deprecated", category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
