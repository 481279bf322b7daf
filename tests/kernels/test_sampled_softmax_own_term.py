"""The sample's own logit left out of the sum, and the coefficient and vector of the own term given from outside.

The yardstick of what is given is `slow_gradients`: with the probabilities held fixed the objective is linear in the logits.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from kernels.sampled_softmax import (
    aten,
    combine,
    features_gradient,
    sampled_softmax,
    softmax_forward,
    softmax_forward_negatives,
    softmax_rows_gradient,
    softmax_rows_update_,
)
from kernels.sampled_softmax.reference import sampled_softmax_reference
from tests.kernels.sampled_softmax_inputs import LargestTensor, draw, loss_and_gradients, options

pytestmark = pytest.mark.usefixtures("implementation")


def slow_gradients(
    inputs: tuple[Tensor, Tensor, Tensor],
    lse_B: Tensor,
    weight_B: Tensor,
    own_B: Tensor,
    own_vector_BD: Tensor | None,
    *,
    temperature: float,
    row_mask_K: Tensor,
    rows_need_grad_B: Tensor,
) -> tuple[Tensor, Tensor]:
    """(dfeatures, drows) where logit k != own has the derivative weight exp(logit - lse), the own one weight own_B."""
    features_BD, rows_KD = (x.clone().requires_grad_() for x in inputs[:2])
    has_B1 = (inputs[2] >= 0)[:, None]
    own_BK = (torch.arange(len(rows_KD)) == inputs[2][:, None]) & has_B1
    cosine_BK = normalize(features_BD) @ normalize(rows_KD).T
    p_BK = torch.exp(cosine_BK.detach() / temperature - lse_B[:, None])
    key_B = torch.zeros(len(own_B), dtype=torch.float64) if own_vector_BD is None else own_B
    p_BK = torch.where(own_BK, own_B[:, None], p_BK) * row_mask_K * weight_B[:, None] / temperature
    features_p_BK = p_BK if own_vector_BD is None else p_BK.masked_fill(own_BK, 0.0)
    key_BD = features_BD.detach() if own_vector_BD is None else normalize(own_vector_BD.double())
    towards_key_B = (normalize(features_BD) * key_BD).sum(1) * key_B * weight_B / temperature
    (dfeatures_BD,) = torch.autograd.grad(
        (features_p_BK * cosine_BK).sum() + towards_key_B.sum(), features_BD, retain_graph=True
    )
    (drows_KD,) = torch.autograd.grad((p_BK * rows_need_grad_B[:, None] * cosine_BK).sum(), rows_KD)
    return dfeatures_BD, drows_KD


def drawn(samples: int, rows: int, features: int, seed: int) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Tensor]]:
    """Samples that share targets or have none, and a mask that leaves every sample another row than its own."""
    features_BD, rows_KD, targets_B = draw(samples, rows, features, seed)
    targets_B[1::4] = -1
    targets_B[2::5] = targets_B[0]
    extras = options(samples, rows, targets_B, seed)
    extras["row_mask_K"][torch.tensor([0, rows - 1])] = True
    return (features_BD, rows_KD, targets_B), extras


small = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@small
@given(
    samples=st.integers(1, 9),
    rows=st.integers(2, 40),
    features=st.integers(1, 9),
    tile=st.integers(1, 50),
    temperature=st.sampled_from([0.05, 0.2, 3.0]),
    seed=st.integers(0, 1000),
)
def test_any_small_problem_with_the_own_row_left_out_equals_the_slow_line(
    samples: int, rows: int, features: int, tile: int, temperature: float, seed: int
) -> None:
    inputs, extras = drawn(samples, rows, features, seed)
    keywords: dict[str, Any] = {"temperature": temperature, "leave_own_out": True, **extras}
    expected = loss_and_gradients(sampled_softmax_reference, *inputs, **keywords)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aten, "tile_rows", lambda *_: tile)
        got = loss_and_gradients(sampled_softmax, *inputs, **keywords)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@small
@given(
    samples=st.integers(1, 9),
    rows=st.integers(2, 40),
    cuts=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    leave_own_out=st.booleans(),
    with_vector=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_over_any_ranks_a_given_own_term_makes_the_slow_lines_gradients(
    samples: int, rows: int, cuts: tuple[int, int], leave_own_out: bool, with_vector: bool, seed: int
) -> None:
    inputs, extras = drawn(samples, rows, 5, seed)
    features_BD, rows_KD, targets_B = inputs
    need_B = extras.pop("rows_need_grad_B")
    generator = torch.Generator().manual_seed(seed)
    own_B, weight_B = torch.randn(2, samples, generator=generator, dtype=torch.float64)
    vector_BD = torch.randn(samples, 5, generator=generator) * 1e-3 if with_vector else None
    low, high = sorted(min(cut, rows) for cut in cuts)
    ranks = [slice(0, low), slice(low, high), slice(high, rows)]
    parts = []
    for rank in ranks:
        here_B = torch.where((targets_B >= rank.start) & (targets_B < rank.stop), targets_B - rank.start, -1)
        taking_part: dict[str, Any] = {"temperature": 0.2, "row_mask_K": extras["row_mask_K"][rank]}
        arguments = (features_BD, rows_KD[rank], here_B)
        parts.append(
            (arguments, taking_part, softmax_forward_negatives(*arguments, leave_own_out=leave_own_out, **taking_part))
        )
    lse_B = combine([forward[:2] for _, _, forward in parts])
    dfeatures_BD, drows = torch.zeros_like(features_BD), []
    for rank, (arguments, taking_part, forward) in enumerate(parts):
        term = {"own_B": own_B, "own_vector_BD": vector_BD}
        if with_vector and rank > 0:
            term = {"own_B": torch.zeros_like(own_B)}
        dfeatures_BD += features_gradient(forward, *arguments, lse_B, weight_B, **taking_part, **term)
        drows.append(
            softmax_rows_gradient(
                *arguments, lse_B, weight_B, rows_need_grad_B=need_B, own_B=own_B.float().double(), **taking_part
            )
        )
    expected_BD, _ = slow_gradients(
        inputs, lse_B, weight_B, own_B, vector_BD, temperature=0.2, rows_need_grad_B=need_B, **extras
    )
    _, expected_KD = slow_gradients(
        inputs, lse_B, weight_B, own_B.float().double(), None, temperature=0.2, rows_need_grad_B=need_B, **extras
    )
    torch.testing.assert_close(dfeatures_BD, expected_BD, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(torch.cat(drows), expected_KD, rtol=1e-9, atol=1e-9)


def test_the_fused_step_spends_the_gradient_with_the_given_own_term() -> None:
    inputs, extras = drawn(20, 500, 7, 0)
    rows_KD = inputs[1]
    lse_B = combine([softmax_forward(*inputs, temperature=0.2, row_mask_K=extras["row_mask_K"])[:2]])
    statistics = (lse_B, torch.full((20,), 0.05))
    keywords: dict[str, Any] = {"temperature": 0.2, "own_B": torch.linspace(-2, 2, 20), **extras}
    expected_KD = rows_KD - 0.3 * softmax_rows_gradient(*inputs, *statistics, **keywords)
    hyper: dict[str, Any] = {"eta": 0.3, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False}
    momentum_KD = torch.zeros_like(rows_KD)
    softmax_rows_update_(inputs[0], rows_KD, momentum_KD, inputs[2], *statistics, **hyper, **keywords)
    torch.testing.assert_close(rows_KD, expected_KD, rtol=1e-12, atol=1e-14)


def test_a_queue_and_a_key_that_is_no_row_make_the_loss_and_gradient_of_momentum_contrast() -> None:
    queries_BD, queue_KD, _ = draw(12, 300, 8)
    keys_BD, nobody_B = queries_BD + 0.3 * draw(12, 1, 8, seed=5)[0], torch.full((12,), -1)
    positive_B = (normalize(queries_BD) * normalize(keys_BD)).sum(1) / 0.2
    forward = softmax_forward_negatives(queries_BD, queue_KD, nobody_B, temperature=0.2)
    lse_B = combine([forward[:2], (positive_B, torch.ones(12))])
    weight_B = torch.full((12,), 1 / 12, dtype=torch.float64)
    term = {"own_B": torch.expm1(positive_B - lse_B), "own_vector_BD": keys_BD.float()}
    got_BD = features_gradient(forward, queries_BD, queue_KD, nobody_B, lse_B, weight_B, temperature=0.2, **term)
    queries_BD.requires_grad_()
    key_B1 = (normalize(queries_BD) * normalize(keys_BD.float().double())).sum(1, keepdim=True)
    logits = torch.cat([key_B1, normalize(queries_BD) @ normalize(queue_KD).T], 1) / 0.2
    loss = cross_entropy(logits, torch.zeros(12, dtype=torch.int64))
    torch.testing.assert_close(((lse_B - positive_B) * weight_B).sum(), loss.detach())
    torch.testing.assert_close(got_BD, torch.autograd.grad(loss, queries_BD)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_far_under_the_own_logit_is_as_exact_as_any(dtype: torch.dtype) -> None:
    # The own logit is near 1 / 0.0005, the others near -1 / 0.0005: beside it 2^-5770, which neither dtype can hold.
    features_BD, rows_KD, _ = draw(4, 400, 16)
    targets_B = torch.tensor([0, 191, 192, 399])
    towards_D = normalize(features_BD[0], dim=0)
    for b, target in enumerate(targets_B):
        features_BD[b] = towards_D + 1e-3 * features_BD[b]
        others_KD = rows_KD - 1.01 * towards_D  # rows are short: their directions are all near -towards
        others_KD[target] = towards_D
        sample = features_BD[b : b + 1].to(dtype), others_KD.to(dtype), targets_B[b : b + 1]
        max_B, sumexp_B, positive_B = softmax_forward(*sample, temperature=5e-4, leave_own_out=True)
        logits_BK = normalize(sample[0].double()) @ normalize(sample[1].double()).T / 5e-4
        assert float(positive_B - max_B) > 3900
        assert float(sumexp_B) >= 1
        logits_BK[0, target] = -math.inf
        tolerance = {torch.float32: 4e-3, torch.float64: 1e-9}[dtype]  # the rounding of logits of 2,000
        torch.testing.assert_close(combine([(max_B, sumexp_B)]), logits_BK.logsumexp(1), rtol=0, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 300])
def test_where_no_other_row_takes_part_the_loss_is_minus_infinity_and_the_own_row_alone_is_drawn(rows: int) -> None:
    features_BD, rows_KD, _ = draw(4, rows, 8)
    targets_B = torch.tensor([rows // 2, rows // 2, -1, rows // 2])
    mask_K = torch.arange(rows) == rows // 2
    keywords: dict[str, Any] = {"temperature": 0.1, "row_mask_K": mask_K, "leave_own_out": True}
    loss_B, dfeatures_BD, drows_KD = loss_and_gradients(sampled_softmax, features_BD, rows_KD, targets_B, **keywords)
    assert loss_B.tolist() == [-math.inf, -math.inf, 0, -math.inf]
    weight_B = torch.tensor([0.5, 0.5 + 1 / 3, 0, 1.5], dtype=torch.float64)
    features_BD.requires_grad_()
    rows_KD.requires_grad_()
    cosine_B = (normalize(features_BD) * normalize(rows_KD[rows // 2], dim=0)).sum(1)
    expected = torch.autograd.grad(-(cosine_B * weight_B).sum() / 0.1, (features_BD, rows_KD))
    torch.testing.assert_close((dfeatures_BD, drows_KD), expected)
    forward = softmax_forward_negatives(features_BD.detach(), rows_KD.detach(), targets_B, **keywords)
    assert forward.max_B.tolist()[:2] == [-math.inf] * 2
    assert not forward.sumexp_B[[0, 1, 3]].any()
    lse_B = combine([forward[:2]])
    got_BD = features_gradient(
        forward, features_BD.detach(), rows_KD.detach(), targets_B, lse_B, weight_B, temperature=0.1,
        row_mask_K=mask_K, own_B=torch.full((4,), -1.0),
    )  # fmt: skip
    torch.testing.assert_close(got_BD, expected[0])


def test_without_an_own_row_leaving_it_out_changes_no_bit() -> None:
    features_BD, rows_KD, targets_B = draw(9, 700, 16, dtype=torch.float32)
    targets_B[:] = -1
    plain, left_out = (
        softmax_forward_negatives(features_BD, rows_KD, targets_B, temperature=0.1, leave_own_out=leave_own_out)
        for leave_own_out in (False, True)
    )
    torch.testing.assert_close(tuple(left_out), tuple(plain), rtol=0, atol=0)


def test_the_usual_coefficient_given_from_outside_makes_the_usual_gradients() -> None:
    inputs, extras = drawn(24, 400, 6, 3)
    need_B = extras.pop("rows_need_grad_B")
    forward = softmax_forward_negatives(*inputs, temperature=0.2, **extras)
    lse_B, weight_B = combine([forward[:2]]), torch.linspace(0.5, 1.5, 24, dtype=torch.float64)
    own_B = torch.expm1(forward.positive_B - lse_B)
    statistics: dict[str, Any] = {"temperature": 0.2, **extras}
    usual, given_term = (
        (
            features_gradient(forward, *inputs, lse_B, weight_B, **statistics, **term),
            softmax_rows_gradient(*inputs, lse_B, weight_B, rows_need_grad_B=need_B, **statistics, **term),
        )
        for term in ({}, {"own_B": own_B})
    )
    torch.testing.assert_close(given_term, usual, rtol=1e-11, atol=1e-12)


def test_with_a_coefficient_of_zero_the_own_row_gets_nothing_from_its_sample() -> None:
    features_BD, rows_KD, _ = draw(1, 500, 8, dtype=torch.float32)
    targets_B, lse_B, weight_B = torch.tensor([321]), torch.full((1,), 3.0), torch.ones(1)
    drows_KD = softmax_rows_gradient(
        features_BD, rows_KD, targets_B, lse_B, weight_B, temperature=0.2, own_B=torch.zeros(1)
    )
    assert (~drows_KD.any(1)).nonzero().flatten().tolist() == [321]


def test_what_is_given_for_samples_that_weigh_nothing_may_be_anything() -> None:
    features_BD, rows_KD, targets_B = draw(4, 10, 8)
    forward = softmax_forward_negatives(features_BD, rows_KD, targets_B, temperature=0.2, leave_own_out=True)
    lse_B, weight_B = combine([forward[:2]]), torch.tensor([1.0, 0.0, 0.5, 0.0])
    gradients = []
    for anything in (0.0, math.nan, math.inf):
        own_B = torch.tensor([-1.0, anything, -1.0, anything])
        anything_B = lse_B.where(weight_B > 0, anything)
        shared = (features_BD, rows_KD, targets_B, anything_B, weight_B)
        gradients.append(
            (
                features_gradient(forward, *shared, temperature=0.2, own_B=own_B),
                softmax_rows_gradient(*shared, temperature=0.2, own_B=own_B),
            )
        )
    assert gradients[0][0][0].any()
    for got in gradients[1:]:
        torch.testing.assert_close(got, gradients[0], rtol=0, atol=0)


def test_with_the_own_row_left_out_no_tensor_is_near_the_size_of_the_logits() -> None:
    samples, rows = 256, 65_536
    features_BD, rows_KD, targets_B = draw(samples, rows, 4, dtype=torch.float32)
    shared: dict[str, Any] = {"temperature": 0.1}
    with LargestTensor() as largest:
        forward = softmax_forward_negatives(features_BD, rows_KD, targets_B, leave_own_out=True, **shared)
        statistics = (targets_B, combine([forward[:2]]), torch.ones(samples))
        own: dict[str, Any] = {"own_B": torch.full((samples,), -1.0), **shared}
        features_gradient(forward, features_BD, rows_KD, *statistics, **own, own_vector_BD=features_BD.flip(0))
        softmax_rows_gradient(features_BD, rows_KD, *statistics, **own)
        hyper: dict[str, Any] = {"eta": 0.1, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False}
        softmax_rows_update_(features_BD, rows_KD, torch.zeros_like(rows_KD), *statistics, **own, **hyper)
    assert rows < largest.elements < samples * rows / 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"own_B": None}, "own_vector_BD is given without own_B"),
        ({"own_B": torch.ones(3)}, r"own_B has shape \(3,\), expected \(2,\)"),
        ({"own_B": torch.ones(2, dtype=torch.int64)}, "own_B is torch.int64, expected torch.float32 or torch.float64"),
        ({"own_vector_BD": torch.ones(2, 3)}, r"own_vector_BD has shape \(2, 3\), expected \(2, 4\)"),
        ({"own_vector_BD": torch.ones(2, 4).bool()}, "own_vector_BD is torch.bool"),
    ],
)
def test_own_terms_that_do_not_fit_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    inputs = draw(2, 5, 4)
    forward = softmax_forward_negatives(*inputs, temperature=0.1)
    arguments = (forward, *inputs, torch.ones(2), torch.ones(2))
    keywords = {"own_B": -torch.ones(2), "own_vector_BD": torch.ones(2, 4)}
    assert features_gradient(*arguments, temperature=0.1, **keywords).isfinite().all()
    with pytest.raises(ValueError, match=message):
        features_gradient(*arguments, temperature=0.1, **{**keywords, **change})


def test_the_rows_gradient_refuses_own_terms_of_another_shape() -> None:
    inputs = draw(2, 5, 4)
    with pytest.raises(ValueError, match=r"own_B has shape \(1,\), expected \(2,\)"):
        softmax_rows_gradient(*inputs, torch.ones(2), torch.ones(2), temperature=0.1, own_B=torch.ones(1))
