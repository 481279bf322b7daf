"""Heads: what each is made of; the one without a choice is what it was; the last batch normalisation does not shift, on many ranks too."""

import numpy as np
import pytest
import torch
from torch import nn

from engine.trunk.batch_norm import synchronised
from engine.trunk.heads import HEADS, make_head
from engine.trunk.network import make_network
from tests.engine.harness import ALONE
from tests.on_ranks import on_ranks

LAYERS = (4, "M", 6)


@pytest.mark.parametrize(
    ("kind", "modules", "weights"),
    [
        ("linear", ["Linear"], 8 * 3 + 3),
        ("mlp", ["Linear", "ReLU", "Linear"], 8 * 5 + 5 + 5 * 3 + 3),
        ("mlp_bn2", ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"], 8 * 5 + 10 + 5 * 3 + 3),
        (
            "mlp_bn3",
            ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"],
            8 * 5 + 10 + 25 + 10 + 15 + 3,
        ),
    ],
)
def test_a_head_has_these_layers_and_so_many_weights(kind, modules, weights):
    head = make_head(kind, 8, 5, 3)
    assert [type(module).__name__ for module in head] == modules
    assert sum(weight.numel() for weight in head.parameters()) == weights
    assert head[0].in_features == 8 and head(torch.randn(4, 8)).shape == (4, 3)


def test_the_default_head_has_the_weights_that_it_always_had():
    network = make_network("vgg", LAYERS, 2, 7, 3, seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        from engine.trunk.network import make_backbone

        _, width = make_backbone("vgg", LAYERS, 2)
        plain = nn.Sequential(nn.Linear(width, 7), nn.ReLU(), nn.Linear(7, 3))
    assert network.head.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(one, network.head.state_dict()[name]) for name, one in plain.state_dict().items())


def gradients(ranks, kind):
    """z and the gradients of all ranks together, of a head whose batch is shared out."""
    torch.manual_seed(1)
    head = synchronised(make_head(kind, 6, 5, 3).double(), ranks)
    x = torch.randn(8, 6, dtype=torch.float64).chunk(ranks.size)[ranks.rank]
    z = head(x)
    (z * torch.arange(3.0)).square().sum().backward()
    return z.detach(), [ranks.sum(weight.grad, "test") for weight in head.parameters()]


@pytest.mark.parametrize("kind", [kind for kind in HEADS if "bn" in kind])
def test_a_head_with_batch_normalisation_is_the_same_on_two_ranks(kind):
    whole = gradients(ALONE, kind)
    parts = on_ranks(2, gradients, kind)
    np.testing.assert_allclose(np.concatenate([part[0] for part in parts]), whole[0], rtol=1e-10, atol=1e-12)
    for part in parts:
        for one, other in zip(part[1], whole[1], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)
