"""Fused and written are two ways to the same rows, and neither touches a row before it is told to."""

import numpy as np
import pytest
import torch

from engine.methods.row_gradients import (
    FusedUpdate,
    SoftmaxInputs,
    WrittenGradient,
    is_finite,
    row_gradient,
    why_written,
)
from kernels.sampled_softmax import combine, softmax_forward_negatives
from tests.engine.harness import ALONE, Case, make_engine


def inputs_of(rows, samples=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z_XD = torch.randn(samples, rows.w_KD.shape[1], generator=generator).to(rows.w_KD)
    targets_X = torch.arange(samples) * 3
    forward = softmax_forward_negatives(z_XD, rows.w_KD, targets_X, temperature=0.2)
    weight_X = torch.full((samples,), 1 / samples).to(rows.w_KD)
    lse_X = combine([forward[:2]])
    return SoftmaxInputs(
        z_XD, targets_X, lse_X, weight_X, None, torch.arange(samples) % 3 > 0, forward.shortest, temperature=0.2
    )


def full_rows(dtype=np.float64, **change):
    return make_engine(Case(active=200, dtype=dtype, **change))


@pytest.mark.parametrize("kernels", ["compiled", "aten"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_fused_and_written_lead_to_the_same_rows(kernels, nesterov):
    ends = []
    for way in (FusedUpdate, lambda rows: WrittenGradient(rows, ALONE, 0.0, "for the test")):
        rows = full_rows(nesterov=nesterov, kernels=kernels)
        gradient = way(rows)
        before = rows.w_KD.clone()
        for step in range(3):
            assert gradient.add(inputs_of(rows, seed=step))
            if step == 0:
                assert torch.equal(rows.w_KD, before)  # only `apply` changes rows
            gradient.apply(0.5)
        assert not torch.equal(rows.w_KD, before)
        ends.append((rows.w_KD, rows.u_KD))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("way", ["fused", "written"])
def test_what_was_discarded_leaves_no_trace(way):
    rows = full_rows()
    gradient = row_gradient(rows, ALONE, micro_batches=1 if way == "fused" else 2, clip=0.0)
    assert gradient.name == way
    before = rows.w_KD.clone()
    assert gradient.add(inputs_of(rows, seed=1))
    gradient.discard()
    assert torch.equal(rows.w_KD, before)
    twin = full_rows()
    for one in (gradient, row_gradient(twin, ALONE, micro_batches=1, clip=0.0)):
        assert one.add(inputs_of(one.rows, seed=2))
        one.apply(0.1)
    torch.testing.assert_close(rows.w_KD, twin.w_KD, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("way", ["fused", "written"])
@pytest.mark.parametrize(("length", "finite"), [(1e-30, True), (1e-38, True), (1e-44, False)])
def test_a_gradient_that_a_short_row_makes_infinite_is_told_and_one_that_it_does_not_is_none(way, length, finite):
    rows = full_rows(np.float32)
    inputs = inputs_of(rows)
    unit = torch.nn.functional.normalize(rows.w_KD[6], dim=0)
    rows.w_KD[6] = unit * length
    forward = softmax_forward_negatives(inputs.z_XD, rows.w_KD, inputs.targets_X, temperature=0.2)
    inputs.lse_X, inputs.shortest = combine([forward[:2]]), forward.shortest
    inputs.weight_X = inputs.weight_X * 1e-3  # 1e-38 is under what the bound vouches for, and finite all the same
    gradient = row_gradient(rows, ALONE, micro_batches=1 if way == "fused" else 2, clip=0.0)
    before = rows.w_KD.clone()
    assert gradient.add(inputs) == finite
    assert torch.equal(rows.w_KD, before)


def test_clipping_cuts_the_norm_over_all_rows_and_nothing_else():
    rows, free = full_rows(), full_rows()
    before = rows.w_KD.clone()
    cut = row_gradient(rows, ALONE, micro_batches=1, clip=1e-3)
    assert (cut.name, cut.why) == ("written", "its norm is cut")
    cut.add(inputs_of(rows))
    cut.apply(1.0)
    whole = row_gradient(free, ALONE, micro_batches=1, clip=0.0)
    whole.add(inputs_of(free))
    whole.apply(1.0)
    decay = 1e-3 * before
    gradient, cut_gradient = before - free.w_KD - decay, before - rows.w_KD - decay
    assert float(cut_gradient.norm()) == pytest.approx(1e-3)
    torch.testing.assert_close(cut_gradient / cut_gradient.norm(), gradient / gradient.norm(), rtol=1e-9, atol=1e-9)


def test_what_needs_the_gradient_written_is_named():
    assert why_written(1, 0.0) is None
    assert why_written(4, 0.0) == "it is added up over micro-batches"
    assert why_written(1, 2.0) == "its norm is cut"


def test_a_rank_without_rows_has_nothing_that_is_not_finite():
    assert is_finite(torch.empty(0, 4))
    assert is_finite(torch.ones(2, 2))
    for value in (float("nan"), float("inf"), -float("inf")):
        assert not is_finite(torch.tensor([[1.0, value]]))
