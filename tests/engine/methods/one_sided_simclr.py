"""Not tests: SimCLR whose views are told from others that stand still, to see what it is worth that both ends of a pair move.

    python -m tests.engine.methods.one_sided_simclr --config configs/simclr.json output=runs/one_sided

trains as launch.py does, but a view gets its gradient from its own loss alone, as PIC's features get theirs from rows and MoCo's from keys:

    dz_a = 2/tau w_a (sum over c of p_ac z_c  -  z_b)

in the words of engine/methods/simclr.py. Twice, so that it is as long as the gradient of both ends: those are equal in the mean.
"""

import sys

import torch

import launch
from engine.methods import simclr


class OneSided(simclr.Contrast):
    """For one rank."""

    def loss_and_gradient(self, lse_X: torch.Tensor) -> tuple[float, torch.Tensor]:
        loss, _ = super().loss_and_gradient(lse_X)
        z_XD, weight_X, mine_M = self.samples
        toward_MX = torch.softmax(self.logits_MX, 1)
        toward_MX.scatter_add_(1, self.partner_M[:, None], torch.full_like(toward_MX[:, :1], -1))
        toward_MX *= weight_X[mine_M, None]
        return loss, (2 / self.temperature) * (toward_MX.to(z_XD.dtype) @ z_XD)


if __name__ == "__main__":
    simclr.Contrast = OneSided
    sys.exit(launch.main(sys.argv[1:]))
