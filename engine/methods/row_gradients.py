"""From the softmax's statistics to new rows, in one of two ways that give the same rows.

    fused     the gradient of a row is spent on its step of SGD where it is complete, a tile of rows at a time: [K, D] numbers are
              neither written nor read again. It needs the whole gradient at once, and rows may change only once the step is known
              to be applied: so it waits for that, with the softmax's inputs in its hands
    written   the gradient of all K rows is written, added up over micro-batches, its norm cut if asked, and then applied

`row_gradient` chooses by what the run asks for, and says why. Both work for every backend of the ops. A third, `NoGradient`, is for methods
whose loss moves no row.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from engine.ranks.ranks import Ranks
from engine.rows.active_rows import ActiveRows
from kernels.sampled_softmax import softmax_rows_gradient, softmax_rows_update_


@dataclass
class SoftmaxInputs:
    """What the gradient of rows is made from; see kernels.sampled_softmax.

    shortest    the length of the shortest row
    decoupled   the own row is left out of the sum that its sample is told from
    """

    z_XD: torch.Tensor
    targets_X: torch.Tensor
    lse_X: torch.Tensor
    weight_X: torch.Tensor
    row_mask_K: torch.Tensor | None
    rows_need_grad_X: torch.Tensor
    shortest: torch.Tensor
    temperature: float
    decoupled: bool = False

    @property
    def own_X(self) -> torch.Tensor | None:
        """The coefficient of the own row's term, where it is not p - 1; float64 [X]."""
        return -torch.ones_like(self.lse_X, dtype=torch.float64) if self.decoupled else None


class RowGradient(Protocol):
    """name: "fused", "written" or "none"; why: what makes it so."""

    name: str
    why: str

    def add(self, inputs: SoftmaxInputs) -> bool:
        """Take one micro-batch's part; False where it is not finite."""

    def apply(self, eta: float) -> None:
        """One step of SGD for all rows with what was added; then start anew."""

    def discard(self) -> None:
        """Forget what was added."""


def row_gradient(rows: ActiveRows, ranks: Ranks, *, micro_batches: int, clip: float) -> RowGradient:
    """The way for a run with so many micro-batches a step, and gradients of all ranks' rows of norm `clip` at most (0: any)."""
    reason = why_written(micro_batches, clip)
    return WrittenGradient(rows, ranks, clip, reason) if reason else FusedUpdate(rows)


def why_written(micro_batches: int, clip: float) -> str | None:
    """What keeps the gradient from being spent where it is made; None where nothing does."""
    if micro_batches > 1:
        return "it is added up over micro-batches"
    return "its norm is cut" if clip > 0 else None


class WrittenGradient:
    name = "written"

    def __init__(self, rows: ActiveRows, ranks: Ranks, clip: float, why: str) -> None:
        self.rows, self.ranks, self.clip, self.why = rows, ranks, clip, why
        self._sum_KD: torch.Tensor | None = None

    def add(self, inputs: SoftmaxInputs) -> bool:
        part_KD = whole_gradient(self.rows.w_KD, inputs, self.rows.kernels["sampled_softmax"])
        self._sum_KD = part_KD if self._sum_KD is None else self._sum_KD.add_(part_KD)
        return is_finite(self._sum_KD)

    def apply(self, eta: float) -> None:
        assert self._sum_KD is not None
        self.rows.update(eta, self._cut(self._sum_KD))
        self.discard()

    def discard(self) -> None:
        self._sum_KD = None

    def _cut(self, drows_KD: torch.Tensor) -> torch.Tensor:
        """The gradient, scaled in place so that the norm of that of all ranks is at most `clip`; 0: as it is."""
        if not self.clip:
            return drows_KD
        if self.ranks.size == 1:
            norm = drows_KD.norm()
        else:
            norm = self.ranks.sum(drows_KD.double().square().sum(), "norm of rows' gradient").sqrt().to(drows_KD)
        return drows_KD.mul_(self.clip / norm.clamp(min=self.clip))


class FusedUpdate:
    name = "fused"
    why = "one micro-batch a step, no clipping"

    def __init__(self, rows: ActiveRows) -> None:
        self.rows = rows
        self._inputs: SoftmaxInputs | None = None

    def add(self, inputs: SoftmaxInputs) -> bool:
        assert self._inputs is None
        self._inputs = inputs
        # With a finite log-sum-exp p is at most 1, which bounds what a row can get; only a row of 1e-38 leaves a doubt.
        largest = float(inputs.weight_X.abs().sum()) / inputs.temperature / float(inputs.shortest)
        if largest < torch.finfo(self.rows.w_KD.dtype).max:
            return True
        return is_finite(whole_gradient(self.rows.w_KD, inputs, self.rows.kernels["sampled_softmax"]))

    def apply(self, eta: float) -> None:
        assert self._inputs is not None and self.rows.u_KD is not None
        inputs, log = self._inputs, self.rows.log
        softmax_rows_update_(
            inputs.z_XD,
            self.rows.w_KD,
            self.rows.u_KD,
            inputs.targets_X,
            inputs.lse_X,
            inputs.weight_X,
            temperature=inputs.temperature,
            eta=eta,
            momentum=float(log.momentum),
            weight_decay=float(log.weight_decay),
            nesterov=log.nesterov,
            row_mask_K=inputs.row_mask_K,
            rows_need_grad_B=inputs.rows_need_grad_X,
            own_B=inputs.own_X,
            backend=self.rows.kernels["sampled_softmax"],
        )
        self.discard()

    def discard(self) -> None:
        self._inputs = None


class NoGradient:
    """For rows that the loss does not move: nothing is made, and nothing is kept."""

    name = "none"
    why = "the loss does not move them"

    def add(self, inputs: SoftmaxInputs) -> bool:
        return True

    def apply(self, eta: float) -> None:
        pass

    def discard(self) -> None:
        pass


def is_finite(values: torch.Tensor) -> bool:
    """Whether all are; without the [K, D] flags that torch.isfinite(values).all() would make."""
    if not values.numel():  # a rank without rows
        return True
    low, high = values.aminmax()  # NaN where there is one
    return bool(torch.isfinite(low) and torch.isfinite(high))


def whole_gradient(rows_KD: torch.Tensor, inputs: SoftmaxInputs, backend: str) -> torch.Tensor:
    """drows [K, D] of what was added."""
    return softmax_rows_gradient(
        inputs.z_XD,
        rows_KD,
        inputs.targets_X,
        inputs.lse_X,
        inputs.weight_X,
        temperature=inputs.temperature,
        row_mask_K=inputs.row_mask_K,
        rows_need_grad_B=inputs.rows_need_grad_X,
        own_B=inputs.own_X,
        backend=backend,
    )
