"""The closed form of missed steps equals taking them one by one, for any learning rates."""

import ctypes
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ranks.process_table import resident_bytes
from engine.rows.active_rows import catch_up, raise_to_floor
from engine.rows.transitions import EXTENDED, TransitionLog, multiply, transition
from engine.training.learning_rate import learning_rate


def scalar_loop(etas, momentum, weight_decay, nesterov, w, u):
    """One row of one number through every step, in extended precision: the slow twin."""
    m, decay = np.longdouble(momentum), np.longdouble(weight_decay)
    w, u = np.longdouble(w), np.longdouble(u)
    for eta in etas:
        if np.isnan(eta):
            continue
        gradient = decay * w
        u = m * u + gradient
        w = w - np.longdouble(eta) * (gradient + m * u if nesterov else u)
    return w, u


def log_of(etas, momentum, weight_decay, nesterov):
    log = TransitionLog(momentum, weight_decay, nesterov)
    log.extend(np.asarray(etas, dtype=np.float64))
    return log


def assert_same_row(got, expected, momentum, weight_decay):
    (w, u), (true_w, true_u) = got, expected
    assert abs(w - true_w) <= 1e-12 * abs(true_w)
    assert abs(u - true_u) <= 1e-12 * max(abs(true_u), weight_decay * abs(true_w) / (1 - momentum), 1e-12 * abs(true_w))


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 400),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    weight_decay=st.sampled_from([0.0, 1e-6, 1e-4, 1e-2]),
    nesterov=st.booleans(),
    skip_share=st.sampled_from([0.0, 0.1, 0.9]),
    seed=st.integers(0, 2**31),
)
def test_product_equals_one_step_after_the_other(steps, momentum, weight_decay, nesterov, skip_share, seed):
    rng = np.random.default_rng(seed)
    etas = rng.uniform(0, 0.5, steps)
    etas[rng.uniform(size=steps) < skip_share] = np.nan
    log = log_of(etas, momentum, weight_decay, nesterov)
    starts = rng.integers(0, steps + 1, 5)
    end = int(rng.integers(starts.max(), steps + 1))
    w, u = rng.normal(), rng.normal()
    for start, product in zip(starts, log.products(starts, end), strict=True):
        expected = scalar_loop(etas[start:end], momentum, weight_decay, nesterov, w, u)
        got = catch_up(np.array([[w]]), np.array([[u]]), product[None])
        assert_same_row((got[0][0, 0], got[1][0, 0]), expected, momentum, weight_decay)


def product_of_kept_segments(etas, log, start, end):
    """The slow twin, to the bit: every segment's product made of its halves', and [start, end) put together from them."""

    def segment(level, index):
        if level == 0:
            return transition(etas[index : index + 1], log.momentum, log.weight_decay, log.nesterov)
        return multiply(segment(level - 1, 2 * index + 1), segment(level - 1, 2 * index))

    product, step, height = np.eye(2, dtype=EXTENDED)[None], start, max(end.bit_length(), 1)
    for levels, climbs in ((range(height), True), (reversed(range(height)), False)):
        for level in levels:
            is_next = (step >> level) & 1 == 1 and step % (1 << level) == 0
            if step + (1 << level) <= end and (is_next or not climbs):
                product, step = multiply(segment(level, step >> level), product), step + (1 << level)
    return product[0].astype(np.float64)


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(1, 300), cuts=st.lists(st.integers(0, 300), max_size=4), seed=st.integers(0, 2**31))
def test_products_are_those_of_kept_segments_to_the_bit_however_the_steps_came(steps, cuts, seed):
    rng = np.random.default_rng(seed)
    etas = rng.uniform(0, 0.5, steps)
    etas[rng.uniform(size=steps) < 0.2] = np.nan
    log = TransitionLog(0.9, 1e-3, nesterov=False)
    for part in np.split(etas, sorted(cut for cut in cuts if cut < steps)):
        log.extend(part)
    np.testing.assert_array_equal(log.etas(), etas)
    starts = rng.integers(0, steps + 1, 6)
    for end in (steps, int(starts.max())):
        chosen = starts[starts <= end]
        for start, product in zip(chosen.tolist(), log.products(chosen, end), strict=True):
            np.testing.assert_array_equal(product, product_of_kept_segments(etas, log, start, end))


def test_a_product_of_two_has_the_bits_of_the_sum_over_an_axis():
    rng = np.random.default_rng(0)
    later, earlier = (
        rng.normal(size=(2000, 2, 2)).astype(EXTENDED) * 10.0 ** rng.integers(-300, 300, (2000, 1, 1)) for _ in range(2)
    )
    np.testing.assert_array_equal(multiply(later, earlier), (later[:, :, :, None] * earlier[:, None, :, :]).sum(axis=2))


def give_back_freed_memory():
    """What glibc keeps of freed pieces, whoever had them."""
    ctypes.CDLL(None).malloc_trim(0)


def test_a_log_takes_memory_for_its_steps_and_not_for_its_room():
    log = TransitionLog(0.9, 1e-4, nesterov=False)
    log.extend(np.full(2**22, 0.03))
    give_back_freed_memory()  # of whatever ran in this process before
    before = resident_bytes()
    log.extend(np.full(16, 0.03))  # now there is room for as many again, of 64 MiB
    give_back_freed_memory()
    # Half of the room. What else is in this process may move by some MiB: 16.1 was seen.
    assert resident_bytes() - before < 32 * 2**20


def test_a_step_costs_16_bytes_and_a_log_of_millions_is_there_at_once():
    log = TransitionLog(0.9, 1e-4, nesterov=False)
    log.extend(np.full(2**21, 0.03))
    sizes = [log._eta_T.nbytes, *(level.nbytes for level in log._levels)]
    assert sum(sizes) <= 16.01 * 2**21
    assert (log.products(np.array([0, 2**20]), 2**21) < 1).all()


@cache
def falling_rates(steps, highest):
    return [
        learning_rate(t, total=steps, warmup=5000, highest=highest, lowest=1e-6, warmup_factor=0.01)
        for t in range(steps)
    ]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("momentum", "weight_decay", "eta"), [(0.9, 1e-4, 0.03), (0.99, 1e-6, 0.1), (0.9, 0.0, 0.03)])
def test_gap_of_a_hundred_thousand_steps(nesterov, momentum, weight_decay, eta):
    steps = 100_000
    etas = falling_rates(steps, eta)
    log = log_of(etas, momentum, weight_decay, nesterov)
    for start in (0, 12_345):
        expected = scalar_loop(etas[start:], momentum, weight_decay, nesterov, 1.0, -0.5)
        w, u = catch_up(np.array([[1.0]]), np.array([[-0.5]]), log.products(np.array([start]), steps))
        assert_same_row((w[0, 0], u[0, 0]), expected, momentum, weight_decay)


def test_a_hundred_thousand_equal_steps_do_not_add_up_rounding():
    # Plain float64 loses 3e-12 here: 1 - eta * lambda is rounded once and multiplied 10^5 times.
    eta, decay, steps = 0.03, 1e-4, 100_000
    log = log_of(np.full(steps, eta), 0.0, decay, False)
    truth = np.exp(steps * np.log1p(-np.longdouble(eta) * np.longdouble(decay)))
    product = log.products(np.array([0]), steps)[0, 0, 0]
    assert abs(product - truth) <= 1e-14 * truth


def test_equals_torch_sgd_step_by_step():
    rng = np.random.default_rng(0)
    etas = rng.uniform(0, 0.3, 50)
    for nesterov in (False, True):
        weight = torch.nn.Parameter(torch.from_numpy(rng.normal(size=(4, 3))))
        start = weight.detach().numpy().copy()
        sgd = torch.optim.SGD([weight], lr=1.0, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
        for eta in etas:
            sgd.param_groups[0]["lr"] = eta
            weight.grad = torch.zeros_like(weight)
            sgd.step()
        log = log_of(etas, 0.9, 0.01, nesterov)
        w, _ = catch_up(start, np.zeros_like(start), log.products(np.zeros(4, dtype=np.int64), 50))
        np.testing.assert_allclose(w, weight.detach().numpy(), rtol=1e-13)


def test_a_skipped_step_is_the_identity():
    log = log_of([np.nan, np.nan, np.nan], 0.9, 0.1, False)
    np.testing.assert_array_equal(log.products(np.array([0, 1, 3]), 3), np.tile(np.eye(2), (3, 1, 1)))


def test_a_log_read_back_gives_the_same_bits():
    etas = np.random.default_rng(1).uniform(0, 0.3, 1500)
    etas[7] = np.nan
    log = log_of(etas, 0.9, 1e-4, True)
    again = log_of(log.etas(), 0.9, 1e-4, True)
    starts = np.arange(0, 1500, 7)
    np.testing.assert_array_equal(log.products(starts, 1500), again.products(starts, 1500))


def test_the_paper_s_matrix_power_is_off_under_a_cosine_schedule():
    steps = 35_000
    etas = [
        learning_rate(t, total=steps, warmup=0, highest=0.03, lowest=1e-6, warmup_factor=0.01) for t in range(steps)
    ]
    exact = log_of(etas, 0.9, 1e-4, False).products(np.array([0]), steps)[0, 0, 0]
    power = log_of(np.full(steps, etas[0]), 0.9, 1e-4, False).products(np.array([0]), steps)[0, 0, 0]
    assert abs(power - exact) / exact > 0.1


def test_rows_under_the_floor_are_rescaled_with_their_momentum():
    w, u = np.array([[0.0, 0.3], [0.0, 3.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    raised_w, raised_u = raise_to_floor(w, u, 0.6)
    np.testing.assert_allclose(raised_w, [[0, 0.6], [0, 3.0], [0, 0]])
    np.testing.assert_allclose(raised_u, [[2, 2], [1, 1], [1, 1]])


def test_short_segments_of_the_latest_steps_are_kept_to_the_bit_and_older_ones_formed(monkeypatch):
    log = TransitionLog(0.9, 1e-4, False)
    rates = np.random.default_rng(0).uniform(0.01, 0.2, 9001)
    rates[::37] = np.nan
    starts = np.random.default_rng(1).integers(0, 9001, 300)
    for part in np.split(rates, [1, 2, 7, 23, 4096, 4097, 8999]):
        log.extend(part)
        with monkeypatch.context() as patch:
            kept = log.products(starts[starts <= log.steps], log.steps)
            patch.setattr(log, "_oldest", lambda level: log.steps + 1)  # nothing is recent
            formed = log.products(starts[starts <= log.steps], log.steps)
        assert np.array_equal(kept, formed)
        for level in range(4):
            indices = np.arange(log._oldest(level), log.steps >> level)
            assert len(indices) >= min(log.steps, 4096 - 8) >> level
            if len(indices):
                assert np.array_equal(log._segments(level, indices), log._formed(level, indices))
