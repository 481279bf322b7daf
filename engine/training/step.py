"""One optimizer step, in data order: features, admit, softmax, update.

Nothing here knows where batches come from, where rows go when they retire, or which rank has which rows. The trunk is anything with
forward, backward, update and discard (engine/trunk/trunk.py; the tests give features by hand), the rows are engine/rows/active_rows.py, and
the loss and its gradients over the rows of all ranks come from engine/methods/softmax.py.

Each rank works for the places of its lanes. A rank whose places are all empty takes part all the same, with a batch of none.

A step whose loss, or whose gradient at z or at a row, is not finite on any rank changes no weight of the trunk or of the rows; the
schedule, recency and the learning rate go on, and the log keeps an identity in its place. So does a step of whose images none can be read.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from datasets.batch import Batch
from engine.methods.softmax import MicroBatch, Softmax
from engine.ranks.ranks import Ranks
from engine.rows.active_rows import ActiveRows
from engine.training.reading import FILLED, UNREADABLE
from engine.training.stages import Stages


class Features(Protocol):
    """What a step asks of the network that is trained."""

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        """V tensors [B, C, H, W] -> z float [V*B, D], views one after the other, with its graph. B may be 0."""

    def backward(self, z_XD: torch.Tensor, dz_XD: torch.Tensor) -> None:
        """Add to the gradients, given the gradient at z of the loss of all ranks."""

    def update(self, lr: float) -> bool:
        """Apply the gradients; False where a loss scaler skipped the step. The same on every rank."""

    def discard(self) -> None:
        """Forget the gradients and the running statistics of this step."""


@dataclass
class StepResult:
    """Of all ranks together. loss: mean over filled places and views (nan where no place was filled). applied: weights changed.
    finite: the loss and its gradients were. filled: places.
    """

    loss: float
    applied: bool
    finite: bool
    filled: int


def train_step(
    batch: Batch,
    trunk: Features,
    rows: ActiveRows,
    softmax: Softmax,
    ranks: Ranks,
    *,
    lr: float,
    rows_lr: float,
    micro_batches: int,
    rows_grad_V: list[bool],
    stages: Stages,
    places_RP: np.ndarray | None = None,
) -> StepResult:
    """Train on one batch, of which this rank has G/R places in V views; see the module's docstring.

    places_RP   what places_of_all gave for this batch; None: it is asked here
    """
    places_RP = places_of_all(places_of(batch), ranks) if places_RP is None else places_RP
    filled_RP = places_RP == FILLED
    count = int(filled_RP.sum())
    if not count and (places_RP == UNREADABLE).any():
        rows.log.append(None)
        return StepResult(float("nan"), applied=False, finite=True, filled=0)
    weight_RP = filled_RP / max(count * len(batch.views), 1)
    slots_P: np.ndarray | None = None
    loss_sum, finite = 0.0, True

    # Every micro-batch takes its share of every lane, so that the empty places of a ragged end are spread over all of them.
    by_lane = np.arange(filled_RP.shape[1]).reshape(len(rows.lanes), micro_batches, -1)
    for places in by_lane.swapaxes(0, 1).reshape(micro_batches, -1):
        kept_RP = kept_places(filled_RP[:, places])
        kept = places[kept_RP[ranks.rank]]
        with stages("trunk_forward"):
            is_all = len(kept) == len(batch.filled_G)  # views may be in page-locked memory, and a selection is not
            z_XD = trunk.forward([view if is_all else view[torch.from_numpy(kept)] for view in batch.views])
            z_XD_detached = z_XD.detach().to(rows.w_KD.dtype)

        if slots_P is None:  # once per optimizer step
            with stages("admit"):
                first_view_PD = None
                if rows.start.feature:
                    first_view_PD = z_XD_detached.new_zeros(len(batch.filled_G), z_XD.shape[1])
                    first_view_PD[torch.from_numpy(kept)] = z_XD_detached[: len(kept)]
                slots_P = rows.admit(batch.step, batch.positions_G, batch.ids_G, first_view_PD)

        with stages("softmax"):
            micro = MicroBatch(z_XD_detached, slots_P[kept], kept_RP, weight_RP[:, places], rows_grad_V)
            loss, dz_XD, finite = softmax.add(micro)
            loss, finite = agreed(ranks, loss, finite)
            loss_sum += loss
            if not finite:
                break

        with stages("trunk_backward"):
            trunk.backward(z_XD, dz_XD)

    with stages("update"):
        applied = finite and trunk.update(lr)
        if applied:
            softmax.apply(rows_lr)
        else:
            softmax.discard()
        if not finite:
            trunk.discard()
        rows.log.append(rows_lr if applied else None)
    return StepResult(loss_sum if count and finite else float("nan"), applied, finite, count)


def places_of(batch: Batch) -> np.ndarray:
    """What each place of this rank is, uint8 [P]: EMPTY, FILLED or UNREADABLE."""
    places_P = batch.filled_G.astype(np.uint8)
    places_P[[one.place for one in batch.unreadable]] = UNREADABLE
    return places_P


def places_of_all(places_P: np.ndarray, ranks: Ranks) -> np.ndarray:
    """The same of every rank, uint8 [R, P]. Only the rank that decodes an image knows."""
    places = torch.from_numpy(places_P).to(ranks.device)
    return ranks.gather(places, "filled places").cpu().numpy().reshape(ranks.size, -1)


def kept_places(filled_RP: np.ndarray) -> np.ndarray:
    """The places that go through the trunk: the filled ones, since blank images would bend batch statistics.

    Fewer than two on all ranks cannot be normalised over a batch; then all go, and the empty ones weigh nothing in the loss.
    """
    return filled_RP if filled_RP.sum() >= 2 else np.ones_like(filled_RP)


def agreed(ranks: Ranks, loss: float, finite: bool) -> tuple[float, bool]:
    """The loss of all ranks, and whether all was finite on all of them."""
    if ranks.size == 1:
        return loss, finite
    told = torch.tensor([loss if finite else 0.0, float(not finite)], dtype=torch.float64, device=ranks.device)
    loss, not_finite = ranks.sum(told, "loss").tolist()
    return loss, not_finite == 0
