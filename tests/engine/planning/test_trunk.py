"""The plan of a trunk beside all tensors that DeepSpeed really has, by stage, on one and two ranks."""

import gc
import time
from functools import partial

import pytest
import torch

from engine.planning import components as names
from engine.planning.components import DEVICE, START
from engine.planning.measured import shared_bytes
from engine.planning.trunk import TrunkSizes, trunk_components
from engine.ranks.ranks import Ranks
from engine.trunk.network import make_network
from engine.trunk.optimizers import AdamW, Rule, Sgd
from engine.trunk.trunk import Trunk
from engine.trunk.zero import ZeroEngine
from tests.on_ranks import on_ranks

LAYERS = (16, "M", 32)
WEIGHTS = "weights", "gradients", "optimizer", "bucket"


def all_tensors() -> dict[int, torch.Tensor]:
    gc.collect()
    return {id(one): one for one in gc.get_objects() if isinstance(one, torch.Tensor)}


def held(ranks: Ranks, stage: int, rule: Rule) -> dict[str, int]:
    """Bytes between the second and the third step: by what they are for, and of all tensors that came with the trunk."""
    before = all_tensors()
    network = make_network("vgg", LAYERS, 4, 512, 128, 0)
    numbers = [sum(one.numel() for one in part()) for part in (network.parameters, network.buffers)]
    settings = {
        "rule": rule,
        "clip": 0.0,
        "config": {"zero_optimization": {"stage": stage}},
        "ranks": ranks.size,
        "places": 4,
        "micro_batches": 1,
        "device": ranks.device,
    }
    trunk = Trunk(network, ranks, partial(ZeroEngine, **settings))
    for _ in range(2):
        z_XD = trunk.forward([torch.rand(4, 3, 16, 16)])
        trunk.backward(z_XD, torch.ones_like(z_XD))
        del z_XD
        trunk.update(0.1)
    counted = {what: shared_bytes(tensors) for what, tensors in trunk.held().items()}
    # A thread of gloo may hold what was sent for a moment longer.
    looks = []
    for _ in range(10):
        looks.append(shared_bytes([one for key, one in all_tensors().items() if key not in before]))
        time.sleep(0.05)
    counted["all"] = min(looks)
    trunk.close()
    return {**counted, "numbers": numbers[0], "buffers": numbers[1]}


SGD, ADAMW = Sgd(0.9, 0.0), AdamW((0.9, 0.999), 1e-8, 0.0)


@pytest.mark.parametrize(
    ("stage", "ranks", "rule"),
    [(stage, ranks, SGD) for stage in range(4) for ranks in (1, 2)] + [(0, 1, ADAMW), (2, 2, ADAMW)],
)
def test_weights_optimizer_and_buckets_are_planned_within_a_tenth_of_what_deepspeed_holds(
    stage: int, ranks: int, rule: Rule
) -> None:
    for counted in on_ranks(ranks, held, stage, rule):
        sizes = TrunkSizes(counted["numbers"], counted["buffers"], stage, ranks, None, len(rule.kept))
        planned = trunk_components(sizes)
        between = {one.name: one.bytes for one in planned if one.tier == DEVICE and START in one.phases}
        assert between[names.TRUNK_OPTIMIZER] == pytest.approx(counted["optimizer"], rel=0.1)
        copy = sum(one.bytes for one in planned if one.name == names.NETWORK_COPY)
        assert sum(between.values()) + copy == pytest.approx(counted["all"], rel=0.1)


def test_a_larger_bucket_is_planned_where_the_user_asks_for_it() -> None:
    planned = trunk_components(TrunkSizes(1000, 0, 2, 1, 5000, kept=1))
    assert [one.bytes for one in planned if one.name == names.TRUNK_BUCKETS] == [20_000]
