"""Several ranks end where the oracle ends, in both ways to share the rows out, and train the network that one rank trains."""

import numpy as np
import pytest
import torch

from tests.engine.harness import SHORT, Case, dense_float32, errors, make_batch, make_oracle, run_both, worst
from tests.engine.rank_runs import (
    SMALL,
    steps_of_a_loss_scaler,
    train_on_given_features,
    train_with_trunk,
    trunk_goes_on,
)
from tests.on_ranks import on_ranks


def dense(case, features, dtype):
    """The oracle on the features of a run, [{instance: z [V, D]}]; in float32 it is dense SGD in that precision."""
    oracle = make_oracle(case)
    double = torch.Tensor.double
    if dtype == torch.float32:
        oracle.rows.data, oracle.momentum = oracle.rows.data.float(), oracle.momentum.float()
        oracle.sgd.state[oracle.rows]["momentum_buffer"] = oracle.momentum
        torch.Tensor.double = torch.Tensor.float
    try:
        for step in range(case.steps):
            ids = [int(i) if i >= 0 else None for i in make_batch(case, step).ids_G]
            nothing = np.zeros((case.views, case.dim), dtype=np.float32)
            z = np.stack([features[step].get(i, nothing) for i in ids], axis=1)
            oracle.step(ids, torch.from_numpy(z).to(dtype), case.eta(step))
    finally:
        torch.Tensor.double = double
    return oracle.rows.detach().double().numpy(), oracle.momentum.double().numpy()


def assert_error_at_most_twice(case, w, u, truth, dense_float32):
    ours, theirs = errors(case, w, u, *truth), errors(case, *dense_float32, *truth)
    for our_error, their_error in zip(ours, theirs, strict=True):
        assert np.sqrt((our_error**2).mean()) <= 2 * np.sqrt((their_error**2).mean())
        assert our_error.max() <= 2 * their_error.max()


@pytest.mark.parametrize(
    ("count", "change"),
    [
        (2, {}),
        (4, {}),
        (4, {"active": 110}),
        (2, {"active": 16, "nesterov": True, "kernels": "aten"}),
        (2, {"micro_batches": 2}),
        (2, {"decoupled": True}),
        (2, {"feature_init": True}),
        (2, {"views": 3, "rows_grad": (True, False, True), "skips": (0, 5, 40, 41)}),
        (3, {"lanes": 6, "batch": 12, "active": 60, "block": 2}),
    ],
    ids=str,
)
def test_lanes_equal_dense_sgd_after_three_passes(count, change):
    case = Case(**{**SHORT, **change})
    assert case.steps > 3 * case.schedule.steps_per_pass
    assert case.size % (case.block * case.lanes) != 0  # N is ragged: some ranks have fewer images in a batch, or none
    rows, oracle, losses = run_both(case)
    told = on_ranks(count, train_on_given_features, case)
    for w, u, _, visited in told:
        assert worst(case, w, u, oracle) <= 1e-12
        assert visited == case.size == rows.visited
    for _, _, own_losses, _ in told:
        np.testing.assert_allclose(own_losses, losses[:, 0], rtol=1e-12)


def test_a_rank_without_any_image_takes_part():
    # The last stripe has 6 images, all of lane 0: three of four ranks have none in the last batches.
    case = Case(size=78, active=32, window=24, stride=24, passes=3.1, reshuffle=False)
    empty = [make_batch(case, step).filled_G.reshape(4, -1).any(axis=1) for step in range(case.steps)]
    assert sum(filled.sum() == 1 for filled in empty) > 0
    _, oracle, losses = run_both(case)
    for w, u, own_losses, _ in on_ranks(4, train_on_given_features, case):
        assert worst(case, w, u, oracle) <= 1e-12
        np.testing.assert_allclose(own_losses, losses[:, 0], rtol=1e-12)


@pytest.mark.parametrize(
    ("count", "change"),
    [
        (1, {}),
        (2, {}),
        (4, {"active": 110}),
        (2, {"micro_batches": 2, "skips": (0, 5, 40, 41)}),
        (2, {"feature_init": True, "views": 2, "rows_grad": (True, False), "nesterov": True}),
        (2, {"momentum": 0.0}),
        (2, {"decoupled": True}),
    ],
    ids=str,
)
def test_zero3_errs_at_most_twice_as_much_as_dense_float32_sgd(count, change):
    case = Case(**{**SMALL, **change})
    _, oracle, losses = run_both(case)
    truth = oracle.rows.detach().numpy(), oracle.momentum.numpy()
    w, u, own_losses, visited = on_ranks(count, train_on_given_features, case, "zero3")[0]
    assert visited == case.size
    np.testing.assert_allclose(own_losses, losses[:, 0], rtol=1e-4)
    if not case.momentum:
        u = truth[1]
    assert_error_at_most_twice(case, w, u, truth, dense_float32(case))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("sharding", ["lanes", "zero3"])
def test_with_a_real_trunk_rows_err_at_most_twice_as_much_as_dense_float32_sgd(sharding, stage):
    case = Case(**SMALL, lr=0.2)
    assert case.steps > 3 * case.schedule.steps_per_pass
    w, u, features, losses, _ = on_ranks(2, train_with_trunk, case, sharding, stage)[0]
    assert np.isfinite(losses).all()
    truth = dense(case, features, torch.float64)
    assert_error_at_most_twice(case, w, u, truth, dense(case, features, torch.float32))


@pytest.mark.parametrize(
    ("count", "sharding", "stage"), [(2, "lanes", 0), (4, "lanes", 2), (2, "lanes", 3), (2, "zero3", 1)]
)
def test_every_number_of_ranks_trains_the_same_network(count, sharding, stage):
    # A plain run of one rank is the reference; what ranks change is the order of sums. The last batches of a pass are ragged.
    case = Case(**SMALL, lr=0.1, passes=1.2)
    one, many = (on_ranks(n, train_with_trunk, case, sharding, stage)[0] for n in (1, count))
    np.testing.assert_allclose(many[3], one[3], rtol=2e-4)
    model, momentum = (dict(part) for part in many[4])
    for name, value in one[4][0].items():
        np.testing.assert_allclose(model[name], value, rtol=0, atol=2e-4 * max(1.0, np.abs(value).max()), err_msg=name)
    assert momentum.keys() == one[4][1].keys()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_trunk_and_its_momentum_go_on_with_another_number_of_ranks(stage):
    case = Case(**SMALL)
    _, state = on_ranks(2, trunk_goes_on, case, stage, None, range(4))[0]
    _, straight = on_ranks(2, trunk_goes_on, case, stage, state, range(4, 8))[0]
    for count in (1, 4):
        for began, ended in on_ranks(count, trunk_goes_on, case, stage, state, range(4, 8)):
            for part in (0, 1):
                for name, value in state[part].items():
                    assert np.array_equal(began[part][name], value), name
                for name, value in straight[part].items():
                    scale = max(1.0, np.abs(value).max())
                    np.testing.assert_allclose(ended[part][name], value, rtol=0, atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize(("sharding", "stage"), [("lanes", 0), ("lanes", 2), ("zero3", 3)])
def test_a_step_that_the_loss_scaler_skips_moves_no_row_on_any_rank(sharding, stage):
    case = Case(**{**SMALL, "active": 110}, lr=0.5)  # every row is there from the start
    for told in on_ranks(2, steps_of_a_loss_scaler, case, sharding, stage):
        assert [applied for applied, *_ in told] == [False, False, True, True]
        for applied, before, after, eta in told:
            assert len(before) and before.dtype == np.float32
            assert np.array_equal(before, after) == (not applied)
            assert np.isnan(eta) == (not applied)
