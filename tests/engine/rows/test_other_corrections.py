import numpy as np
import pytest

from tests.engine.rows.other_corrections import LOGS

STARTS = np.array([0, 3, 17, 40, 40])


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_power_is_exact_at_a_constant_rate_and_not_at_another(nesterov: bool) -> None:
    exact, power = (LOGS[name](0.9, 1e-3, nesterov) for name in ("exact", "power"))
    for log in (exact, power):
        log.extend(np.full(40, 0.1))
    np.testing.assert_allclose(power.products(STARTS, 40), exact.products(STARTS, 40), rtol=1e-12, atol=1e-15)
    for log in (exact, power):
        log.extend(np.full(5, 0.02))
    assert np.abs(power.products(STARTS[:3], 45) - exact.products(STARTS[:3], 45)).max() > 1e-3


def test_momentum_alone_is_exact_without_decay_and_none_is_the_identity() -> None:
    rates = np.linspace(0.1, 0.01, 40)
    for decay, same in ((0.0, True), (1e-2, False)):
        exact, momentum = (LOGS[name](0.9, decay, False) for name in ("exact", "momentum"))
        exact.extend(rates)
        momentum.extend(rates)
        assert np.array_equal(exact.products(STARTS, 40), momentum.products(STARTS, 40)) is same
    assert np.array_equal(LOGS["none"](0.9, 1e-2, False).products(STARTS, 40), np.tile(np.eye(2), (5, 1, 1)))
