"""The op against the slow line that it equals: values, gradients, ranks, edges, and what it never does. Float64 mostly."""

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.sampled_softmax import aten, combine, sampled_softmax, softmax_forward, softmax_rows_gradient
from kernels.sampled_softmax.reference import sampled_softmax_reference
from tests.kernels.sampled_softmax_inputs import LargestTensor, backward_half, draw, loss_and_gradients, options

pytestmark = pytest.mark.usefixtures("implementation")


# Rows per tile, so that a small K has many tiles, and a last one of another size. Tiles of the compiled code have one size;
# test_every_edge_of_tiles_panels_and_splits_equals_the_slow_line is for them.
any_tile = pytest.mark.parametrize(
    ("implementation", "tile"), [("aten", 1), ("aten", 7), ("aten", 64), ("aten", 10_000), ("cpu", None)], indirect=True
)


@pytest.fixture
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Rows per tile, where the implementation may be told."""
    tile: int | None = request.param
    if tile is not None:
        monkeypatch.setattr(aten, "tile_rows", lambda *_: tile)
    return tile


# What it equals


@pytest.mark.parametrize(("samples", "rows", "features"), [(1, 1, 1), (1, 65, 3), (5, 64, 8), (13, 129, 17), (7, 2, 5)])
@any_tile
def test_equals_the_slow_line_for_any_tile(tile: int, samples: int, rows: int, features: int) -> None:
    arguments = draw(samples, rows, features)
    expected = loss_and_gradients(sampled_softmax_reference, *arguments, temperature=0.1)
    got = loss_and_gradients(sampled_softmax, *arguments, temperature=0.1)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


@any_tile
@pytest.mark.usefixtures("tile")
def test_mask_barred_samples_empty_places_and_shared_targets_equal_the_slow_line() -> None:
    features_BD, rows_KD, targets_B = draw(24, 150, 6)
    targets_B[3] = targets_B[17] = -1
    targets_B[5:9] = targets_B[4]
    keywords: dict[str, Any] = {"temperature": 0.2, **options(24, 150, targets_B)}
    expected = loss_and_gradients(sampled_softmax_reference, features_BD, rows_KD, targets_B, **keywords)
    loss_B, dfeatures_BD, drows_KD = loss_and_gradients(sampled_softmax, features_BD, rows_KD, targets_B, **keywords)
    torch.testing.assert_close((loss_B, dfeatures_BD, drows_KD), expected, rtol=1e-10, atol=1e-11)
    assert loss_B[3] == 0
    assert not dfeatures_BD[17].any()
    assert not drows_KD[~keywords["row_mask_K"]].any()


@any_tile
@pytest.mark.usefixtures("tile")
def test_gradients_pass_gradcheck_in_float64() -> None:
    features_BD, rows_KD, targets_B = draw(4, 9, 3)
    targets_B[1] = -1
    keywords = options(4, 9, targets_B)
    del keywords["rows_need_grad_B"]  # a barred gradient is no derivative of the loss; the next test has it
    torch.autograd.gradcheck(
        lambda features_BD, rows_KD: sampled_softmax(features_BD, rows_KD, targets_B, temperature=0.5, **keywords),
        (features_BD.requires_grad_(), (rows_KD * 100).requires_grad_()),
    )


def test_gradcheck_holds_for_the_features_when_all_samples_are_barred_from_rows_and_rows_get_zero() -> None:
    features_BD, rows_KD, targets_B = draw(4, 9, 3)
    barred_B = torch.zeros(4, dtype=torch.bool)
    torch.autograd.gradcheck(
        lambda features_BD: sampled_softmax(
            features_BD, rows_KD, targets_B, temperature=0.5, rows_need_grad_B=barred_B
        ),
        (features_BD.clone().requires_grad_(),),
    )
    _, _, drows_KD = loss_and_gradients(
        sampled_softmax, features_BD, rows_KD, targets_B, temperature=0.5, rows_need_grad_B=barred_B
    )
    assert not drows_KD.any()


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    samples=st.integers(1, 9),
    rows=st.integers(1, 40),
    features=st.integers(1, 9),
    tile=st.integers(1, 50),
    temperature=st.sampled_from([0.05, 0.2, 3.0]),
    seed=st.integers(0, 1000),
)
def test_any_small_problem_equals_the_slow_line(
    samples: int, rows: int, features: int, tile: int, temperature: float, seed: int
) -> None:
    features_BD, rows_KD, targets_B = draw(samples, rows, features, seed)
    keywords: dict[str, Any] = {"temperature": temperature, **options(samples, rows, targets_B, seed)}
    expected = loss_and_gradients(sampled_softmax_reference, features_BD, rows_KD, targets_B, **keywords)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aten, "tile_rows", lambda *_: tile)
        got = loss_and_gradients(sampled_softmax, features_BD, rows_KD, targets_B, **keywords)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_half_precision_features_are_converted_to_the_dtype_of_the_rows() -> None:
    features_BD, rows_KD, targets_B = draw(6, 40, 8, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        rounded_BD = features_BD.to(dtype)
        loss_B, dfeatures_BD, drows_KD = loss_and_gradients(
            sampled_softmax, rounded_BD, rows_KD, targets_B, temperature=0.2
        )
        expected = loss_and_gradients(sampled_softmax, rounded_BD.float(), rows_KD, targets_B, temperature=0.2)
        assert dfeatures_BD.dtype == dtype
        torch.testing.assert_close((loss_B, dfeatures_BD, drows_KD), (expected[0], expected[1].to(dtype), expected[2]))


def test_autocast_changes_no_bit() -> None:
    arguments = draw(6, 40, 8, dtype=torch.float32)
    expected = loss_and_gradients(sampled_softmax, *arguments, temperature=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss_and_gradients(sampled_softmax, *arguments, temperature=0.2)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_tensors_that_are_not_contiguous_give_the_same() -> None:
    features_BD, rows_KD, targets_B = draw(6, 40, 8)
    expected = loss_and_gradients(sampled_softmax, features_BD, rows_KD, targets_B, temperature=0.2)
    wide_KD, wide_BD = torch.zeros(40, 20, dtype=torch.float64), torch.zeros(8, 6, dtype=torch.float64)
    wide_KD[:, 2:18:2], wide_BD[:] = rows_KD, features_BD.T
    max_B, sumexp_B, positive_B = softmax_forward(wide_BD.T, wide_KD[:, 2:18:2], targets_B, temperature=0.2)
    lse_B, weight_B = combine([(max_B, sumexp_B)]), torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
    got = backward_half(wide_BD.T, wide_KD[:, 2:18:2], targets_B, lse_B, weight_B, temperature=0.2)
    torch.testing.assert_close((lse_B - positive_B, *got), expected)


# Ranks


def test_halves_over_pretend_ranks_combine_to_the_whole() -> None:
    features_BD, rows_KD, targets_B = draw(20, 100, 6)
    targets_B[2] = -1
    extras = options(20, 100, targets_B)
    extras["row_mask_K"][90:] = False  # the last rank has rows, none of which takes part
    targets_B[targets_B >= 90] = 0
    extras["row_mask_K"][0] = True
    need_grad_B = extras.pop("rows_need_grad_B")
    ranks = [slice(0, 33), slice(33, 33), slice(33, 90), slice(90, 100)]

    def local_targets(rank: slice) -> Tensor:
        here_B = (targets_B >= rank.start) & (targets_B < rank.stop)
        return torch.where(here_B, targets_B - rank.start, -1)

    parts = []
    positive_B = torch.zeros(20, dtype=torch.float64)
    for rank in ranks:
        local = {name: tensor[rank] for name, tensor in extras.items()}
        max_B, sumexp_B, own_B = softmax_forward(
            features_BD, rows_KD[rank], local_targets(rank), temperature=0.2, **local
        )
        parts.append((max_B, sumexp_B))
        positive_B += own_B
    assert (parts[1][0] == -math.inf).all()
    assert not parts[3][1].any()

    lse_B = combine(parts)
    weight_B = torch.linspace(0.5, 1.5, 20, dtype=torch.float64).masked_fill(targets_B == -1, 0.0)
    dfeatures_BD, drows = torch.zeros_like(features_BD), []
    for rank in ranks:
        local = {name: tensor[rank] for name, tensor in extras.items()}
        part_BD, drows_KD = backward_half(
            features_BD,
            rows_KD[rank],
            local_targets(rank),
            lse_B,
            weight_B,
            temperature=0.2,
            rows_need_grad_B=need_grad_B,
            **local,
        )
        dfeatures_BD += part_BD
        drows.append(drows_KD)

    loss_B, *gradients = loss_and_gradients(
        sampled_softmax_reference,
        features_BD,
        rows_KD,
        targets_B,
        temperature=0.2,
        rows_need_grad_B=need_grad_B,
        **extras,
    )
    torch.testing.assert_close((lse_B - positive_B)[targets_B >= 0], loss_B[targets_B >= 0])
    torch.testing.assert_close([dfeatures_BD, torch.cat(drows)], gradients)


def test_no_rows_anywhere_combine_to_minus_infinity_without_nan() -> None:
    features_BD, rows_KD, targets_B = draw(3, 5, 4)
    nothing = softmax_forward(
        features_BD, rows_KD, targets_B * 0 - 1, temperature=0.2, row_mask_K=torch.zeros(5, dtype=torch.bool)
    )
    lse_B = combine([nothing[:2], softmax_forward(features_BD, rows_KD[:0], targets_B * 0 - 1, temperature=0.2)[:2]])
    assert (lse_B == -math.inf).all()
    assert not nothing[2].any()


# Rows that do not take part


@any_tile
@pytest.mark.usefixtures("tile")
def test_what_a_masked_row_holds_does_not_matter_even_if_it_is_nan() -> None:
    features_BD, rows_KD, targets_B = draw(6, 90, 8, dtype=torch.float32)
    keywords: dict[str, Any] = {"temperature": 0.1, "row_mask_K": options(6, 90, targets_B)["row_mask_K"]}
    expected = loss_and_gradients(sampled_softmax, features_BD, rows_KD, targets_B, **keywords)
    rows_KD[~keywords["row_mask_K"]] = math.nan
    got = loss_and_gradients(sampled_softmax, features_BD, rows_KD, targets_B, **keywords)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_sample_whose_own_row_is_masked_has_loss_inf_and_the_slow_lines_gradients() -> None:
    features_BD, rows_KD, targets_B = draw(4, 10, 8)
    keywords: dict[str, Any] = {"temperature": 0.1, "row_mask_K": torch.arange(10) != targets_B[0]}
    expected = loss_and_gradients(sampled_softmax_reference, features_BD, rows_KD, targets_B, **keywords)
    got = loss_and_gradients(sampled_softmax, features_BD, rows_KD, targets_B, **keywords)
    assert got[0][0] == math.inf
    torch.testing.assert_close(got, expected)


# Empty problems


def test_the_log_sum_exp_of_a_sample_that_weighs_nothing_may_be_anything() -> None:
    features_BD, rows_KD, targets_B = draw(4, 10, 8)
    weight_B = torch.tensor([1.0, 0.0, 0.0, 0.0])
    gradients = [
        backward_half(
            features_BD, rows_KD, targets_B, torch.tensor([9.0, anything, -anything, 0.0]), weight_B, temperature=0.1
        )
        for anything in (0.0, 1e30, math.inf, math.nan)
    ]
    assert gradients[0][0][0].any()
    for got in gradients[1:]:
        torch.testing.assert_close(got, gradients[0], rtol=0, atol=0)


def test_no_samples_give_an_empty_loss_and_zero_gradients() -> None:
    loss_B, dfeatures_BD, drows_KD = loss_and_gradients(sampled_softmax, *draw(0, 5, 4), temperature=0.2)
    assert loss_B.shape == (0,)
    assert dfeatures_BD.shape == (0, 4)
    assert drows_KD.shape == (5, 4)
    assert not drows_KD.any()


def test_a_batch_of_empty_places_has_no_loss_and_no_gradient_even_without_rows() -> None:
    for rows in (5, 0):
        features_BD, rows_KD, _ = draw(3, max(rows, 1), 4)
        nobody_B = torch.full((3,), -1)
        for quantity in loss_and_gradients(sampled_softmax, features_BD, rows_KD[:rows], nobody_B, temperature=0.2):
            assert not quantity.any()


# What it does and never does


def test_the_same_inputs_give_the_same_bits() -> None:
    arguments = draw(64, 3000, 48, dtype=torch.float32)
    extras: dict[str, Any] = {"temperature": 0.1, **options(64, 3000, arguments[2])}
    first = loss_and_gradients(sampled_softmax, *arguments, **extras)
    for _ in range(3):
        got = loss_and_gradients(sampled_softmax, *arguments, **extras)
        torch.testing.assert_close(got, first, rtol=0, atol=0)


def test_no_tensor_is_as_large_as_the_logits() -> None:
    samples, rows, features = 512, 20_000, 8
    arguments = draw(samples, rows, features, dtype=torch.float32)
    with LargestTensor() as slow:
        loss_and_gradients(sampled_softmax_reference, *arguments, temperature=0.1)
    with LargestTensor() as ours:
        loss_and_gradients(sampled_softmax, *arguments, temperature=0.1)
    assert slow.elements == samples * rows
    assert ours.elements <= aten.tile_rows(samples, features, torch.device("cpu")) * samples < samples * rows / 4


def test_arguments_are_left_as_they_were() -> None:
    arguments = draw(5, 40, 8)
    extras: dict[str, Any] = options(5, 40, arguments[2])
    before = [tensor.clone() for tensor in (*arguments, *extras.values())]
    loss_and_gradients(sampled_softmax, *arguments, temperature=0.2, **extras)
    torch.testing.assert_close([*arguments, *extras.values()], before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"rows_KD": torch.ones(5, 3)}, r"features_BD has shape \(2, 4\), expected \[samples, 3\]"),
        ({"rows_KD": torch.ones(5)}, r"rows_KD has shape \(5,\)"),
        ({"rows_KD": torch.ones(5, 4).bfloat16()}, "rows_KD is torch.bfloat16"),
        ({"features_BD": torch.ones(2, 4).double()}, "features_BD is torch.float64, expected torch.float32"),
        ({"features_BD": torch.ones(4)}, r"features_BD has shape \(4,\)"),
        ({"targets_B": torch.zeros(3, dtype=torch.int64)}, r"targets_B has shape \(3,\), expected \(2,\)"),
        ({"targets_B": torch.zeros(2, dtype=torch.int32)}, "targets_B is torch.int32, expected torch.int64"),
        ({"targets_B": torch.tensor([0, 5])}, "targets_B reaches from 0 to 5, expected -1"),
        ({"targets_B": torch.tensor([-2, 1])}, "targets_B reaches from -2 to 1"),
        ({"row_mask_K": torch.ones(4, dtype=torch.bool)}, r"row_mask_K has shape \(4,\), expected \(5,\)"),
        ({"row_mask_K": torch.ones(5)}, "row_mask_K is torch.float32, expected torch.bool"),
        ({"rows_need_grad_B": torch.ones(5, dtype=torch.bool)}, r"rows_need_grad_B has shape \(5,\), expected \(2,\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "features_BD": torch.ones(2, 4),
        "rows_KD": torch.ones(5, 4),
        "targets_B": torch.tensor([0, 4]),
        "temperature": 0.1,
    }
    assert sampled_softmax(**arguments).isfinite().all()
    with pytest.raises(ValueError, match=message):
        sampled_softmax(**{**arguments, **change})


def test_the_rows_gradient_refuses_statistics_of_another_shape() -> None:
    arguments = draw(2, 5, 4)
    with pytest.raises(ValueError, match=r"lse_B has shape \(5,\), expected \(2,\)"):
        softmax_rows_gradient(*arguments, torch.ones(5), torch.ones(2), temperature=0.1)
    with pytest.raises(ValueError, match=r"weight_B has shape \(\)"):
        softmax_rows_gradient(*arguments, torch.ones(2), torch.tensor(1.0), temperature=0.1)


# Of the CPU, whose choice the device does not hear of.
@pytest.mark.parametrize("implementation", ["aten"], indirect=True)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_the_cpu_and_marks_targets_out_of_range_with_nan() -> None:
    features_BD, rows_KD, targets_B = draw(24, 1000, 16)
    extras = options(24, 1000, targets_B)
    expected_B = sampled_softmax(features_BD, rows_KD, targets_B, temperature=0.1, **extras)
    targets_B[5], targets_B[6] = 1000, -7
    on_device = {name: tensor.cuda() for name, tensor in extras.items()}
    got_B = sampled_softmax(features_BD.cuda(), rows_KD.cuda(), targets_B.cuda(), temperature=0.1, **on_device).cpu()
    expected_B[5:7] = math.nan
    torch.testing.assert_close(got_B, expected_B, equal_nan=True)
