"""The softmax over rows that stay where their lanes are: features travel to the rows, and gradients back.

    1. every rank's features are gathered:                       z of all ranks, in the order of the batch
    2. each rank sums over its own rows:                         max, sum of exp, and the negatives' part of dz
    3. two reductions of one number a sample:                    the log-sum-exp over all rows
    4. the gradient of a row is complete where the row lives:    it is spent there (engine/methods/row_gradients.py)
    5. what the ranks have of dz is summed and given back:       dz of this rank's samples

A sample's own row is always on its own rank, because a rank works for the images of its lanes; so positives and losses need no
exchange. On the wire are 2 V G D numbers and 2 V G scalars a step, whatever K and N are. Every rank computes with the same samples
in the same order, so the sum that makes a row's gradient is the same for every R but for the last digits of the log-sum-exp.

With one rank steps 1, 3 and 5 are nothing, and the rest is the code of many.
"""

import numpy as np
import torch

from engine.methods.row_gradients import RowGradient, SoftmaxInputs, is_finite
from engine.methods.softmax import Samples, loss_and_features_gradient
from engine.methods.travel import Travel
from engine.ranks.ranks import Ranks
from engine.rows.active_rows import ActiveRows
from kernels.sampled_softmax import combine, softmax_forward_negatives


class LaneSoftmax:
    """Implements engine.methods.softmax.Softmax.

    gradient    how the rows' gradient becomes their step
    decoupled   a sample's own row is left out of its sum
    """

    name = "lanes"

    def __init__(
        self, rows: ActiveRows, ranks: Ranks, gradient: RowGradient, *, temperature: float, decoupled: bool = False
    ) -> None:
        self.rows, self.ranks, self.gradient, self.temperature = rows, ranks, gradient, temperature
        self.decoupled = decoupled
        self.why = f"the gradient of rows is {gradient.name}: {gradient.why}"
        if gradient.name == "fused":  # the softmax's own code makes the rows' step
            self.rows_step = f"{rows.kernels['sampled_softmax']} (fused)"
        else:
            self.rows_step = "none" if gradient.name == "none" else rows.kernels["row_update"]

    def add(self, samples: Samples) -> tuple[float, torch.Tensor, bool]:
        rows, views = self.rows, len(samples.rows_grad_V)
        device = rows.w_KD.device
        travel = Travel(self.ranks, rows.lanes.in_batch_order(samples.forward_RP.size), samples.forward_RP, views)
        z_XD = travel.gather(samples.z_XD)
        targets_X = torch.from_numpy(travel.targets(samples.slots_B)).to(device)
        weight_X = torch.from_numpy(travel.of_places(samples.weight_RP)).to(rows.w_KD)
        rows_need_grad_X = torch.tensor(samples.rows_grad_V).repeat_interleave(len(z_XD) // views).to(device)
        mask_K = rows.mask()
        forward = softmax_forward_negatives(
            z_XD,
            rows.w_KD,
            targets_X,
            temperature=self.temperature,
            row_mask_K=mask_K,
            leave_own_out=self.decoupled,
            backend=rows.kernels["sampled_softmax"],
        )
        lse_X = self._over_all_rows(forward.max_B, forward.sumexp_B)
        inputs = SoftmaxInputs(
            z_XD,
            targets_X,
            lse_X,
            weight_X,
            mask_K,
            rows_need_grad_X,
            forward.shortest,
            self.temperature,
            self.decoupled,
        )
        loss, part_XD = loss_and_features_gradient(forward, rows.w_KD, inputs)
        dz_XD = travel.give_back(part_XD)
        # A feature that is not finite may belong to a row that could not start at it, and then has no loss of its own.
        finite = is_finite(z_XD) and is_finite(dz_XD) and bool(np.isfinite(loss))
        return loss, dz_XD, finite and self.gradient.add(inputs)

    def apply(self, eta: float) -> None:
        self.gradient.apply(eta)

    def discard(self) -> None:
        self.gradient.discard()

    def _over_all_rows(self, max_X: torch.Tensor, sumexp_X: torch.Tensor) -> torch.Tensor:
        """The log-sum-exp over the rows of all ranks, float64."""
        if self.ranks.size == 1:
            return combine([(max_X, sumexp_X)])
        largest_X = self.ranks.max(max_X.clone(), "statistics")
        # A rank without rows has a maximum of -inf and a sum of 0.
        sumexp_X = self.ranks.sum(sumexp_X * torch.exp(max_X - largest_X), "statistics")
        return combine([(largest_X, sumexp_X)])
