"""Runs of a harness case on several ranks: what the tests of many ranks share. The functions here run on each rank (tests/on_ranks.py)."""

from functools import partial

import numpy as np
import torch
from torch import nn

from engine.ranks.lanes import Lanes
from tests.engine.harness import (
    SHORT,
    GivenFeatures,
    capacities,
    engine_step,
    lane_softmax,
    make_batch,
    make_engine,
    rows_of_engine,
)

# Of few instances, since every step of DeepSpeed costs milliseconds.
SMALL = {**SHORT, "dtype": np.float32}


def held_rows(case, ranks):
    """The memory of the active rows as DeepSpeed's ZeRO-3 holds it."""
    from engine.trunk.optimizers import Sgd
    from engine.trunk.zero import PartitionedRows

    each = max(sum(capacities(case, Lanes(case.lanes, rank, ranks.size))) for rank in range(ranks.size))
    return PartitionedRows(
        each,
        case.dim,
        **engine_settings(case, ranks),
        rule=Sgd(case.momentum, case.weight_decay, case.nesterov),
    )


def engine_settings(case, ranks):
    """What rows and trunk have in common under DeepSpeed."""
    return {
        "ranks": ranks.size,
        "places": case.batch // ranks.size,
        "micro_batches": case.micro_batches,
        "clip": 0.0,
        "device": ranks.device,
    }


def make_rows(case, ranks, sharding, **options):
    """(rows, softmax) in one of the two ways to share rows out."""
    if sharding == "lanes":
        rows = make_engine(case, ranks=ranks, **options)
        return rows, lane_softmax(case, rows, ranks) if case.bank_momentum is None else None
    from engine.methods.zero3_softmax import Zero3Softmax

    held = held_rows(case, ranks)
    rows = make_engine(case, ranks=ranks, row_storage=(held.w_SD, held.u_SD), **options)
    return rows, Zero3Softmax(rows, held, ranks, temperature=case.temperature, decoupled=case.decoupled)


def all_rows(case, ranks, rows):
    """(w, u) of all N instances, caught up, from all ranks."""
    told = ranks.share(rows_of_engine(case, rows))
    return sum(w for w, _ in told), sum(u for _, u in told)


def train_on_given_features(ranks, case, sharding="lanes"):
    """(w, u, losses, visited) after the whole case."""
    rows, softmax = make_rows(case, ranks, sharding)
    dtype = torch.float64 if case.dtype is np.float64 else torch.float32
    trunk = GivenFeatures(dtype, case.views, case.dim, case.seed)
    losses = [engine_step(case, rows, trunk, step, ranks, softmax).loss for step in range(case.steps)]
    return *all_rows(case, ranks, rows), np.array(losses), sum(ranks.share(rows.visited))


class SmallNetwork(nn.Module):
    """Instance numbers as images -> unit-length features, with batch statistics on the way."""

    def __init__(self, dim):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("look", torch.randn(1000, 6, generator=generator), persistent=False)
        self.first, self.norm, self.last = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, dim)
        with torch.no_grad():
            for parameter in (self.first.weight, self.last.weight):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
            self.first.bias.zero_(), self.last.bias.zero_()

    def forward(self, views):
        x = torch.cat([self.look[view[:, 0, 0, 0].long()] for view in views])
        return nn.functional.normalize(self.last(torch.relu(self.norm(self.first(x)))).float())


class Watched:
    """A trunk that keeps the features it gave, step by step, of all ranks."""

    def __init__(self, trunk, ranks):
        self.trunk, self.ranks, self.given = trunk, ranks, []
        self.step, self.skip = 0, False

    def forward(self, views):
        z = self.trunk.forward(views)
        ids = views[0][:, 0, 0, 0].long().tolist()
        self.given.append(self.ranks.share((ids, z.detach().reshape(len(views), len(ids), z.shape[1]).numpy())))
        return z

    def backward(self, z, dz):
        self.trunk.backward(z, dz)

    def update(self, lr):
        return self.trunk.update(lr)

    def discard(self):
        self.trunk.discard()


def real_trunk(case, ranks, stage, rule=None, **block):
    from engine.trunk.optimizers import Sgd
    from engine.trunk.trunk import Trunk
    from engine.trunk.zero import ZeroEngine

    train = partial(
        ZeroEngine,
        **engine_settings(case, ranks),
        rule=rule or Sgd(case.momentum, 1e-4),
        config={"zero_optimization": {"stage": stage}, **block},
    )
    return Trunk(SmallNetwork(case.dim), ranks, train)


def trunk_goes_on(ranks, case, stage, state, steps, rule=None):
    """A fresh trunk takes up `state` (None: it starts) and does some steps on given gradients; (as it began, as it ended)."""
    trunk = real_trunk(case, ranks, stage, rule)
    if state is not None:
        trunk.load(*({name: torch.from_numpy(value) for name, value in part.items()} for part in state))
    began = trunk.state()
    for step in steps:
        batch = make_batch(case, step, Lanes(case.lanes, ranks.rank, ranks.size))
        z = trunk.forward(batch.views)
        trunk.backward(z, torch.sin(z.detach() * (step + 2)))
        assert trunk.update(0.1)
    return began, trunk.state()


def train_with_trunk(ranks, case, sharding, stage):
    """(w, u, features of every step as [{instance: z [V, D]}], losses, the trunk's state)."""
    rows, softmax = make_rows(case, ranks, sharding)
    trunk = real_trunk(case, ranks, stage)
    watched = Watched(trunk, ranks)
    losses = [engine_step(case, rows, watched, step, ranks, softmax).loss for step in range(case.steps)]
    features = [
        {instance: z[:, place] for ids, z in told for place, instance in enumerate(ids)} for told in watched.given
    ]
    return *all_rows(case, ranks, rows), features, np.array(losses), trunk.state()


def steps_of_a_loss_scaler(ranks, case, sharding, stage):
    """Of some steps in float16 of which the scaler skips the first two: (applied, rows before, rows after, eta in the log)."""
    trunk = real_trunk(case, ranks, stage, torch_autocast={"enabled": True, "dtype": "float16"})
    rows, softmax = make_rows(case, ranks, sharding)
    told = []
    for step in range(4):
        scale = 2.0**120 if step < 2 else 1.0  # the gradient of a float16 weight is then too large, or is not
        trunk.loss_scale = (scale, 0)
        before = rows.w_KD.clone()
        applied = engine_step(case, rows, Watched(trunk, ranks), step, ranks, softmax).applied
        stayed = [slot for slot in range(rows.size) if before[slot].any()]  # others were admitted in this step
        told.append((applied, before[stayed].numpy(), rows.w_KD[stayed].clone().numpy(), rows.log.etas()[-1]))
    return told
