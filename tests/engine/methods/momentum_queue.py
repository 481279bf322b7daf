"""A method of tests, as MoCo (He et al. 2020): keys of a momentum copy of the trunk, and a queue of them as negatives.

loss = -log softmax([z.k, z.queue] / tau), label 0; z: view 0 through the trunk, k: view 1 through the copy. Applied steps alone move both.
"""

from typing import Literal

import torch
from torch.nn.functional import cross_entropy, normalize

from configs.fields import AboveZero, Fraction, Positive
from configs.methods import MethodSettings
from engine.methods.method import Figure, Method, forward_places
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
        self.trunk, self.copy = given.trunk, synchronised(given.network().requires_grad_(False), given.ranks)
        self.queue_KD = normalize(torch.randn(settings.queue, settings.dim, generator=torch.manual_seed(given.seed)))
        self.pointer, self.enqueued, self.before = 0, 0, None

    def chance_loss(self):
        return torch.tensor(1.0 + len(self.queue_KD)).log().item()

    def begin(self, batch, filled_RP):
        self.before = [buffer.clone() for buffer in self.copy.buffers()]
        kept = torch.from_numpy(forward_places(filled_RP)[self.ranks.rank])
        self.filled_G = torch.from_numpy(filled_RP.reshape(-1))[self.order_G]
        self.keys_PD = torch.zeros(len(kept), self.settings.dim)
        self.keys_PD[kept] = self.copy.train()([batch.views[1][kept]])

    def add(self, micro):
        z_BD = micro.z_XD.clone().requires_grad_()
        positive_B1 = (z_BD * self.keys_PD[torch.from_numpy(micro.places_B)]).sum(1, keepdim=True)
        logits = torch.cat([positive_B1, z_BD @ self.queue_KD.T], 1) / self.settings.temperature
        weight_B = torch.from_numpy(micro.weight_RP[self.ranks.rank, micro.forward_RP[self.ranks.rank]]).float()
        loss = weight_B @ cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="none")
        loss.backward()
        return float(loss.detach()), z_BD.grad, bool(loss.isfinite() and z_BD.grad.isfinite().all())

    def apply(self, lr):
        for key, weight in zip(self.copy.parameters(), self.trunk.network.parameters(), strict=True):
            key.lerp_(weight.detach(), 1 - self.settings.momentum)
        keys_GD = self.ranks.gather(self.keys_PD, "keys")[self.order_G]
        oldest_GD = self.queue_KD[self.pointer : self.pointer + len(keys_GD)]
        oldest_GD[self.filled_G] = keys_GD[self.filled_G]
        self.pointer = (self.pointer + len(keys_GD)) % len(self.queue_KD)
        self.enqueued, self.before = self.enqueued + int(self.filled_G.sum()), None

    def discard(self):
        for buffer, was in zip(self.copy.buffers(), self.before or self.copy.buffers(), strict=True):
            buffer.copy_(was)
        self.before = None

    def shared(self):
        numbers = torch.tensor([self.pointer, self.enqueued])
        state = {**self.copy.state_dict(), "queue": self.queue_KD, "numbers": numbers}
        return {"keys": {name: one.detach().clone() for name, one in state.items()}}

    def load_shared(self, components):
        state = dict(components["keys"])
        self.queue_KD.copy_(state.pop("queue"))
        self.pointer, self.enqueued = state.pop("numbers").tolist()
        self.copy.load_state_dict(state)

    def figures(self, at_end=False):
        return {"keys_enqueued": Figure(self.enqueued, "same")}


make = MomentumQueue
