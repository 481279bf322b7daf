"""The way that training goes, and what torch and the machine see of it.

The features' gradient from the forward half, the rows' gradient last, or spent at once; schemas; tile edges; threads; sizes.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.compiled import Choice
from kernels.sampled_softmax import (
    Forward,
    backend,
    combine,
    features_gradient,
    ops,
    sampled_softmax,
    softmax_forward,
    softmax_forward_negatives,
    softmax_rows_gradient,
    softmax_rows_update_,
)
from kernels.sampled_softmax.reference import sampled_softmax_reference
from tests.kernels.sampled_softmax_inputs import backward_half, draw, loss_and_gradients, options


def gradients_in_training_order(
    features_BD: Tensor, rows_KD: Tensor, targets_B: Tensor, *, need_B: Tensor | None = None, **keywords: Any
) -> tuple[Forward, Tensor, Tensor]:
    forward = softmax_forward_negatives(features_BD, rows_KD, targets_B, **keywords)
    lse_B = combine([forward[:2]])
    weight_B = torch.linspace(0.5, 1.5, len(lse_B), dtype=torch.float64).masked_fill(targets_B == -1, 0.0)
    shared = {"temperature": keywords["temperature"], "row_mask_K": keywords.get("row_mask_K")}
    dfeatures_BD = features_gradient(forward, features_BD, rows_KD, targets_B, lse_B, weight_B, **shared)
    drows_KD = softmax_rows_gradient(
        features_BD, rows_KD, targets_B, lse_B, weight_B, rows_need_grad_B=need_B, **keywords
    )
    return forward, dfeatures_BD, drows_KD


@pytest.mark.usefixtures("implementation")
def test_features_first_and_rows_last_give_the_slow_lines_gradients() -> None:
    features_BD, rows_KD, targets_B = draw(24, 700, 6)
    targets_B[3] = targets_B[17] = -1
    keywords: dict[str, Any] = {"temperature": 0.2, **options(24, 700, targets_B)}
    expected = loss_and_gradients(sampled_softmax_reference, features_BD, rows_KD, targets_B, **keywords)
    need_B = keywords.pop("rows_need_grad_B")
    forward, *got = gradients_in_training_order(features_BD, rows_KD, targets_B, need_B=need_B, **keywords)
    torch.testing.assert_close(tuple(got), expected[1:], rtol=1e-10, atol=1e-11)
    plain = softmax_forward(features_BD, rows_KD, targets_B, **keywords)
    torch.testing.assert_close(forward[:3], plain, rtol=0, atol=0)


@pytest.mark.usefixtures("implementation")
def test_pretend_ranks_sum_their_negatives_to_the_features_gradient() -> None:
    features_BD, rows_KD, targets_B = draw(9, 300, 5)
    _, expected_BD, _ = gradients_in_training_order(features_BD, rows_KD, targets_B, temperature=0.1)
    ranks = [slice(0, 100), slice(100, 100), slice(100, 300)]
    local = [torch.where((targets_B >= r.start) & (targets_B < r.stop), targets_B - r.start, -1) for r in ranks]
    forwards = [
        softmax_forward_negatives(features_BD, rows_KD[rank], targets_B_here, temperature=0.1)
        for rank, targets_B_here in zip(ranks, local, strict=True)
    ]
    lse_B = combine([forward[:2] for forward in forwards])
    weight_B = torch.linspace(0.5, 1.5, 9, dtype=torch.float64)
    total_BD = sum(
        features_gradient(forward, features_BD, rows_KD[rank], targets_B_here, lse_B, weight_B, temperature=0.1)
        for forward, rank, targets_B_here in zip(forwards, ranks, local, strict=True)
    )
    torch.testing.assert_close(total_BD, expected_BD)


# torch.optim.SGD has no nesterov without momentum.
@pytest.mark.parametrize(("nesterov", "momentum"), [(False, 0.0), (False, 0.9), (True, 0.9)])
def test_the_fused_step_is_torch_sgd_on_the_gradient_that_is_never_written(
    implementation: str, nesterov: bool, momentum: float
) -> None:
    features_BD, rows_KD, targets_B = draw(20, 500, 7)
    extras: dict[str, Any] = {"temperature": 0.2, **options(20, 500, targets_B)}
    hyper: dict[str, Any] = {"momentum": momentum, "weight_decay": 0.01, "nesterov": nesterov}
    parameter = torch.nn.Parameter(rows_KD.clone())
    sgd = torch.optim.SGD([parameter], lr=0.3, **hyper)
    ours_KD, momentum_KD = rows_KD.clone(), torch.zeros_like(rows_KD)
    masked = {name: extras[name] for name in ("temperature", "row_mask_K")}
    for _ in range(3):
        lse_B = combine([softmax_forward(features_BD, ours_KD, targets_B, **masked)[:2]])
        weight_B = torch.full((20,), 0.05, dtype=torch.float64)
        parameter.grad = softmax_rows_gradient(features_BD, parameter.detach(), targets_B, lse_B, weight_B, **extras)
        sgd.step()
        softmax_rows_update_(features_BD, ours_KD, momentum_KD, targets_B, lse_B, weight_B, eta=0.3, **hyper, **extras)
    torch.testing.assert_close(ours_KD, parameter.detach(), rtol=1e-12, atol=1e-14)
    assert not torch.equal(ours_KD[~extras["row_mask_K"]], rows_KD[~extras["row_mask_K"]])  # they decay


@pytest.mark.usefixtures("implementation")
def test_the_fused_step_rounds_no_more_than_the_written_one() -> None:
    features_BD, rows_KD, targets_B = draw(48, 2000, 128, dtype=torch.float32)
    hyper: dict[str, Any] = {"eta": 0.5, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": False}

    def after(dtype: torch.dtype, fused: bool) -> Tensor:
        z, w, u = features_BD.to(dtype), rows_KD.to(dtype), rows_KD.flip(0).to(dtype) * 0.1
        lse_B = combine([softmax_forward(z, w, targets_B, temperature=0.1)[:2]])
        weight_B = torch.full((48,), 1 / 48, dtype=torch.float64)
        if fused:
            softmax_rows_update_(z, w, u, targets_B, lse_B, weight_B, temperature=0.1, **hyper)
            return w
        g = softmax_rows_gradient(z, w, targets_B, lse_B, weight_B, temperature=0.1) + hyper["weight_decay"] * w
        return w - hyper["eta"] * (hyper["momentum"] * u + g)

    exact = after(torch.float64, fused=False)
    written, fused = (float((after(torch.float32, way) - exact).norm()) for way in (False, True))
    assert fused <= 2 * written


@pytest.mark.usefixtures("implementation")
def test_the_shortest_row_that_takes_part_is_told() -> None:
    features_BD, rows_KD, targets_B = draw(3, 50, 8)
    rows_KD /= rows_KD.norm(dim=1, keepdim=True)
    rows_KD[7] *= 1e-30
    rows_KD[8] *= 0
    rows_KD[9] *= 1e-31
    mask_K = torch.arange(50) != 9
    told = softmax_forward_negatives(features_BD, rows_KD, targets_B, temperature=0.1, row_mask_K=mask_K).shortest
    assert float(told) == pytest.approx(1e-30)
    nobody = softmax_forward_negatives(features_BD, rows_KD[:0], targets_B * 0 - 1, temperature=0.1).shortest
    assert float(nobody) == math.inf


# Sizes


@pytest.mark.parametrize("rows", [191, 192, 193, 384, 1023, 1025, 2500])
@pytest.mark.parametrize("samples", [1, 15, 127, 129, 260])
def test_every_edge_of_tiles_panels_and_splits_equals_the_slow_line(
    implementation: str, rows: int, samples: int
) -> None:
    features = rows % 19 + 1
    arguments = draw(samples, rows, features)
    expected = loss_and_gradients(sampled_softmax_reference, *arguments, temperature=0.1)
    got = loss_and_gradients(sampled_softmax, *arguments, temperature=0.1)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_more_logits_than_a_32_bit_index_can_count() -> None:
    samples, rows = 2100, 1 << 20
    assert samples * rows > 2**31
    features_BD, rows_KD, targets_B = draw(samples, rows, 2, dtype=torch.float32)
    targets_B[-1] = rows - 1
    forward = softmax_forward_negatives(features_BD, rows_KD, targets_B, temperature=0.5)
    lse_B = combine([forward[:2]])
    unit_BD = torch.nn.functional.normalize(features_BD.double())
    unit_KD = torch.nn.functional.normalize(rows_KD.double())
    some = torch.tensor([0, 1, samples // 2, samples - 1])
    logits = unit_BD[some] @ unit_KD.T / 0.5
    torch.testing.assert_close(lse_B[some], logits.logsumexp(1), rtol=1e-6, atol=1e-6)
    own = logits[torch.arange(4), targets_B[some]]
    torch.testing.assert_close(forward.positive_B[some], own, rtol=1e-5, atol=1e-6)

    drows_KD = softmax_rows_gradient(features_BD, rows_KD, targets_B, lse_B, torch.ones(samples), temperature=0.5)
    some_rows = torch.tensor([0, rows // 2, rows - 1])
    p = (unit_BD @ unit_KD[some_rows].T / 0.5 - lse_B[:, None]).exp()
    p -= (targets_B[:, None] == some_rows).double()
    dunit = p.T @ unit_BD / 0.5
    unit = unit_KD[some_rows]
    length = rows_KD[some_rows].double().norm(dim=1, keepdim=True)
    expected = (dunit - unit * (unit * dunit).sum(1, keepdim=True)) / length
    torch.testing.assert_close(drows_KD[some_rows].double(), expected, rtol=1e-3, atol=1e-4 * float(expected.norm()))


# Repeatable


# BLAS, under the other, cuts its products by the number of threads.
@pytest.mark.parametrize("implementation", ["cpu"], indirect=True)
@pytest.mark.usefixtures("implementation")
def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    features_BD, rows_KD, targets_B = draw(70, 9000, 48, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients_in_training_order(features_BD, rows_KD, targets_B, temperature=0.05))
    finally:
        torch.set_num_threads(before)
    for forward, dfeatures_BD, drows_KD in results[1:]:
        torch.testing.assert_close(
            (*forward, dfeatures_BD, drows_KD), (*results[0][0], *results[0][1:]), rtol=0, atol=0
        )


# What torch sees


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
def test_schemas_fakes_and_autograd_pass_opcheck(implementation: str) -> None:
    features_BD, rows_KD, targets_B = draw(5, 30, 4)
    extras = options(5, 30, targets_B)
    mask_K, need_B = extras.values()
    lse_B, weight_B = torch.full((5,), 9.0, dtype=torch.float64), torch.ones(5)
    last = (implementation, "float32")
    grad = (features_BD.clone().requires_grad_(), rows_KD.clone().requires_grad_(), targets_B, 0.2)
    common = (targets_B, lse_B, weight_B, 0.2, mask_K, need_B)
    for leave_own_out in (False, True):
        torch.library.opcheck(ops.sampled_softmax, (*grad, mask_K, need_B, leave_own_out, *last))
    for with_negatives, leave_own_out in ((False, False), (True, False), (True, True)):
        arguments = (features_BD, rows_KD, targets_B, 0.2, mask_K, with_negatives, leave_own_out, *last)
        torch.library.opcheck(ops.softmax_forward, arguments)
    for own_B in (None, -weight_B):
        torch.library.opcheck(ops.softmax_rows_gradient, (features_BD, rows_KD, *common, own_B, *last))
    sgd = (0.1, 0.9, 1e-3, True)
    torch.library.opcheck(
        ops.softmax_rows_update_, (features_BD, rows_KD.clone(), rows_KD.clone(), *common, -weight_B, *sgd, *last)
    )


@pytest.mark.usefixtures("implementation")
def test_a_gradient_of_the_gradients_is_refused_and_not_wrong() -> None:
    features_BD, rows_KD, targets_B = draw(5, 30, 4)
    rows_KD.requires_grad_()
    loss = sampled_softmax(features_BD, rows_KD, targets_B, temperature=0.2).sum()
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(loss, rows_KD, create_graph=True)


# Which implementation


def test_the_implementation_is_chosen_by_name_and_says_why() -> None:
    cpu = torch.device("cpu")
    assert backend(cpu, wanted="aten") == Choice("aten", "asked for")
    assert backend(cpu).name in ("cpu", "aten")
    assert backend(torch.device("cuda"), dtype=torch.float64).name == "aten"
    assert "not for 96" in backend(torch.device("cuda"), features=96).why
    with pytest.raises(ValueError, match="float32 rows of 64, 128 or 256"):
        backend(torch.device("cuda"), features=96, wanted="compiled")
    with pytest.raises(ValueError, match="not on meta"):
        backend(torch.device("meta"))
    with pytest.raises(ValueError, match="no implementation is called 'fast'"):
        backend(cpu, wanted="fast")


def test_what_an_implementation_cannot_do_is_refused() -> None:
    arguments = draw(2, 5, 4)
    with pytest.raises(ValueError, match="backend is 'cuda', rows_KD on cpu"):
        sampled_softmax(*arguments, temperature=0.1, backend="cuda")
    with pytest.raises(ValueError, match="products is 'bfloat16'; aten knows float32"):
        sampled_softmax(*arguments, temperature=0.1, backend="aten", products="bfloat16")


def test_rows_that_change_in_place_have_to_be_contiguous() -> None:
    features_BD, rows_KD, targets_B = draw(2, 5, 4)
    statistics = (targets_B, torch.ones(2), torch.ones(2))
    hyper: dict[str, Any] = {"temperature": 0.1, "eta": 0.1, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False}
    with pytest.raises(ValueError, match=r"momentum_KD has strides \(1, 5\)"):
        softmax_rows_update_(features_BD, rows_KD, torch.zeros(4, 5).double().T, *statistics, **hyper)
    with pytest.raises(ValueError, match=r"momentum_KD has shape \(4, 4\)"):
        softmax_rows_update_(features_BD, rows_KD, torch.zeros(4, 4).double(), *statistics, **hyper)


@pytest.mark.usefixtures("implementation")
def test_the_halves_cost_the_same_gradients_as_the_whole() -> None:
    features_BD, rows_KD, targets_B = draw(6, 250, 8)
    _, *whole = loss_and_gradients(sampled_softmax, features_BD, rows_KD, targets_B, temperature=0.2)
    lse_B = combine([softmax_forward(features_BD, rows_KD, targets_B, temperature=0.2)[:2]])
    weight_B = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
    halves = backward_half(features_BD, rows_KD, targets_B, lse_B, weight_B, temperature=0.2)
    torch.testing.assert_close(halves, tuple(whole))
