"""How exact the op is in float32, and on numbers that are very small, very large or zero.

Error policy (as in apple/ml-cross-entropy): against the float64 reference, the float32 op may be off by at most twice
what the float32 reference is off. Loss: largest absolute error. Gradients: relative error in the Euclidean norm, of the
whole and of the worst single row, so that a sample with a small gradient cannot hide behind the others. The worst over
a few seeds is compared, for one lucky draw of the reference must not decide.
"""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kernels.sampled_softmax import (
    aten,
    combine,
    sampled_softmax,
    softmax_forward,
    softmax_rows_gradient,
)
from kernels.sampled_softmax.reference import sampled_softmax_reference
from tests.kernels.sampled_softmax_inputs import Inputs, backward_half, draw, loss_and_gradients

pytestmark = pytest.mark.usefixtures("implementation")


def hard_inputs(kind: str, seed: int, dtype: torch.dtype) -> Inputs:
    sizes = {"one sample": (1, 333, 17), "odd sizes": (13, 1031, 33)}
    features_BD, rows_KD, targets_B = draw(*sizes.get(kind, (48, 2000, 128)), seed, torch.float32)
    generator = torch.Generator().manual_seed(seed + 1000)
    if kind == "outliers":
        features_BD[torch.rand(features_BD.shape, generator=generator) < 0.01] *= 20
        rows_KD[torch.rand(rows_KD.shape, generator=generator) < 0.01] *= 20
    if kind == "row equals feature":
        rows_KD[targets_B[0]] = features_BD[0]
    if kind == "well classified":
        rows_KD[targets_B] = features_BD * 0.01 + 0.002 * torch.randn(features_BD.shape, generator=generator)
    return features_BD.to(dtype), rows_KD.to(dtype), targets_B


def errors(got: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> dict[str, float]:
    measured = {"loss": float((got[0].double() - exact[0]).abs().max())}
    for name, gradient, exact_gradient in zip(("dfeatures", "drows"), got[1:], exact[1:], strict=True):
        difference = gradient.double() - exact_gradient
        measured[name] = float(difference.norm() / exact_gradient.norm())
        measured[f"worst row of {name}"] = float((difference.norm(dim=1) / exact_gradient.norm(dim=1)).max())
    return measured


def worst_errors(op: Callable[..., Tensor], kind: str, temperature: float) -> dict[str, float]:
    worst: dict[str, float] = {}
    for seed in range(60 if kind == "one sample" else 5):  # about as many samples of each kind
        exact_inputs = hard_inputs(kind, seed, torch.float64)
        slow = partial(sampled_softmax_reference, **(op.keywords if isinstance(op, partial) else {}))
        exact = loss_and_gradients(slow, *exact_inputs, temperature=temperature)
        got = loss_and_gradients(op, *hard_inputs(kind, seed, torch.float32), temperature=temperature)
        for name, error in errors(got, exact).items():
            worst[name] = max(worst.get(name, 0.0), error)
    return worst


@pytest.mark.parametrize("temperature", [0.2, 0.01])
@pytest.mark.parametrize(
    "kind", ["plain", "outliers", "row equals feature", "well classified", "one sample", "odd sizes"]
)
def test_float32_error_is_at_most_twice_that_of_the_slow_line(
    kind: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aten, "tile_rows", lambda *_: 384)
    allowed = worst_errors(sampled_softmax_reference, kind, temperature)
    got = worst_errors(sampled_softmax, kind, temperature)
    assert {name: (error, allowed[name]) for name, error in got.items() if error > 2 * allowed[name]} == {}


@pytest.mark.parametrize("temperature", [0.2, 0.01])
@pytest.mark.parametrize("kind", ["outliers", "well classified", "odd sizes"])
def test_so_it_is_with_the_own_row_left_out(kind: str, temperature: float) -> None:
    allowed = worst_errors(partial(sampled_softmax_reference, leave_own_out=True), kind, temperature)
    got = worst_errors(partial(sampled_softmax, leave_own_out=True), kind, temperature)
    assert {name: (error, allowed[name]) for name, error in got.items() if error > 2 * allowed[name]} == {}


def test_the_part_of_the_feature_gradient_that_comes_from_negatives_is_as_exact_as_the_slow_lines() -> None:
    # The positive's part is as long as all others together and would cover an error in them.
    def negatives(dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
        features_BD, rows_KD, targets_B = hard_inputs("outliers", seed, dtype)
        rows_KD = torch.cat([rows_KD[targets_B], rows_KD])  # sample b's own row is now row b
        features_BD.requires_grad_()
        logits_BK = normalize(features_BD) @ normalize(rows_KD).T / 0.1
        p_BK = logits_BK.detach().softmax(1)
        B = len(features_BD)
        (p_BK[:, B:] * logits_BK[:, B:]).sum().backward()
        assert features_BD.grad is not None
        features_BD.requires_grad_(False)
        ours = softmax_forward(features_BD, rows_KD, torch.arange(B), temperature=0.1)
        lse_B, nobody_B = combine([ours[:2]]), torch.full((B,), -1)
        one_B = torch.ones(B, dtype=dtype)
        ours_BD, _ = backward_half(features_BD, rows_KD[B:], nobody_B, lse_B, one_B, temperature=0.1)
        return features_BD.grad, ours_BD

    slow_error = our_error = 0.0
    for seed in range(5):
        exact_BD, _ = negatives(torch.float64, seed)
        slow_BD, ours_BD = negatives(torch.float32, seed)
        slow_error = max(slow_error, float(((slow_BD - exact_BD).norm(dim=1) / exact_BD.norm(dim=1)).max()))
        our_error = max(our_error, float(((ours_BD - exact_BD).norm(dim=1) / exact_BD.norm(dim=1)).max()))
    assert our_error <= 2 * slow_error


def test_a_well_classified_sample_needs_the_log_sum_exp_in_float64() -> None:
    exact_inputs, inputs = (hard_inputs("well classified", 0, dtype) for dtype in (torch.float64, torch.float32))
    _, exact_BD, _ = loss_and_gradients(sampled_softmax_reference, *exact_inputs, temperature=0.03)
    _, slow_BD, _ = loss_and_gradients(sampled_softmax_reference, *inputs, temperature=0.03)
    lse_B = combine([softmax_forward(*inputs, temperature=0.03)[:2]])
    weight_B = torch.linspace(0.5, 1.5, len(lse_B))
    ours_BD, _ = backward_half(*inputs, lse_B, weight_B, temperature=0.03)
    rounded_BD, _ = backward_half(*inputs, lse_B.float(), weight_B, temperature=0.03)
    slow, ours, rounded = (float((x - exact_BD).norm() / exact_BD.norm()) for x in (slow_BD, ours_BD, rounded_BD))
    assert ours <= 2 * slow
    assert rounded > 100 * slow


@pytest.mark.parametrize("temperature", [0.07, 0.05, 0.03])
def test_a_well_classified_sample_keeps_the_digits_of_its_loss_and_of_its_rows_gradient(temperature: float) -> None:
    # The mean loss is 1e-2, 2e-4 and 6e-8. In float32 the sum of exponentials is 1 and some rounding in the last.
    generator = torch.Generator().manual_seed(0)
    features_BD = torch.randn(64, 64, generator=generator, dtype=torch.float64)
    rows_KD = torch.randn(2000, 64, generator=generator, dtype=torch.float64)
    rows_KD[:64] = features_BD + 0.3 * torch.randn(64, 64, generator=generator, dtype=torch.float64)
    targets_B = torch.arange(64)
    exact = loss_and_gradients(sampled_softmax_reference, features_BD, rows_KD, targets_B, temperature=temperature)
    arguments = (features_BD.float(), rows_KD.float(), targets_B)
    loss_B, dfeatures_BD, drows_KD = loss_and_gradients(sampled_softmax, *arguments, temperature=temperature)
    assert ((loss_B - exact[0]).abs() / exact[0]).max() < 1e-4
    assert ((dfeatures_BD - exact[1]).norm(dim=1) / exact[1].norm(dim=1)).max() < 2e-4
    assert ((drows_KD - exact[2])[:64].norm(dim=1) / exact[2][:64].norm(dim=1)).max() < 2e-4


def test_a_row_that_is_nan_spoils_no_other_row() -> None:
    features_BD, rows_KD, targets_B = draw(9, 600, 20, dtype=torch.float32)
    lse_B = combine([softmax_forward(features_BD, rows_KD, targets_B, temperature=0.1)[:2]])
    rows_KD[5, 3] = math.nan
    drows_KD = softmax_rows_gradient(features_BD, rows_KD, targets_B, lse_B, torch.ones(9), temperature=0.1)
    assert drows_KD.isnan().any(dim=1).nonzero().flatten().tolist() == [5]


def test_a_single_row_and_a_sample_whose_row_alone_takes_part_have_loss_and_gradients_of_exactly_zero() -> None:
    features_BD, rows_KD, targets_B = draw(7, 1, 16, dtype=torch.float32)
    for quantity in loss_and_gradients(sampled_softmax, features_BD, rows_KD, targets_B, temperature=0.01):
        assert not quantity.any()
    features_BD, rows_KD, _ = draw(7, 500, 16, dtype=torch.float32)
    alone_K = torch.arange(500) == 321
    for quantity in loss_and_gradients(
        sampled_softmax, features_BD, rows_KD, torch.full((7,), 321), temperature=0.01, row_mask_K=alone_K
    ):
        assert not quantity.any()


def test_the_length_of_rows_and_features_does_not_matter_to_the_bit() -> None:
    features_BD, rows_KD, targets_B = draw(9, 300, 32, dtype=torch.float32)
    loss_B, dfeatures_BD, drows_KD = loss_and_gradients(
        sampled_softmax, features_BD, rows_KD, targets_B, temperature=0.1
    )
    # Squares of the first underflow in float32, those of the second overflow.
    for scale in (2.0**-95, 2.0**95):
        got = loss_and_gradients(sampled_softmax, features_BD / scale, rows_KD * scale, targets_B, temperature=0.1)
        expected = (loss_B, dfeatures_BD * scale, drows_KD / scale)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_short_rows_stay_right_where_normalising_in_half_precision_gives_nan() -> None:
    features_BD, rows_KD, targets_B = draw(9, 300, 128, dtype=torch.float32)
    unit_KD = normalize(rows_KD)
    squared_by_hand_KD = unit_KD.half() * 1e-4
    assert (squared_by_hand_KD / squared_by_hand_KD.square().sum(1, keepdim=True).sqrt()).isnan().any()
    assert normalize((unit_KD * 1e-7).half()).isnan().any()

    expected_B = sampled_softmax(features_BD, unit_KD, targets_B, temperature=0.1)
    for length in (1e-3, 1e-7, 1e-20, 1e-30, 1e-37):
        # The weights are those of a mean over 512 samples: without them the gradient for 1e-37 is past float32's range.
        short_KD = (unit_KD * length).requires_grad_()
        loss_B = sampled_softmax(features_BD, short_KD, targets_B, temperature=0.1)
        (loss_B / 512).sum().backward()
        torch.testing.assert_close(loss_B, expected_B, rtol=1e-5, atol=1e-5)
        assert short_KD.grad is not None
        assert short_KD.grad.isfinite().all()
        assert short_KD.grad.any()


def test_rows_that_only_subnormal_numbers_can_hold_never_give_nan() -> None:
    features_BD, rows_KD, targets_B = draw(9, 300, 16, dtype=torch.float32)
    tiny_KD = normalize(rows_KD) * 1e-43
    for quantity in loss_and_gradients(sampled_softmax, features_BD, tiny_KD, targets_B, temperature=0.1):
        assert not quantity.isnan().any()


def test_the_largest_numbers_that_float32_holds_do_not_overflow() -> None:
    features_BD, rows_KD, targets_B = draw(9, 300, 16, dtype=torch.float32)
    largest_KD = rows_KD / rows_KD.abs().amax(1, keepdim=True) * torch.finfo(torch.float32).max
    expected_B = sampled_softmax(features_BD, rows_KD, targets_B, temperature=0.1)
    loss_B, dfeatures_BD, drows_KD = loss_and_gradients(
        sampled_softmax, features_BD, largest_KD, targets_B, temperature=0.1
    )
    torch.testing.assert_close(loss_B, expected_B, rtol=1e-5, atol=1e-5)
    assert dfeatures_BD.isfinite().all()
    assert drows_KD.isfinite().all()


def test_a_row_of_zeros_has_cosine_zero_and_no_gradient() -> None:
    features_BD, rows_KD, targets_B = draw(4, 10, 8)
    rows_KD[3] = 0
    features_BD[2] = 0
    targets_B[:] = torch.tensor([3, 1, 2, 0])
    loss_B, dfeatures_BD, drows_KD = loss_and_gradients(
        sampled_softmax, features_BD, rows_KD, targets_B, temperature=0.1
    )
    torch.testing.assert_close(loss_B, sampled_softmax_reference(features_BD, rows_KD, targets_B, temperature=0.1))
    assert loss_B[2] == pytest.approx(math.log(10))
    assert not dfeatures_BD[2].any()
    assert not drows_KD[3].any()
    assert dfeatures_BD.isfinite().all()
    assert drows_KD.isfinite().all()
