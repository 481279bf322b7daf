"""One step of the DeepSpeed engine is one step of torch.optim.SGD, at every ZeRO stage, skipped and resumed steps included."""

from functools import partial

import pytest
import torch
from torch import nn

from engine.ranks import start
from engine.trunk import Trunk
from engine.zero import ZeroEngine

ALONE = start(torch.device("cpu"))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, views):
        return nn.functional.normalize(self.last(torch.relu(self.norm(self.first(torch.cat(views))))))


def make_trunk(stage, micro_batches=1, clip=0.0, **options):
    settings = {"momentum": 0.9, "weight_decay": 1e-2, "nesterov": False, **options}
    train = partial(
        ZeroEngine,
        ranks=1,
        places=8,
        micro_batches=micro_batches,
        clip=clip,
        config={"zero_optimization": {"stage": stage}},
        device=ALONE.device,
        **settings,
    )
    return Trunk(Network(), ALONE, train)


def assert_equal(trunk, reference, sgd):
    model, momentum = trunk.state()
    for name, parameter in reference.named_parameters():
        assert torch.equal(model[name], parameter.detach()), name
        if sgd.param_groups[0]["momentum"]:
            assert torch.equal(momentum[name], sgd.state[parameter]["momentum_buffer"]), name
    for name, buffer in reference.named_buffers():
        assert torch.equal(model[name], buffer), name


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_equals_torch_sgd_to_the_bit_with_a_skip_and_a_resume_on_the_way(stage, micro_batches):
    trunk, reference = make_trunk(stage, micro_batches), Network()
    sgd = torch.optim.SGD(reference.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    share = 8 // micro_batches
    for step in range(6):
        if step == 2:  # the last micro-batch is poisoned; what came before it must be forgotten
            for _ in range(micro_batches - 1):
                trunk.backward(trunk.forward([drawn(share, 6)]), drawn(share, 4))
            trunk.forward([drawn(share, 6) * float("nan")])
            trunk.discard()
            continue
        if step == 4:
            state = trunk.state()
            trunk.close()
            trunk = make_trunk(stage, micro_batches)
            trunk.load(*state)
        sgd.zero_grad()
        for _ in range(micro_batches):
            x, dz = drawn(share, 6), 5 * drawn(share, 4)
            trunk.backward(trunk.forward([x]), dz)
            (reference([x]) * dz).sum().backward()
        sgd.param_groups[0]["lr"] = lr = 0.1 / (step + 1)
        sgd.step()
        assert trunk.update(lr)
        assert_equal(trunk, reference, sgd)
    trunk.close()


@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"nesterov": True}, {"weight_decay": 0.0}], ids=str)
def test_a_step_equals_torch_sgd_for(options):
    trunk, reference = make_trunk(0, **options), Network()
    settings = {"momentum": 0.9, "weight_decay": 1e-2, **options}
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1, **settings)
    for step in range(3):
        x, dz = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)), torch.ones(8, 4) * 3
        trunk.backward(trunk.forward([x]), dz)
        sgd.zero_grad()
        (reference([x]) * dz).sum().backward()
        sgd.step()
        trunk.update(0.1)
        assert_equal(trunk, reference, sgd)
    trunk.close()


@pytest.mark.parametrize("stage", [0, 1])
def test_the_gradient_is_clipped_when_asked_and_not_otherwise(stage):
    def moved(clip):
        trunk = make_trunk(stage, clip=clip, momentum=0.0, weight_decay=0.0)
        before = {name: p.detach().clone() for name, p in trunk.network.named_parameters()}
        trunk.backward(
            trunk.forward([torch.randn(8, 6, generator=torch.Generator().manual_seed(0))]), torch.randn(8, 4) * 100
        )
        trunk.update(1.0)
        after = trunk.state()[0]
        trunk.close()
        return torch.cat([(after[name] - before[name]).flatten() for name in before]).norm()

    assert moved(0.0) > 10
    assert moved(0.5) == pytest.approx(0.5, rel=1e-3)


def test_no_build_is_started_and_no_lock_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    make_trunk(0).close()
    assert not list(tmp_path.iterdir())
