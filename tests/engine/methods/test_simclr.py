"""SimCLR beside a dense twin over the whole batch, on one rank and two; both losses, empty places, float32."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from engine.methods.simclr import Contrast, Samples, SimClr
from tests.engine.harness import ALONE
from tests.engine.methods.plain_runs import Case, PlainTrunk, given, train, weights_of
from tests.on_ranks import on_ranks

TEMPERATURE = 0.2


def slow_loss(z_XD, dcl, temperature=TEMPERATURE):
    """The mean loss of the samples, each view beside all others; all logits at once, torch's autograd."""
    count = len(z_XD)
    partner_X = torch.arange(count).roll(count // 2)
    logits_XX = (z_XD @ z_XD.T / temperature).masked_fill(torch.eye(count, dtype=torch.bool), -torch.inf)
    if not dcl:
        return cross_entropy(logits_XX, partner_X)
    positive_X = logits_XX[torch.arange(count), partner_X]
    others_XX = logits_XX.scatter(1, partner_X[:, None], -torch.inf)
    return (torch.logsumexp(others_XX, 1) - positive_X).mean()


def trained(ranks, case, dcl):
    trunk = PlainTrunk(case.network(), ranks)
    method = SimClr(given(case, ranks, trunk), temperature=TEMPERATURE, dcl=dcl)
    return train(case, ranks, trunk, method, views=(0, 1)), weights_of(trunk.network), method.figures()


def dense(case, dcl):
    network, losses = case.network(), []
    for step in range(case.steps):
        views, ids = case.images(step)
        filled = np.flatnonzero(ids >= 0)
        loss = slow_loss(network([view[filled] for view in views]), dcl)
        for weight, slope in zip(network.parameters(), torch.autograd.grad(loss, network.parameters()), strict=True):
            weight.data.sub_(slope, alpha=case.lr)
        losses.append(float(loss.detach()))
    return losses, weights_of(network)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("dcl", [False, True], ids=["cross_entropy", "dcl"])
def test_losses_and_weights_equal_the_dense_twin(ranks, dcl):
    case = Case()
    wanted, weights = dense(case, dcl)
    for losses, found, _ in [trained(ALONE, case, dcl)] if ranks == 1 else on_ranks(2, trained, case, dcl):
        np.testing.assert_allclose(losses, wanted, rtol=1e-10)
        for name, weight in weights.items():
            np.testing.assert_allclose(np.asarray(found[name]), weight, rtol=1e-10, atol=1e-10)


def contrast_of(z_XD, weight_X, dcl, temperature=TEMPERATURE):
    contrast = Contrast(Samples(z_XD, weight_X, torch.arange(len(z_XD))), temperature=temperature, dcl=dcl)
    return contrast.loss_and_gradient(contrast.lse())


def features(count, dtype=torch.float64, near=0.0):
    generator = torch.Generator().manual_seed(count)
    one, other = normalize(torch.randn(2, count // 2, 8, generator=generator, dtype=torch.float64), dim=2)
    return torch.cat([one, normalize(near * one + (1 - near) * other)]).to(dtype)


@pytest.mark.parametrize("dcl", [False, True], ids=["cross_entropy", "dcl"])
@pytest.mark.parametrize("near", [0.0, 0.99], ids=["any views", "views alike"])
def test_loss_and_gradient_are_as_exact_as_the_slow_line(dcl, near):
    z_XD = features(64, near=near)

    def slow(dtype):
        leaf = z_XD.to(dtype, copy=True).requires_grad_()
        loss = slow_loss(leaf, dcl, 0.1)
        return float(loss.detach()), torch.autograd.grad(loss, leaf)[0].double()

    def fast(dtype):
        loss, dz_XD = contrast_of(z_XD.to(dtype), torch.full((64,), 1 / 64, dtype=torch.float64), dcl, 0.1)
        return loss, dz_XD.double()

    exact = slow(torch.float64)
    assert fast(torch.float64)[0] == pytest.approx(exact[0], rel=1e-12)
    torch.testing.assert_close(fast(torch.float64)[1], exact[1], rtol=1e-10, atol=1e-14)
    errors = [(abs(loss - exact[0]), (dz - exact[1]).norm()) for loss, dz in (fast(torch.float32), slow(torch.float32))]
    assert errors[0][0] <= 2 * errors[1][0] + 1e-7 * abs(exact[0])
    assert errors[0][1] <= 2 * errors[1][1]


@pytest.mark.parametrize("dcl", [False, True], ids=["cross_entropy", "dcl"])
def test_empty_places_weigh_nothing_and_are_nobodys_negative(dcl):
    z_XD = features(12)
    filled_X = torch.tensor([True, True, False, True, True, False] * 2)
    loss, dz_XD = contrast_of(z_XD, filled_X.double() / 8, dcl)
    left, dleft_XD = contrast_of(z_XD[filled_X], torch.full((8,), 1 / 8, dtype=torch.float64), dcl)
    assert loss == pytest.approx(left, rel=1e-12)
    torch.testing.assert_close(dz_XD[filled_X], dleft_XD, rtol=1e-12, atol=1e-15)
    assert not dz_XD[~filled_X].any()


@pytest.mark.parametrize("dcl", [False, True], ids=["cross_entropy", "dcl"])
@pytest.mark.parametrize("images", [0, 1])
def test_a_batch_of_one_image_or_none_has_no_loss_and_no_gradient(dcl, images):
    weight_X = (torch.arange(4) % 2 < images).double() / 2
    loss, dz_XD = contrast_of(features(4), weight_X, dcl)
    assert loss == pytest.approx(0, abs=1e-12) and dz_XD.isfinite().all() and not dz_XD.abs().gt(1e-12).any()


def test_the_gradient_is_the_sum_of_both_ends_of_a_pair():
    z_XD = features(8)
    weight_X = torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0], dtype=torch.float64)
    _, dz_XD = contrast_of(z_XD, torch.ones(8, dtype=torch.float64), False)
    assert dz_XD.norm(dim=1).min() > 0.1
    alone, dalone_XD = contrast_of(z_XD, weight_X, False)
    assert alone == pytest.approx(0, abs=1e-12) and not dalone_XD.abs().gt(1e-12).any()


def test_figures_say_how_alike_views_are_and_how_many_find_each_other():
    alike = features(16, near=0.999)
    contrast = Contrast(
        Samples(alike, torch.full((16,), 1 / 16, dtype=torch.float64), torch.arange(16)), temperature=0.1, dcl=True
    )
    assert contrast.finds_M.all()
    _, _, figures = trained(ALONE, Case(steps=20), False)
    assert 0.3 < figures["view_agreement"].value <= 1 and 0.3 < figures["own_view_found"].value <= 1
