"""What a softmax over some rows misses of that over all, in loss and in gradient at z: the arithmetic of tests/bench_negatives.py."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.methods.row_gradients import row_gradient
from engine.rows.active_rows import EMPTY
from tests import bench_negatives
from tests.engine.disk_runs import trunk_of
from tests.engine.harness import ALONE, Case, engine_step, make_batch, make_engine, rows_of_engine
from tests.engine.methods.some_negatives import Samples, errors, recent
from tests.engine.methods.weighted_negatives import WeightedSoftmax

CASE = Case(size=192, active=64, passes=2.2, kernels="aten")  # whole stripes: no place is empty
SIZES = (16, 32, 64, 128)  # K, of N = 192


@pytest.fixture(scope="module")
def run():
    """An engine in the middle of its second pass: (step, features, ids, all rows, what the engine then has: active positions, loss, dz)."""
    step = int(1.6 * CASE.schedule.steps_per_pass)
    rows, trunk = make_engine(CASE), trunk_of(CASE)
    for earlier in range(step):
        engine_step(CASE, rows, trunk, earlier)
    before, _ = rows_of_engine(CASE, rows)
    trunk.dz.clear()
    loss = engine_step(CASE, rows, trunk, step).loss
    batch = make_batch(CASE, step)
    assert batch.filled_G.all()
    (z_BD,) = trunk.features(batch.ids_G.tolist())
    samples = Samples(z_BD, torch.from_numpy(before), batch.ids_G, CASE.temperature)
    return step, samples, np.sort(rows.position_K[rows.position_K != EMPTY]), loss, trunk.dz[0]


def ids(positions):
    return CASE.schedule.instances(positions)


def small():
    generator = torch.Generator().manual_seed(5)
    z_BD, w_ND = (torch.randn(size, 3, generator=generator, dtype=torch.float64) for size in (4, 9))
    return F.normalize(z_BD), w_ND, np.array([0, 3, 3, 8])


def test_over_all_rows_it_is_the_cross_entropy_and_its_gradient():
    z_BD, w_ND, own_B = small()
    loss_B, dz_BD = Samples(z_BD, w_ND, own_B, 0.3).all()
    z_BD.requires_grad_()
    true_B = F.cross_entropy(F.normalize(z_BD) @ F.normalize(w_ND).T / 0.3, torch.from_numpy(own_B), reduction="none")
    true_B.sum().backward()
    torch.testing.assert_close(loss_B, true_B.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(dz_BD, z_BD.grad, rtol=0, atol=1e-12)


def test_over_the_active_rows_it_is_the_loss_and_the_gradient_of_the_engine(run):
    step, samples, active, loss, dz_BD = run
    here = recent(CASE.schedule, step, CASE.active)
    assert here.tolist() == active.tolist() and len(here) == CASE.active
    loss_B, gradient_BD = samples.some(ids(here), weighted=False)
    assert abs(float(loss_B.mean()) - loss) < 1e-12
    torch.testing.assert_close(gradient_BD / len(loss_B), dz_BD, rtol=0, atol=1e-12)


def test_the_softmax_that_is_trained_for_comparison_has_the_weighted_loss_and_gradient():
    """Of features and of rows: after a step with it, the rows are those of a step along the gradient that autograd makes."""
    step, rows, trunk = 40, make_engine(CASE), trunk_of(CASE)
    for earlier in range(step):
        engine_step(CASE, rows, trunk, earlier)
    before, momentum = rows_of_engine(CASE, rows)
    trunk.dz.clear()
    gradient = row_gradient(rows, ALONE, micro_batches=1, clip=0.0)
    softmax = WeightedSoftmax(rows, ALONE, gradient, temperature=CASE.temperature)
    loss = engine_step(CASE, rows, trunk, step, softmax=softmax).loss
    batch = make_batch(CASE, step)
    (z_BD,) = trunk.features(batch.ids_G.tolist())
    active = ids(recent(CASE.schedule, step, CASE.active))
    loss_B, gradient_BD = Samples(z_BD, torch.from_numpy(before), batch.ids_G, CASE.temperature).some(active, True)
    assert abs(float(loss_B.mean()) - loss) < 1e-12
    torch.testing.assert_close(gradient_BD / len(loss_B), trunk.dz[0], rtol=0, atol=1e-12)
    w_ND = torch.from_numpy(before).requires_grad_()
    logits_BK = z_BD @ F.normalize(w_ND[torch.from_numpy(active)]).T / CASE.temperature
    own_B1 = torch.from_numpy(np.searchsorted(active_sorted := np.sort(active), batch.ids_G))[:, None]
    logits_BK = logits_BK[:, torch.from_numpy(np.argsort(active))]
    assert (active_sorted[own_B1[:, 0]] == batch.ids_G).all()
    shift = np.log((CASE.size - 1) / (len(active) - 1))
    F.cross_entropy(
        (logits_BK + shift).scatter_add(1, own_B1, torch.full_like(own_B1, -shift, dtype=torch.float64)), own_B1[:, 0]
    ).backward()
    eta, decay = CASE.eta(step), CASE.weight_decay
    u_ND = CASE.momentum * torch.from_numpy(momentum) + w_ND.grad + decay * w_ND.detach()
    now, _ = rows_of_engine(CASE, rows)
    torch.testing.assert_close(torch.from_numpy(now), w_ND.detach() - eta * u_ND, rtol=0, atol=1e-12)


@pytest.mark.parametrize("drawn", [3, 5, 8])
def test_the_mean_of_the_weighted_sum_over_every_draw_is_the_sum_over_all_rows(drawn):
    z_BD, w_ND, _ = small()
    samples = Samples(z_BD, w_ND, np.zeros(4, np.int64), 0.3)
    draws = [np.array(draw) for draw in combinations(range(1, 9), drawn)]
    log_sum_BR = torch.stack([samples.some(draw, weighted=True)[0] for draw in draws], 1) + samples.own_logit_B[:, None]
    log_all_B = samples.all()[0] + samples.own_logit_B
    torch.testing.assert_close(log_sum_BR.exp().mean(1), log_all_B.exp(), rtol=1e-12, atol=0)
    # The loss is the logarithm of that sum, so its mean is below, and less so the more is drawn.
    assert (log_sum_BR.mean(1) - log_all_B < 1e-12).all()


def test_the_bias_of_the_weighted_loss_shrinks_with_the_draw_and_ends_at_zero():
    z_BD, w_ND, _ = small()
    samples = Samples(z_BD, w_ND, np.zeros(4, np.int64), 0.3)
    bias = []
    for drawn in range(1, 9):
        losses = [samples.some(np.array(draw), weighted=True)[0].mean() for draw in combinations(range(1, 9), drawn)]
        bias.append(float(torch.stack(losses).mean() - samples.all()[0].mean()))
    assert all(less < more for less, more in pairwise(bias)) and abs(bias[-1]) < 1e-12
    assert bias[0] < -0.1


def test_the_bias_of_recent_negatives_shrinks_with_their_number_and_ends_at_zero(run):
    step, samples, *_ = run
    generator = np.random.default_rng(0)
    by_size = [
        errors(samples, lambda: ids(recent(CASE.schedule, step, size, generator)), False, 40)  # noqa: B023 (called at once)
        for size in SIZES
    ]
    for name in ("loss_bias", "gradient_bias"):
        values = [abs(getattr(one, name)) for one in by_size]
        assert values == sorted(values, reverse=True) and values[-1] < values[0] / 3, (name, values)
    lengths = [one.gradient_length for one in by_size]
    assert lengths == sorted(lengths) and lengths[-1] < 1
    whole = errors(samples, lambda: np.arange(CASE.size), False, 2)
    assert abs(whole.loss_bias) < 1e-12 and whole.gradient_bias < 1e-7 and whole.gradient_noise < 1e-7
    # Over so many times fewer rows the sum is smaller by that factor, but for the own row, which is always in it.
    assert -np.log(CASE.size / SIZES[0]) < by_size[0].loss_bias < -0.7 * np.log(CASE.size / SIZES[0])


def test_the_term_takes_most_of_the_bias_away_and_leaves_the_noise(run):
    _, samples, *_ = run
    for size in SIZES[:3]:
        plain, weighted = (
            errors(samples, lambda: _uniform(CASE.size, size, seed), flag, 60)  # noqa: B023
            for seed, flag in ((_seeded(1), False), (_seeded(1), True))
        )
        assert abs(weighted.loss_bias) < abs(plain.loss_bias) / 4
        assert weighted.gradient_bias < plain.gradient_bias
        assert weighted.loss_noise > plain.loss_noise / 2


def test_another_order_of_visits_has_the_same_places_now_and_the_same_images_in_each_window(run):
    step, *_ = run
    schedule, generator = CASE.schedule, np.random.default_rng(3)
    window = step // schedule.steps_per_window
    real = recent(schedule, step, CASE.active)
    allowed = {p for number in range(window + 1) for s in range(schedule.steps_per_window)
               for p in schedule.positions(number * schedule.steps_per_window + s).tolist()}  # fmt: skip
    others = [recent(schedule, step, CASE.active, generator) for _ in range(4)]
    for other in others:
        assert len(np.unique(other)) == CASE.active and set(other.tolist()) <= allowed
        assert set(schedule.positions(step).tolist()) <= set(other.tolist())
    assert any(other.tolist() != real.tolist() for other in others)


def _seeded(seed):
    return np.random.default_rng(seed)


def _uniform(size, count, generator):
    return generator.choice(size, count, replace=False)


def test_the_bench_has_a_line_for_every_choice_and_every_k(run, monkeypatch):
    step, samples, *_ = run
    by_position = Samples(samples.z_BD, samples.w_ND[ids(np.arange(CASE.size))], _positions(samples), CASE.temperature)
    monkeypatch.setattr(bench_negatives, "SHARES", (8, 4))
    state = bench_negatives.State(by_position, CASE.schedule, step)
    lines = [line.strip("|").split("|") for line in bench_negatives.errors_table({"1/2": state}, 3).splitlines()[2:]]
    assert [line[1].strip() for line in lines] == ["1/8"] * 4 + ["1/4"] * 4
    assert [line[2].strip() for line in lines][:4] == ["recent", "recent, logQ", "window, logQ", "all, logQ"]
    assert all(len(line) == 10 for line in lines)
    recent_loss, weighted_loss = (float(line[3]) for line in lines[:2])
    assert recent_loss < weighted_loss and recent_loss == pytest.approx(float(lines[0][8]), abs=0.5)
    costs = bench_negatives.cost_table([64, 128], 16, 8, 2).splitlines()[2:]
    assert [line.split("|")[3].strip() for line in costs] == ["16", "64", "16", "128"]


def _positions(samples):
    """The position of each feature's own row."""
    order = np.argsort(ids(np.arange(CASE.size)))
    return order[samples.own_B.numpy()]
