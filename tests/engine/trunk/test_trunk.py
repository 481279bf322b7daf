"""One step of the DeepSpeed engine is one step of torch.optim.SGD, at every ZeRO stage, skipped and resumed steps included."""

from functools import partial

import pytest
import torch

from engine.trunk.optimizers import Sgd
from engine.trunk.trunk import Trunk
from engine.trunk.zero import PartitionedRows, ZeroEngine
from tests.engine.trunk.small_network import ALONE, SETTINGS, Network


def make_trunk(stage, micro_batches=1, clip=0.0, block=None, **options):
    config = {"zero_optimization": {"stage": stage}, **(block or {})}
    settings = {**SETTINGS, "micro_batches": micro_batches, "clip": clip, "config": config, **options}
    return Trunk(Network(), ALONE, partial(ZeroEngine, **settings))


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
    settings = {"momentum": 0.9, "weight_decay": 1e-2, **options}
    trunk, reference = make_trunk(0, rule=Sgd(**settings)), Network()
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
        trunk = make_trunk(stage, clip=clip, rule=Sgd(0.0, 0.0))
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


FLOAT16 = {"torch_autocast": {"enabled": True, "dtype": "float16"}}


def float16_steps(trunk, count, start=0):
    """Whether each of some steps on random inputs was applied."""
    applied = []
    for step in range(start, start + count):
        generator = torch.Generator().manual_seed(step)
        z = trunk.forward([torch.randn(8, 6, generator=generator)])
        trunk.backward(z, torch.randn(8, 4, generator=generator))
        applied.append(trunk.update(0.01))
    return applied


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_loss_scale_that_is_too_large_comes_down_until_steps_are_applied_and_is_kept(stage):
    trunk = make_trunk(stage, block=FLOAT16)
    assert trunk.loss_scale == (65536.0, 0)
    trunk.loss_scale = (2.0**40, 0)
    applied = float16_steps(trunk, 40)
    refused = applied.index(True)
    assert 0 < refused < 30 and all(applied[refused:])
    assert trunk.loss_scale == (2.0 ** (40 - refused), 40 - refused)

    again = make_trunk(stage, block=FLOAT16)
    again.load(*trunk.state())
    again.loss_scale = trunk.loss_scale
    assert float16_steps(trunk, 3, 40) == float16_steps(again, 3, 40) == [True] * 3
    assert again.loss_scale == trunk.loss_scale
    for ours, theirs in zip(again.state(), trunk.state(), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("stage", [1, 2])
def test_an_overflow_is_noticed_where_the_block_switches_the_norm_off(stage):
    block = {**FLOAT16, "zero_optimization": {"stage": stage, "compute_grad_norm": False}}
    trunk = make_trunk(stage, block=block)
    trunk.loss_scale = (2.0**40, 0)
    assert float16_steps(trunk, 1) == [False]
    assert all(torch.isfinite(value).all() for value in trunk.weights().values())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_loss_scale_grows_after_2000_applied_steps(stage):
    trunk = make_trunk(stage, block=FLOAT16)
    trunk.loss_scale = (1024.0, 1999)
    assert float16_steps(trunk, 1) == [True]
    assert trunk.loss_scale == (2048.0, 0)


@pytest.mark.parametrize("block", [None, FLOAT16], ids=["float32", "float16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_clipping_is_of_the_gradient_without_its_scale(stage, block):
    trunk = make_trunk(stage, clip=0.1, block=block, rule=Sgd(0.0, 0.0))
    if block:
        trunk.loss_scale = (256.0, 0)
    before = trunk.state()[0]
    trunk.backward(
        trunk.forward([torch.randn(8, 6, generator=torch.Generator().manual_seed(0))]),
        torch.linspace(-1, 2, 32).view(8, 4),
    )
    assert trunk.update(1.0)
    after = trunk.state()[0]
    moved = sum((after[name] - before[name]).square().sum() for name, _ in Network().named_parameters()).sqrt()
    assert float(moved) == pytest.approx(0.1, rel=1e-3)


def test_rows_beside_a_float16_trunk_are_not_scaled():
    make_trunk(0, block=FLOAT16)  # what DeepSpeed remembers of it concerns every engine that is made later
    rows = PartitionedRows(16, 4, **{**SETTINGS, "micro_batches": 1, "rule": Sgd(0.9, 0.0), "clip": 1.0})
    rows.w_SD.fill_(1.0)
    rows.publish()
    rows.add(lambda rows_KD: torch.full_like(rows_KD, 0.5))  # of norm 4
    assert rows.zero.update(1.0) and rows.zero.loss_scale is None
    assert float((rows.w_SD - 1.0).norm()) == pytest.approx(1.0, rel=1e-4)
