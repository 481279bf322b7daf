"""Batch normalisation over the batches of all ranks together, so that every number of ranks R trains the same network.

    forward    every rank tells, per channel, count n_r, mean m_r and M_r = sum of (x - m_r)^2 of its elements; all combine them:
               n = sum n_r,   mean = sum n_r m_r / n,   M = sum M_r + n_r (m_r - mean)^2
               y = weight xhat + bias,   xhat = (x - mean) / sqrt(M / n + eps)
    backward   dx = weight / sqrt(M / n + eps) * (dy - S(dy) / n - xhat S(dy xhat) / n),   S: the sum over all elements of all ranks

The gradients of weight and bias stay this rank's part: whoever adds or averages gradients over ranks does it for these as for any
other. Every rank must call the same layers in the same order, also one without images: it gives [0, C, ...], gets an empty result
with a graph, must go backward through it, adds nothing to the sums, and its running statistics move like everyone's.

On GPUs torch's nn.SyncBatchNorm does all this, but for two things: under autocast a rank without images would send its zeros in half
precision to ranks that send float32, and its parameters would get no gradient at all, on which ZeRO stumbles. It refuses tensors on
the CPU, for which the rest of this module is. Elements are float32, float64
or, under autocast, bfloat16 or float16 (the result is then too, the statistics are not). Local sums are taken in the elements' precision
in two passes and around a mean, so a channel far from zero loses nothing; what ranks exchange and combine is float64.

What is left out: gradients of gradients, pickling a network, and layers that are not one of torch's three, which are refused.
What it costs: two collectives a layer, of 16 C + 8 and 16 C bytes a rank, which are waited for. Without them a step through these lines
takes 1.2 to 1.7 times as long as through torch's own layer, because they write the centred elements once more in each direction.
"""

import copy
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from engine.ranks.ranks import Ranks

_WHAT = "batch statistics"  # in Ranks.sent_bytes


def synchronised(network: nn.Module, ranks: Ranks) -> nn.Module:
    """The network with its batch normalisations synchronised over the ranks; parameters and buffers are the same objects.

    The network itself is changed, as torch's conversion does it; with one rank it is left as it is. Evaluation mode stays local.
    Raises ValueError where a layer is a batch normalisation, but not one of torch's three.
    """
    if ranks.size == 1:
        return network
    layers = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    for name, module in layers.items():
        if type(module) not in _OURS:
            raise ValueError(
                f"layer {name or 'network'} is a {type(module).__name__}, which several ranks cannot share; "
                "choose a backbone with nn.BatchNorm1d, 2d or 3d, or one rank"
            )
    if ranks.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        for converted in network.modules():
            if type(converted) is nn.SyncBatchNorm:
                converted.__class__ = SynchronisedOnGpu
        return network
    for module in layers.values():
        # Nothing but the class changes: hooks, names in state_dict, mode and what an optimizer holds stay.
        module.__class__ = _OURS[type(module)]
        module.ranks = ranks  # type: ignore[assignment]
    return network


class SynchronisedOnGpu(nn.SyncBatchNorm):
    """torch's, for a rank without images too: it sends float32 as the others do, and has gradients of zero and not none."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.numel():
            return super().forward(input)
        wide = _wide(input)
        nothing = super().forward(wide) + wide  # for the gradient of what is before this layer
        if self.affine:
            nothing = nothing * _per_channel(self.weight, wide)
        if self.bias is not None:
            nothing = nothing + _per_channel(self.bias, wide)
        return nothing.to(input.dtype)


class _Synchronised(_BatchNorm):
    """What the three layers below share; x [B, C, ...] -> [B, C, ...] of the same dtype."""

    ranks: Ranks

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Raises ValueError, on every rank, where all of them together have fewer than two values a channel."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        count, mean_C, var_C = _statistics(input.detach(), self.ranks)
        if self.track_running_stats:
            self._remember(count, mean_C, var_C)
        dtype = torch.float64 if input.dtype is torch.float64 else torch.float32
        statistics = count, mean_C.to(dtype), var_C.to(dtype)
        return _Normalise.apply(input, self.weight, self.bias, *statistics, self.eps, self.ranks)

    @torch.no_grad()
    def _remember(self, count: int, mean_C: torch.Tensor, var_C: torch.Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running_C, now_C in ((self.running_mean, mean_C), (self.running_var, var_C * (count / (count - 1)))):
            running_C.mul_(1 - share).add_(now_C.to(running_C.dtype), alpha=share)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Synchronised":
        memo[id(self.ranks)] = self.ranks  # a copy belongs to the same ranks
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        return copied


class Synchronised1d(_Synchronised, nn.BatchNorm1d):
    """[B, C] or [B, C, L]"""


class Synchronised2d(_Synchronised, nn.BatchNorm2d):
    """[B, C, H, W]"""


class Synchronised3d(_Synchronised, nn.BatchNorm3d):
    """[B, C, T, H, W]"""


_OURS: dict[type, type[_Synchronised]] = {
    nn.BatchNorm1d: Synchronised1d,
    nn.BatchNorm2d: Synchronised2d,
    nn.BatchNorm3d: Synchronised3d,
}


def _statistics(x: torch.Tensor, ranks: Ranks) -> tuple[int, torch.Tensor, torch.Tensor]:
    """(elements a channel, mean float64 [C], biased variance float64 [C]) of all ranks together."""
    x = _wide(x)
    channels = x.shape[1]
    part = torch.zeros(1, 2 * channels + 1, dtype=torch.float64)  # of a rank without elements: zeros
    if here := x.numel() // channels:
        over = [axis for axis in range(x.dim()) if axis != 1]
        near_C = x.mean(over)
        centred = x - _per_channel(near_C, x)
        # The first mean is rounded; what is left of it is small, so its own mean is exact enough to repair both.
        left_C = centred.sum(over).double() / here
        part[0, 0] = here
        part[0, 1 : channels + 1] = near_C.double() + left_C
        part[0, channels + 1 :] = centred.square_().sum(over).double() - here * left_C.square()
    count_R1, mean_RC, m2_RC = ranks.gather(part, _WHAT).split([1, channels, channels], dim=1)
    count = int(count_R1.sum())
    if count <= 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got {count} on all ranks together; "
            f"input size of this one: {x.shape}"
        )
    mean_C = (count_R1 * mean_RC).sum(0) / count
    var_C = (m2_RC + count_R1 * (mean_RC - mean_C).square()).sum(0) / count
    return count, mean_C, var_C


class _Normalise(torch.autograd.Function):
    """Normalisation by given statistics, whose backward knows that they came from the elements of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_C: torch.Tensor | None,
        bias_C: torch.Tensor | None,
        count: int,
        mean_C: torch.Tensor,
        var_C: torch.Tensor,
        eps: float,
        ranks: Ranks,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight_C, mean_C, var_C)
        ctx.count, ctx.eps, ctx.ranks = count, eps, ranks
        return nn.functional.batch_norm(x, mean_C, var_C, weight_C, bias_C, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight_C, mean_C, var_C = ctx.saved_tensors
        wide = _wide(x)
        dx, (dweight_C, dbias_C) = torch.zeros_like(wide), mean_C.new_zeros(2, len(mean_C))
        if x.numel():  # torch's kernel divides by it and ends the process
            # As if the statistics were constants. This rank's gradients of weight and bias are also its sums of dy xhat and dy.
            dx, dweight_C, dbias_C = torch.ops.aten.native_batch_norm_backward(
                _wide(dy), wide, weight_C, mean_C, var_C, None, None, False, ctx.eps, [True, True, True]
            )
        if ctx.needs_input_grad[0]:
            sums_2C = ctx.ranks.sum(torch.stack([dbias_C, dweight_C]).double(), _WHAT) / ctx.count
            invstd_C = (var_C.double() + ctx.eps).rsqrt()
            scale_C = invstd_C if weight_C is None else invstd_C * weight_C
            # dx - scale (S(dy) / n + xhat S(dy xhat) / n)
            through = wide - _per_channel(mean_C, wide)
            through.mul_(_per_channel(scale_C * invstd_C * sums_2C[1], wide))
            dx = dx.sub_(through.add_(_per_channel(scale_C * sums_2C[0], wide))).to(x.dtype)
        scales, shifts = ctx.needs_input_grad[1:3]
        return dx, dweight_C if scales else None, dbias_C if shifts else None, None, None, None, None, None


def _wide(x: torch.Tensor) -> torch.Tensor:
    """float32 for half precision; else x."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _per_channel(values_C: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """[C] -> [1, C, 1, ...], of x's axes and dtype."""
    return values_C.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))
