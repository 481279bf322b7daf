"""One optimizer step, in data order: features, admit, softmax, update.

Nothing here knows where batches come from or where rows go when they retire. The trunk is anything with forward, backward,
update and discard (engine/trunk.py; the tests give features by hand), the rows are engine/active_rows.py, and how the softmax's
gradient becomes their next step is engine/row_gradients.py.

A step whose loss, or whose gradient at z or at a row, is not finite changes no weight of the trunk or of the rows; the schedule,
recency and the learning rate go on, and the log keeps an identity in its place.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from datasets.batch import Batch
from engine.active_rows import ActiveRows
from engine.row_gradients import RowGradient, SoftmaxInputs
from engine.stages import Stages
from kernels.sampled_softmax import combine, features_gradient, softmax_forward_negatives


class Features(Protocol):
    """What a step asks of the network that is trained."""

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        """V tensors [B, C, H, W] -> z float [V*B, D], views one after the other, with its graph."""

    def backward(self, z_XD: torch.Tensor, dz_XD: torch.Tensor) -> None:
        """Add to the gradients, given the loss's gradient at z."""

    def update(self, lr: float) -> bool:
        """Apply the gradients; False where a loss scaler skipped the step."""

    def discard(self) -> None:
        """Forget the gradients and the running statistics of this step."""


@dataclass
class StepResult:
    """loss: mean over filled places and views (nan where no place was filled). applied: weights changed. finite: the loss was."""

    loss: float
    applied: bool
    finite: bool
    filled: int


def train_step(
    batch: Batch,
    trunk: Features,
    rows: ActiveRows,
    *,
    lr: float,
    rows_lr: float,
    temperature: float,
    micro_batches: int,
    rows_grad_V: list[bool],
    row_gradient: RowGradient,
    stages: Stages,
) -> StepResult:
    """Train on one batch of G places and V views; see the module's docstring."""
    views = len(batch.views)
    count = int(batch.filled_G.sum())
    slots_G: np.ndarray | None = None
    loss_sum = 0.0

    # Every micro-batch takes its share of every lane, so that the empty places of a ragged end are spread over all of them.
    by_lane = np.arange(len(batch.filled_G)).reshape(rows.lanes, micro_batches, -1)
    for places in by_lane.swapaxes(0, 1).reshape(micro_batches, -1):
        kept = kept_places(batch.filled_G, places)
        with stages("trunk_forward"):
            z_XD = trunk.forward([view[torch.from_numpy(kept)] for view in batch.views])
            z_XD_detached = z_XD.detach().to(rows.w_KD.dtype)

        if slots_G is None:  # once per optimizer step
            with stages("admit"):
                first_view_GD = None
                if rows.start.feature:
                    first_view_GD = z_XD_detached.new_zeros(len(batch.filled_G), z_XD.shape[1])
                    first_view_GD[torch.from_numpy(kept)] = z_XD_detached[: len(kept)]
                slots_G = rows.admit(batch.step, batch.positions_G, batch.ids_G, first_view_GD)
                mask_K = rows.mask()

        with stages("softmax"):
            device = rows.w_KD.device
            targets_X = torch.from_numpy(np.tile(slots_G[kept], views)).to(device)
            weight_X = torch.from_numpy(np.tile(batch.filled_G[kept], views) / max(count * views, 1)).to(rows.w_KD)
            rows_need_grad_X = torch.tensor(rows_grad_V).repeat_interleave(len(kept)).to(device)
            forward = softmax_forward_negatives(
                z_XD_detached,
                rows.w_KD,
                targets_X,
                temperature=temperature,
                row_mask_K=mask_K,
                backend=rows.kernels["sampled_softmax"],
            )
            lse_X = combine([(forward.max_B, forward.sumexp_B)])
            loss = float(torch.where(targets_X >= 0, (lse_X - forward.positive_B) * weight_X, 0.0).sum())
            # A feature that is not finite may belong to a row that could not start at it, and then has no loss of its own.
            loss_sum += loss if torch.isfinite(z_XD_detached).all() else float("nan")
            if not np.isfinite(loss_sum):
                break
            dz_XD = features_gradient(
                forward,
                z_XD_detached,
                rows.w_KD,
                targets_X,
                lse_X,
                weight_X,
                temperature=temperature,
                row_mask_K=mask_K,
            )
            inputs = SoftmaxInputs(
                z_XD_detached, targets_X, lse_X, weight_X, mask_K, rows_need_grad_X, forward.shortest, temperature
            )
            if not (torch.isfinite(dz_XD).all() and row_gradient.add(inputs)):
                loss_sum = float("nan")
                break

        with stages("trunk_backward"):
            trunk.backward(z_XD, dz_XD)

    with stages("update"):
        finite = bool(np.isfinite(loss_sum))
        if finite:
            applied = trunk.update(lr)
        else:
            trunk.discard()
            applied = False
        if applied:
            row_gradient.apply(rows_lr)
        else:
            row_gradient.discard()
        rows.log.append(rows_lr if applied else None)
    return StepResult(loss_sum if count else float("nan"), applied, finite, count)


def kept_places(filled_G: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The places that go through the trunk: the filled ones, since blank images would bend batch statistics.

    Fewer than two cannot be normalised over a batch; then all go, and the empty ones weigh nothing in the loss.
    """
    filled = places[filled_G[places]]
    return filled if len(filled) >= 2 else places
