"""The growth of memory: the slope is the true one, as sure as it says."""

import numpy as np
import pytest

from engine.profiling.slope import slope_of


def test_the_slope_of_a_line_is_found_exactly():
    steps = np.arange(400)
    slope, error = slope_of(steps, 5e8 + 1024.0 * steps)
    assert slope == pytest.approx(1024.0) and error < 1e-6


def test_of_a_hundred_noisy_flat_lines_some_ninety_five_intervals_hold_zero():
    draw = np.random.default_rng(0)
    found = [slope_of(np.arange(1000), draw.normal(1e9, 1e6, 1000)) for _ in range(300)]
    holding = sum(slope - error <= 0 <= slope + error for slope, error in found)
    assert 0.90 * 300 <= holding <= 0.99 * 300


def test_a_leak_that_is_larger_than_its_noise_is_seen():
    draw, steps = np.random.default_rng(1), np.arange(1000)
    slope, error = slope_of(steps, 1e9 + 4096.0 * steps + draw.normal(0, 1e5, 1000))
    assert slope - error > 0 and slope == pytest.approx(4096.0, rel=0.1)


@pytest.mark.parametrize("count", [0, 1, 19])
def test_too_few_samples_have_no_slope(count):
    assert slope_of(range(count), range(count)) is None
    assert slope_of([7] * 100, range(100)) is None
