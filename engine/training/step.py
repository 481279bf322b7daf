"""One optimizer step, in data order: begin, trunk, loss, trunk's gradient, update.

Nothing here knows where batches come from, or what a method keeps. The trunk is anything with forward, backward, update and discard
(engine/trunk/trunk.py; the tests give features by hand), the method is engine/methods/method.py.

Each rank works for the places of its lanes. A rank whose places are all empty takes part all the same, with a batch of none.

A step whose loss, or whose gradient at z or at a row, is not finite on any rank changes no weight of the trunk and nothing of the
method; the schedule and the learning rate go on. So does a step of whose images none can be read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from datasets.batch import Batch
from engine.methods.method import Method, MicroBatch, forward_places
from engine.methods.stages import Stages
from engine.ranks.ranks import Ranks
from engine.training.reading import FILLED, UNREADABLE


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


@dataclass(frozen=True)
class Dealing:
    """How the places of a rank become micro-batches.

    lanes           of this rank; their places lie one lane after the other
    micro_batches   A
    views           which of an image's views go through the trunk
    """

    lanes: int
    micro_batches: int
    views: Sequence[int]

    def places(self, count: int) -> Iterator[np.ndarray]:
        """The places of each micro-batch, int64.

        Each takes its share of every lane, so that the empty places of a ragged end are spread over all of them. With 8 places, two
        lanes and two micro-batches: [0, 1, 4, 5], [2, 3, 6, 7].
        """
        by_lane = np.arange(count).reshape(self.lanes, self.micro_batches, -1)
        yield from by_lane.swapaxes(0, 1).reshape(self.micro_batches, -1)


def train_step(
    batch: Batch,
    trunk: Features,
    method: Method,
    ranks: Ranks,
    *,
    lr: float,
    dealing: Dealing,
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
        method.discard()
        return StepResult(float("nan"), applied=False, finite=True, filled=0)
    weight_RP = filled_RP / max(count * len(dealing.views), 1)
    loss_sum, finite = 0.0, True

    method.begin(batch, filled_RP)
    for places in dealing.places(filled_RP.shape[1]):
        forward_RP = forward_places(filled_RP[:, places])
        forward_B = places[forward_RP[ranks.rank]]
        with stages("trunk_forward"):
            z_XD = trunk.forward(views_of(batch, dealing.views, forward_B))
        with stages("softmax"):
            micro = MicroBatch(z_XD.detach(), forward_B, forward_RP, weight_RP[:, places])
            loss, dz_XD, finite = method.add(micro)
            loss, finite = agreed(ranks, loss, finite)
            loss_sum += loss
        if not finite:
            break
        with stages("trunk_backward"):
            trunk.backward(z_XD, dz_XD)

    with stages("update"):
        with stages("trunk_update"):
            applied = finite and trunk.update(lr)
        if applied:
            method.apply(lr)
        else:
            method.discard()
        if not finite:
            trunk.discard()
    return StepResult(loss_sum if count and finite else float("nan"), applied, finite, count)


def views_of(batch: Batch, views: Sequence[int], forward_B: np.ndarray) -> list[torch.Tensor]:
    """The views that go through the trunk, of the places `forward_B`."""
    chosen = [batch.views[view] for view in views]
    if len(forward_B) == len(batch.filled_G):  # views may be in page-locked memory, and a selection is not
        return chosen
    return [view[torch.from_numpy(forward_B)] for view in chosen]


def places_of(batch: Batch) -> np.ndarray:
    """What each place of this rank is, uint8 [P]: EMPTY, FILLED or UNREADABLE."""
    places_P = batch.filled_G.astype(np.uint8)
    places_P[[one.place for one in batch.unreadable]] = UNREADABLE
    return places_P


def places_of_all(places_P: np.ndarray, ranks: Ranks) -> np.ndarray:
    """The same of every rank, uint8 [R, P]. Only the rank that decodes an image knows."""
    places = torch.from_numpy(places_P).to(ranks.device)
    return ranks.gather(places, "filled places").cpu().numpy().reshape(ranks.size, -1)


def agreed(ranks: Ranks, loss: float, finite: bool) -> tuple[float, bool]:
    """The loss of all ranks, and whether all was finite on all of them."""
    if ranks.size == 1:
        return loss, finite
    sums = torch.tensor([loss if finite else 0.0, float(not finite)], dtype=torch.float64, device=ranks.device)
    loss, not_finite = ranks.sum(sums, "loss").tolist()
    return loss, not_finite == 0


def seed_generators(seed: int, device: torch.device) -> None:
    """torch.manual_seed for the CPU and `device`. It takes 0.4 ms of each step where there is no GPU, to note who asked."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
