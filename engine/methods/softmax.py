"""What PIC asks of its softmax: the loss and its gradients over the active rows of all ranks, then one step of the rows.

There are two ways to share the rows out, and a run takes one of them (`method.sharding`):

    lanes    engine/methods/lane_softmax.py: features travel, rows stay. Bytes on the wire do not depend on K
    zero3    engine/methods/zero3_softmax.py: the rows are a parameter that DeepSpeed partitions, gathers and trains. O(K D) bytes a step
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from engine.methods.row_gradients import SoftmaxInputs
from kernels.sampled_softmax import Forward, features_gradient


@dataclass
class Samples:
    """The samples of one micro-batch, with the slots of their rows. B: this rank's places that go through the network.

    z_XD        the features of these places, [V B, D], views one after the other, detached, in the rows' dtype
    slots_B     int64, the slot of each place's row on this rank; -1 = empty
    forward_RP  bool [R, P], of each rank's places those that go through its network; the same on every rank
    weight_RP   float64 [R, P], what the loss of a view of this place weighs; 0 = empty
    rows_grad_V bool of each view, False: its loss sends no gradient into rows
    """

    z_XD: torch.Tensor
    slots_B: np.ndarray
    forward_RP: np.ndarray
    weight_RP: np.ndarray
    rows_grad_V: list[bool]


class Softmax(Protocol):
    """name: "lanes" or "zero3"; why: what else a reader of the log should know, one line."""

    name: str
    why: str
    rows_step: str  # what makes the rows' step, for summary.json

    def add(self, samples: Samples) -> tuple[float, torch.Tensor, bool]:
        """Take one micro-batch: (weighted loss of this rank's samples, d(loss of all ranks)/dz [V B, D], whether all was finite).

        All ranks call it together, and are to agree on the last before they go on: one rank's rows may overflow alone.
        """

    def apply(self, eta: float) -> None:
        """One step of SGD for the rows with what was added; then start anew."""

    def discard(self) -> None:
        """Forget what was added."""


def loss_and_features_gradient(
    forward: Forward, rows_KD: torch.Tensor, inputs: SoftmaxInputs
) -> tuple[float, torch.Tensor]:
    """(weighted loss of the samples whose row is among `rows_KD`, what these rows make of d(loss of all ranks)/dz [X, D])."""
    own_X = (inputs.lse_X - forward.positive_B) * inputs.weight_X
    loss = float(torch.where(inputs.targets_X >= 0, own_X, 0.0).sum())
    dz_XD = features_gradient(
        forward,
        inputs.z_XD,
        rows_KD,
        inputs.targets_X,
        inputs.lse_X,
        inputs.weight_X,
        temperature=inputs.temperature,
        row_mask_K=inputs.row_mask_K,
        own_B=inputs.own_X,
    )
    return loss, dz_XD
