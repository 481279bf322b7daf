"""A method of tests: a loss over the whole batch of two views, every other sample of any rank a negative (NT-Xent, SimCLR).

loss_a = -log( exp(z_a.z_b / tau) / sum over all other samples c of exp(z_a.z_c / tau) ),    b the other view of a's image
"""

import math
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from configs.fields import AboveZero
from configs.methods import MethodSettings
from engine.methods.method import Figure, Method
from engine.methods.travel import Travel


class Settings(MethodSettings):
    kind: Literal["whole_batch"] = "whole_batch"
    temperature: AboveZero = 0.2

    def check(self, config):
        super().check(config)
        if len(config.data.sides) != 2:
            raise ValueError("method whole_batch wants two views of each image; set data.augment.views to 2")
        if config.schedule.micro_batches > 1:
            raise ValueError(
                "method whole_batch takes its negatives from the whole batch; set schedule.micro_batches to 1"
            )


class WholeBatch(Method):
    def __init__(self, settings, given):
        super().__init__()
        self.settings, self.ranks, self.lanes, self.batch = settings, given.ranks, given.lanes, given.schedule.batch
        self.agreement = self.found = 0.0

    def chance_loss(self):
        return math.log(2 * self.batch - 1)

    def add(self, micro):
        travel = Travel(self.ranks, self.lanes.in_batch_order(micro.forward_RP.size), micro.forward_RP, 2)
        z_XD = travel.gather(micro.z_XD).clone().requires_grad_()
        ranks_RP = np.broadcast_to(np.arange(self.ranks.size)[:, None], micro.forward_RP.shape)
        mine_X = torch.from_numpy(travel.of_places(ranks_RP) == self.ranks.rank)
        weight_X = torch.from_numpy(travel.of_places(micro.weight_RP)).float()
        partner_X = torch.arange(len(z_XD)).roll(len(z_XD) // 2)
        logits_XX = z_XD @ z_XD.T / self.settings.temperature
        logits_XX = logits_XX.fill_diagonal_(-math.inf)
        loss = (cross_entropy(logits_XX, partner_X, reduction="none") * weight_X * mine_X).sum()
        loss.backward()
        self.found = float((z_XD * z_XD[partner_X]).sum(1).mean().detach())
        # This rank's samples send gradients to all; what all of them send is summed where a sample lives.
        dz_XD = travel.give_back(z_XD.grad)
        return float(loss.detach()), dz_XD, bool(loss.isfinite() and dz_XD.isfinite().all())

    def apply(self, lr):
        self.agreement = self.found

    def discard(self):
        pass

    def shared(self):
        return {"agreement": {"last": torch.tensor([self.agreement], dtype=torch.float64)}}

    def load_shared(self, components):
        self.agreement = float(components["agreement"]["last"])

    def figures(self, at_end=False):
        return {"view_agreement": Figure(self.agreement, "same")}


make = WholeBatch
