"""LARS and AdamW take the steps that are written out in slow_steps.py, at every stage of ZeRO that they can have, and go on anywhere."""

from functools import partial

import numpy as np
import pytest
import torch

from engine.trunk.lars import Lars
from engine.trunk.optimizers import AdamW, LarsRule, Sgd, kind_and_weight, misfit, state_name
from engine.trunk.trunk import Trunk
from engine.trunk.zero import ZeroEngine
from tests.engine.harness import Case
from tests.engine.rank_runs import SMALL, trunk_goes_on
from tests.engine.trunk.slow_steps import slow_adamw, slow_lars
from tests.engine.trunk.small_network import ALONE, SETTINGS, Network
from tests.on_ranks import on_ranks

LARS = LarsRule(momentum=0.9, weight_decay=1e-2, trust=1e-3)
ADAMW = AdamW(betas=(0.8, 0.95), eps=1e-6, weight_decay=1e-2)
# The bias before a batch normalisation has a gradient of rounding errors alone, which a small eps would make as long as any other.
CALM = AdamW(betas=(0.8, 0.95), eps=1e-2, weight_decay=1e-2)
RATES = (0.3, 0.1, 0.05, 0.2, 0.01)


def make_trunk(rule, stage=0, **options):
    config = {"zero_optimization": {"stage": stage}}
    train = partial(
        ZeroEngine, **{**SETTINGS, "rule": rule, "micro_batches": 1, "clip": 0.0, "config": config, **options}
    )
    return Trunk(Network(), ALONE, train)


def numbers(tensors):
    return {name: tensor.detach().double().numpy().copy() for name, tensor in tensors.items()}


def taken_steps(rule, stage, slow):
    """Steps of a trunk beside those of slow(weights, gradients, step, lr), which are given what the trunk's gradients are.

    Yields (the trunk's weights and state, float64; those of `slow`).
    """
    trunk, reference = make_trunk(rule, stage), Network()
    for step, lr in enumerate(RATES, 1):
        generator = torch.Generator().manual_seed(step)
        x, dz = torch.randn(8, 6, generator=generator), torch.randn(8, 4, generator=generator)
        trunk.backward(trunk.forward([x]), dz)
        with torch.no_grad():  # the gradient at the trunk's own weights, so that errors of steps do not add up over it
            for name, parameter in reference.named_parameters():
                parameter.copy_(trunk.weights()[name])
        reference.zero_grad()
        (reference([x]) * dz).sum().backward()
        gradients = numbers({name: parameter.grad for name, parameter in reference.named_parameters()})
        wanted = slow(gradients, step, lr)
        assert trunk.update(lr)
        yield trunk.state(), wanted
    trunk.close()


def test_a_step_of_lars_is_the_one_that_is_written_out():
    weights = numbers(dict(Network().named_parameters()))
    momentum = {name: np.zeros_like(w) for name, w in weights.items()}
    assert {w.ndim for w in weights.values()} == {1, 2}

    def slow(gradients, step, lr):
        nonlocal weights, momentum
        weights, momentum = slow_lars(weights, gradients, momentum, lr=lr, m=0.9, weight_decay=1e-2, trust=1e-3)
        return weights, momentum

    for (model, state), (w, v) in taken_steps(LARS, 0, slow):
        for name in w:
            np.testing.assert_allclose(model[name], w[name], rtol=0, atol=2e-6, err_msg=name)
            np.testing.assert_allclose(state[name], v[name], rtol=0, atol=2e-6 * np.abs(v[name]).max(), err_msg=name)


def test_in_float64_lars_is_exact_to_rounding_and_a_norm_of_0_has_a_trust_of_1():
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (5, 7), "filter": (3, 2, 3, 3), "bias": (5,), "zero": (4, 4), "still": (2, 3)}
    start = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    start["zero"].zero_()
    weights = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    options = {"momentum": 0.9, "weight_decay": 0.0, "trust": 1e-3}
    lars = Lars(weights.values(), lr=1.0, **options)
    w, v = numbers(start), {name: np.zeros(shape) for name, shape in shapes.items()}
    for lr in RATES:
        for name, weight in weights.items():
            weight.grad = torch.randn(shapes[name], generator=generator, dtype=torch.float64)
        weights["still"].grad.zero_()
        for group in lars.param_groups:
            group["lr"] = lr
        lars.step()
        gradients = numbers({name: weight.grad for name, weight in weights.items()})
        w, v = slow_lars(w, gradients, v, lr=lr, m=0.9, weight_decay=0.0, trust=1e-3)
        if lr == RATES[0]:  # its norm was 0: the step is that of SGD
            np.testing.assert_allclose(w["zero"], -lr * gradients["zero"], rtol=1e-15)
        for name in shapes:
            np.testing.assert_allclose(weights[name].detach().numpy(), w[name], rtol=1e-13, atol=1e-15, err_msg=name)
    assert np.array_equal(w["still"], start["still"].numpy())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_of_adamw_is_the_one_that_is_written_out(stage):
    weights = numbers(dict(Network().named_parameters()))
    moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in weights.items()}

    def slow(gradients, step, lr):
        nonlocal weights, moments
        weights, moments = slow_adamw(
            weights, gradients, moments, step, lr=lr, betas=(0.8, 0.95), eps=1e-6, weight_decay=1e-2
        )
        return weights, moments

    steps = 0
    for (model, state), (w, by_weight) in taken_steps(ADAMW, stage, slow):
        steps += 1
        for name in w:
            np.testing.assert_allclose(model[name], w[name], rtol=0, atol=5e-6, err_msg=name)
            for kind, moment in zip(("exp_avg", "exp_avg_sq"), by_weight[name], strict=True):
                atol = 1e-6 * np.abs(moment).max()
                np.testing.assert_allclose(state[f"{kind}/{name}"], moment, rtol=0, atol=atol, err_msg=name)
            assert state[f"step/{name}"] == steps
    assert steps == len(RATES)


@pytest.mark.parametrize("rule", [LARS, ADAMW], ids=["lars", "adamw"])
def test_a_trunk_goes_on_to_the_bit_from_its_state_and_a_discarded_step_leaves_none(rule):
    def steps(trunk, numbers):
        for step in numbers:
            generator = torch.Generator().manual_seed(step)
            z = trunk.forward([torch.randn(8, 6, generator=generator)])
            trunk.backward(z, torch.randn(8, 4, generator=generator))
            assert trunk.update(0.1 / (step + 1))

    trunk = make_trunk(rule)
    steps(trunk, range(2))
    trunk.forward([torch.full((8, 6), float("nan"))])
    trunk.discard()
    state = trunk.state()
    steps(trunk, range(2, 5))
    again = make_trunk(rule)
    again.load(*state)
    steps(again, range(2, 5))
    for ours, theirs in zip(again.state(), trunk.state(), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("stage", [1, 2])
def test_lars_is_not_made_where_zero_cuts_tensors_up(stage):
    with pytest.raises(AssertionError, match="the config refuses it"):
        make_trunk(LARS, stage)


FROM_TO = [(3, 2, 0, 1), (0, 1, 3, 2), (2, 2, 1, 1), (1, 2, 3, 1)]


@pytest.mark.parametrize(("stage", "count", "next_stage", "next_count"), FROM_TO)
def test_adamw_goes_on_at_another_stage_on_other_ranks(stage, count, next_stage, next_count):
    case, few = Case(**SMALL), range(4, 7)
    _, state = on_ranks(count, trunk_goes_on, case, stage, None, range(4), CALM)[0]
    assert {kind_and_weight(name)[0] for name in state[1]} == {"exp_avg", "exp_avg_sq", "step"}
    _, straight = on_ranks(count, trunk_goes_on, case, stage, state, few, CALM)[0]
    for began, ended in on_ranks(next_count, trunk_goes_on, case, next_stage, state, few, CALM):
        for part in (0, 1):
            assert began[part].keys() == ended[part].keys() == state[part].keys()
            for name, value in state[part].items():
                assert np.array_equal(began[part][name], value), name
            for name, value in straight[part].items():
                atol = 1e-4 * max(1.0, np.abs(value).max())
                np.testing.assert_allclose(ended[part][name], value, rtol=0, atol=atol, err_msg=name)
        assert all(value == 7 for name, value in ended[1].items() if name.startswith("step/"))


def test_all_stages_take_the_same_steps_of_adamw_on_two_ranks():
    case = Case(**SMALL)
    (first, *others) = (on_ranks(2, trunk_goes_on, case, stage, None, range(6), CALM)[0][1] for stage in range(4))
    for other in others:
        for part in (0, 1):
            for name, value in first[part].items():
                atol = 1e-5 * max(1.0, np.abs(value).max())
                np.testing.assert_allclose(other[part][name], value, rtol=0, atol=atol, err_msg=name)


def test_names_of_state_are_those_of_weights_with_the_kind_before_all_but_momentum():
    assert state_name("momentum_buffer", "head.0.bias") == "head.0.bias"
    assert state_name("exp_avg", "head.0.bias") == "exp_avg/head.0.bias"
    for kind in ("momentum_buffer", "exp_avg", "step"):
        assert kind_and_weight(state_name(kind, "head.0.bias")) == (kind, "head.0.bias")
    assert (Sgd(0.0, 0.1).kept, Sgd(0.5, 0.0).kept, len(LARS.kept), len(ADAMW.kept)) == ((), ("momentum_buffer",), 1, 2)


def test_state_that_fits_no_weight_is_found_by_its_name():
    model = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    whole = {f"{kind}/{name}": torch.zeros_like(model[name]) for kind in ("exp_avg", "exp_avg_sq") for name in model}
    whole |= {"step/a": torch.tensor(3.0), "step/b": torch.tensor(3.0)}
    assert misfit(model, whole) is None and misfit(model, {}) is None
    assert misfit(model, model) is None
    assert misfit(model, {"c": torch.zeros(2)}) == "c"
    assert misfit(model, {"a": torch.zeros(3, 2)}) == "a"
    assert misfit(model, {**whole, "step/a": torch.zeros(1)}) == "step/a"
    for lost in whole:
        assert misfit(model, {name: value for name, value in whole.items() if name != lost}) == lost
