"""Not tests: a method under the engine's own step with a small network and torch alone, on any number of ranks; what the dense twins see.

Images are vectors of numbers, keyed by (instance, view, step). The order of visits is a real schedule, whose ragged end has empty places.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from datasets.batch import Batch
from datasets.schedule import Schedule
from engine.methods.stages import Stages
from engine.ranks.lanes import Lanes
from engine.training.step import Dealing, train_step
from engine.trunk.batch_norm import synchronised

WIDTH = 6


@dataclass(frozen=True)
class Case:
    size: int = 74
    window: int = 32
    stride: int = 16
    batch: int = 8
    lanes: int = 2
    micro_batches: int = 1
    dim: int = 5
    steps: int = 24
    lr: float = 0.5
    seed: int = 3
    norm: bool = True

    @property
    def schedule(self):
        return Schedule(self.seed, self.size, self.window, self.stride, self.batch, 2, self.lanes)

    def network(self):
        return Small(self.dim, self.norm).double()

    def images(self, step):
        """(views, each float64 [G, WIDTH], and ids_G) of the whole batch, in the order of lanes."""
        ids_G = self.schedule.instances(self.schedule.positions(step))
        views = np.zeros((2, self.batch, WIDTH))
        for place, instance in enumerate(ids_G.tolist()):
            if instance >= 0:
                picture = np.random.default_rng(instance).normal(size=WIDTH)
                for view in range(2):
                    views[view, place] = picture + np.random.default_rng([instance, view, step]).normal(size=WIDTH)
        return [torch.from_numpy(view) for view in views], ids_G


class Small(nn.Module):
    """[B, WIDTH] -> unit vectors [B, dim], with batch statistics on the way."""

    def __init__(self, dim, norm):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.layers = nn.Sequential(
                nn.Linear(WIDTH, 9), nn.BatchNorm1d(9) if norm else nn.Identity(), nn.Tanh(), nn.Linear(9, dim)
            )

    def forward(self, views):
        return torch.cat([normalize(self.layers(view)) for view in views])


class PlainTrunk:
    """engine.training.step.Features with torch alone: SGD without momentum."""

    def __init__(self, network, ranks):
        self.network, self.ranks = synchronised(network, ranks), ranks
        self.autocast = nullcontext

    def forward(self, views):
        return self.network(views)

    def backward(self, z_XD, dz_XD):
        (z_XD * dz_XD).sum().backward()

    def update(self, lr):
        for weight in self.network.parameters():
            weight.data.sub_(self.ranks.sum(weight.grad, "test"), alpha=lr)
            weight.grad = None
        return True

    def discard(self):
        for weight in self.network.parameters():
            weight.grad = None


def given(case, ranks, trunk):
    """As far as methods without rows look at it (engine.methods.method.Given)."""
    lanes = Lanes(case.lanes, ranks.rank, ranks.size)
    return SimpleNamespace(
        seed=case.seed,
        ranks=ranks,
        lanes=lanes,
        schedule=case.schedule,
        trunk=trunk,
        network=case.network,
        micro_batches=case.micro_batches,
    )


def part_of_rank(case, ranks, step):
    """The batch as this rank has it."""
    views, ids_G = case.images(step)
    mine = np.arange(case.batch).reshape(case.lanes, -1)[ranks.rank :: ranks.size].reshape(-1)
    return Batch(step, [view[torch.from_numpy(mine)] for view in views], ids_G[mine], ids_G[mine], ids_G[mine] >= 0)


def train(case, ranks, trunk, method, views):
    """The losses of the case's steps."""
    dealing = Dealing(case.lanes // ranks.size, case.micro_batches, views)
    return [
        train_step(
            part_of_rank(case, ranks, step), trunk, method, ranks, lr=case.lr, dealing=dealing, stages=Stages()
        ).loss
        for step in range(case.steps)
    ]


def weights_of(network):
    return {name: one.detach().clone() for name, one in network.named_parameters()}
