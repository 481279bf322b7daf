"""A method of tests: keys of a momentum copy of the trunk, and a queue of them as negatives (as in MoCo, He et al. 2020).

loss = -log softmax([z.k, z.queue] / tau), label 0;    z of view 0 through the trunk, k of view 1 through the copy
after an applied step: copy <- m copy + (1 - m) trunk, and the step's keys replace the oldest of the queue
"""

import math
from typing import Literal

import torch
from torch.nn.functional import cross_entropy, normalize

from configs.fields import AboveZero, Fraction, Positive
from configs.methods import MethodSettings
from engine.methods.method import Figure, Method, kept_places
from engine.trunk.batch_norm import synchronised


class Settings(MethodSettings):
    kind: Literal["momentum_queue"] = "momentum_queue"
    temperature: AboveZero = 0.2
    momentum: Fraction = 0.9
    queue: Positive = 256

    def trunk_views(self, sides):
        return (0,)

    def check(self, config):
        super().check(config)
        if len(config.data.sides) != 2 or self.queue % config.schedule.batch:
            raise ValueError("method momentum_queue wants two views of each image, and a queue of whole batches")


class MomentumQueue(Method):
    def __init__(self, settings, given):
        super().__init__()
        self.settings, self.ranks = settings, given.ranks
        self.order_G = torch.from_numpy(given.lanes.in_batch_order(given.schedule.batch))
        self.trunk, self.copy = given.trunk, synchronised(given.network(), given.ranks).to(given.ranks.device)
        self.copy.requires_grad_(False)
        generator = torch.Generator().manual_seed(given.seed)
        self.queue_KD = normalize(torch.randn(settings.queue, settings.dim, generator=generator))
        self.pointer = self.enqueued = 0
        self.before = None

    def chance_loss(self):
        return math.log(1 + len(self.queue_KD))

    def begin(self, batch, filled_RP):
        self.before = [buffer.clone() for buffer in self.copy.buffers()]
        kept = torch.from_numpy(kept_places(filled_RP)[self.ranks.rank])
        self.filled_G = torch.from_numpy(filled_RP.reshape(-1))[self.order_G]
        self.keys_PD = torch.zeros(len(kept), self.settings.dim)
        with torch.no_grad():
            self.keys_PD[kept] = self.copy.train()([batch.views[1][kept]])

    def add(self, micro):
        z_BD = micro.z_XD.clone().requires_grad_()
        positive_B1 = (z_BD * self.keys_PD[torch.from_numpy(micro.places_B)]).sum(1, keepdim=True)
        logits = torch.cat([positive_B1, z_BD @ self.queue_KD.T], 1) / self.settings.temperature
        loss_B = cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="none")
        weight_B = torch.from_numpy(micro.weight_RP[self.ranks.rank, micro.kept_RP[self.ranks.rank]]).float()
        loss = (loss_B * weight_B).sum()
        loss.backward()
        return float(loss.detach()), z_BD.grad, bool(loss.isfinite() and z_BD.grad.isfinite().all())

    def apply(self, lr):
        for key, weight in zip(self.copy.parameters(), self.trunk.network.parameters(), strict=True):
            key.lerp_(weight.detach(), 1 - self.settings.momentum)
        keys_GD = self.ranks.gather(self.keys_PD, "keys")[self.order_G]
        place = slice(self.pointer, self.pointer + len(keys_GD))
        self.queue_KD[place] = torch.where(self.filled_G[:, None], keys_GD, self.queue_KD[place])
        self.pointer = place.stop % len(self.queue_KD)
        self.enqueued += int(self.filled_G.sum())
        self.before = None

    def discard(self):
        for buffer, was in zip(self.copy.buffers(), self.before or self.copy.buffers(), strict=True):
            buffer.copy_(was)
        self.before = None

    def shared(self):
        numbers = torch.tensor([self.pointer, self.enqueued])
        copied = {name: tensor.detach().cpu().clone() for name, tensor in self.copy.state_dict().items()}
        return {"copy": copied, "queue": {"keys": self.queue_KD.clone(), "numbers": numbers}}

    def load_shared(self, components):
        self.copy.load_state_dict(components["copy"])
        self.queue_KD.copy_(components["queue"]["keys"])
        self.pointer, self.enqueued = components["queue"]["numbers"].tolist()

    def figures(self, at_end=False):
        return {"keys_enqueued": Figure(self.enqueued, "same")}


make = MomentumQueue
