"""Not tests: PIC whose recent negatives stand for all rows (the term logQ), to see what that is worth. One rank.

    python -m tests.engine.methods.weighted_negatives --config configs/fashion_mnist.json output=runs/weighted ...

trains as launch.py does, with this softmax: e_own + a sum of e_j over the other active rows j, a = (N - 1) / (active - 1), in the place of
the plain sum. The softmax op can do it as it is: it leaves the own row out, and takes the coefficient of its term from outside.
"""

import sys
from dataclasses import dataclass

import numpy as np
import torch

import launch
from engine.methods import pic
from engine.methods.lane_softmax import LaneSoftmax
from engine.methods.row_gradients import SoftmaxInputs, is_finite
from engine.methods.softmax import loss_and_features_gradient
from kernels.sampled_softmax import combine, softmax_forward_negatives


@dataclass
class WeightedInputs(SoftmaxInputs):
    own_given_X: torch.Tensor | None = None

    @property
    def own_X(self):
        return self.own_given_X


class WeightedSoftmax(LaneSoftmax):
    """As LaneSoftmax; every place of the batch has an image."""

    def add(self, samples):
        rows, views = self.rows, len(samples.rows_grad_V)
        z_XD, mask_K = samples.z_XD, rows.mask()
        slots_X = torch.from_numpy(np.tile(samples.slots_B, views))
        weight_X = torch.from_numpy(np.tile(samples.weight_RP[0][samples.forward_RP[0]], views)).to(rows.w_KD)
        need_X = torch.tensor(samples.rows_grad_V).repeat_interleave(len(z_XD) // views)
        kernel = rows.kernels["sampled_softmax"]
        forward = softmax_forward_negatives(
            z_XD,
            rows.w_KD,
            slots_X,
            temperature=self.temperature,
            row_mask_K=mask_K,
            leave_own_out=True,
            backend=kernel,
        )
        log_a = float(np.log((rows.host.size - 1) / max(1, sum(rows.used) - 1)))
        own_X = forward.positive_B.double()
        lse_X = torch.logaddexp(combine([(forward.max_B, forward.sumexp_B)]).double() + log_a, own_X)
        # Of the other rows the softmax makes exp(l - lse + ln a): so that is the lse that it is told.
        coefficient_X = torch.expm1(own_X - lse_X)
        inputs = WeightedInputs(
            z_XD,
            slots_X,
            lse_X - log_a,
            weight_X,
            mask_K,
            need_X,
            forward.shortest,
            self.temperature,
            own_given_X=coefficient_X,
        )
        loss, dz_XD = loss_and_features_gradient(forward, rows.w_KD, inputs)
        loss += log_a * float(weight_X.sum())
        finite = is_finite(z_XD) and is_finite(dz_XD) and bool(np.isfinite(loss))
        return loss, dz_XD, finite and self.gradient.add(inputs)


if __name__ == "__main__":
    pic.LaneSoftmax = WeightedSoftmax
    sys.exit(launch.main(sys.argv[1:]))
