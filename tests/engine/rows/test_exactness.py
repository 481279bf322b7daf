"""The engine ends where dense SGD over all N rows ends (tests/oracle.py), and a broken engine does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.results.exports import write_rows
from engine.results.whole_files import Together
from engine.rows import active_rows
from engine.rows.active_rows import ActiveRows
from engine.rows.snapshots import RowReader
from engine.rows.transitions import TransitionLog
from engine.training.learning_rate import stepped_rate
from tests.engine.harness import SHORT, Case, dense_float32, errors, make_engine, rows_of_engine, run_both, worst


@pytest.mark.parametrize("kernels", ["compiled", "aten"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("active", [16, 64, 110])
def test_rows_equal_dense_sgd_after_three_passes(active, nesterov, kernels):
    case = Case(**{**SHORT, "active": active}, nesterov=nesterov, kernels=kernels)
    rows, oracle, losses = run_both(case, compare_dz=True)
    assert case.size % (case.block * case.lanes) != 0  # N is ragged
    assert case.steps > 3 * case.schedule.steps_per_pass
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-12)
    assert worst(case, *rows_of_engine(case, rows), oracle) <= 1e-12
    assert rows.visited == case.size
    assert (rows.readmitted > case.size) == (active < case.size)


@pytest.mark.parametrize(
    "change",
    [
        {"weight_decay": 0.0},
        {"momentum": 0.0},
        {"views": 3, "rows_grad": (True, False, True)},
        {"micro_batches": 2},
        {"micro_batches": 2, "kernels": "aten"},
        {"skips": (0, 5, 6, 40, 41, 90)},
        {"reshuffle": False},
        {"window": 120, "stride": 120, "active": 110},
        {"window": 120, "stride": 120, "active": 40},
        {"feature_init": True},
        {"feature_init": True, "active": 110},
        {"lanes": 1, "block": 24},
        {"norm_floor": 0.5, "weight_decay": 0.02},
        {"decoupled": True, "kernels": "compiled"},
        {"decoupled": True, "kernels": "aten", "micro_batches": 2, "views": 3, "rows_grad": (True, False, True)},
    ],
    ids=str,
)
def test_rows_equal_dense_sgd_with(change):
    case = Case(**{**SHORT, **change})
    assert case.steps > 3 * case.schedule.steps_per_pass and case.steps > max(case.skips, default=0)
    rows, oracle, _ = run_both(case)
    assert worst(case, *rows_of_engine(case, rows), oracle) <= 1e-12


class SteppedCase(Case):
    """A rate that falls to a tenth twice, after a warm-up."""

    def eta(self, step):
        drops = [self.steps // 2, 3 * self.steps // 4]
        return stepped_rate(step, warmup=self.steps // 10, highest=self.lr, warmup_factor=0.01, drops=drops, gamma=0.1)


def test_rows_that_were_away_while_the_rate_fell_in_steps_equal_dense_sgd():
    case = SteppedCase(**SHORT)
    etas = [case.eta(step) for step in range(case.steps)]
    assert len(set(etas[case.steps // 10 :])) == 3
    rows, oracle, _ = run_both(case)
    assert worst(case, *rows_of_engine(case, rows), oracle) <= 1e-12
    assert rows.log.etas(0).tolist() == etas
    assert rows.readmitted > case.size


def test_every_micro_batch_takes_its_share_of_a_ragged_batch():
    from datasets.schedule import Schedule
    from engine.training import step as step_module

    # One stripe and a bit: most lanes of the second stripe are empty.
    schedule = Schedule(0, 300, 256, 256, 256, 32, 8, False)
    filled = schedule.positions(1).reshape(8, 4, -1) >= 0
    shares = filled.swapaxes(0, 1).reshape(4, -1).sum(axis=1)
    assert shares.min() > 0
    assert shares.max() - shares.min() <= shares.mean()
    case = Case(**SHORT, micro_batches=2, passes=1.2)
    rows, oracle, _ = run_both(case)
    assert worst(case, *rows_of_engine(case, rows), oracle) <= 1e-12
    assert step_module.forward_places(np.array([[True, False], [False, True]])).tolist() == [
        [True, False],
        [False, True],
    ]
    assert step_module.forward_places(np.array([[True, False], [False, False]])).all()


def test_float32_error_is_at_most_twice_that_of_dense_float32_sgd():
    import torch

    case = Case(active=32, dtype=np.float32)
    rows, oracle, _ = run_both(case)
    dense = dense_float32(case)
    w, u = rows_of_engine(case, rows)
    truth = oracle.rows.detach().numpy(), oracle.momentum.numpy()
    engine_w, engine_u = errors(case, w, u, *truth)
    dense_w, dense_u = errors(case, *dense, *truth)
    # Rounding errors are random: compared over all rows, by their root mean square and by their worst.
    for engine_error, dense_error in ((engine_w, dense_w), (engine_u, dense_u)):
        assert np.sqrt((engine_error**2).mean()) <= 2 * np.sqrt((dense_error**2).mean())
        assert engine_error.max() <= 2 * dense_error.max()
    assert rows.w_KD.dtype == torch.float32


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    size=st.integers(50, 130),
    lanes=st.sampled_from([1, 2, 4]),
    active_share=st.integers(2, 6),
    windows=st.sampled_from([(24, 24), (48, 24), (48, 48)]),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    weight_decay=st.sampled_from([0.0, 1e-4, 1e-2]),
    nesterov=st.booleans(),
    skips=st.frozensets(st.integers(0, 60), max_size=12),
)
def test_rows_equal_dense_sgd_for_any_schedule(
    seed, size, lanes, active_share, windows, momentum, weight_decay, nesterov, skips
):
    case = Case(
        size=size,
        active=8 * active_share,
        window=windows[0],
        stride=windows[1],
        lanes=lanes,
        block=24 // lanes // 2,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov and momentum > 0,
        lr=0.2,
        passes=2.2,
        seed=seed,
        skips=skips,
        reshuffle=False,
    )
    rows, oracle, _ = run_both(case)
    assert worst(case, *rows_of_engine(case, rows), oracle) <= 1e-12


# Each mutation breaks one thing that the engine must do; the comparison above must notice every one.


class NoCatchUp(TransitionLog):
    def products(self, starts_M, end):
        return np.tile(np.eye(2), (len(starts_M), 1, 1))


class WrongOrder(TransitionLog):
    def products(self, starts_M, end):
        from engine.rows.transitions import EXTENDED, multiply, transition

        result = []
        for start in starts_M:
            product = np.eye(2, dtype=EXTENDED)[None]
            for step in range(start, end):
                one = transition(self._eta_T[step : step + 1], self.momentum, self.weight_decay, self.nesterov)
                product = multiply(product, one)  # earlier steps on the left
            result.append(product[0].astype(np.float64))
        return np.array(result)


class CurrentEtaForTheWholeGap(TransitionLog):
    def products(self, starts_M, end):
        from engine.rows.transitions import transition

        if end == 0:
            return super().products(starts_M, end)
        latest = transition(self._eta_T[end - 1 : end], self.momentum, self.weight_decay, self.nesterov)[0]
        return np.array([np.linalg.matrix_power(latest.astype(np.float64), int(end - start)) for start in starts_M])


class MomentumForgotten(ActiveRows):
    def _evict(self, slots, step):
        self.u_KD[slots] = 0
        super()._evict(slots, step)


class FirstInFirstOut(ActiveRows):
    """Admission without refreshing: a row leaves when it has been active longest."""

    def admit(self, step, positions_G, ids_G, first_view_GD):
        before = self.stamp_K.copy()
        known = self.host.slot[self.host.indices(positions_G[positions_G >= 0])]
        known = known[known >= 0]
        slots_G = super().admit(step, positions_G, ids_G, first_view_GD)
        self.stamp_K[known] = before[known]
        return slots_G


class OneStepLate(ActiveRows):
    """Rows are evicted as if they had already taken this step's transition."""

    def _evict(self, slots, step):
        positions = self.position_K[slots].copy()
        super()._evict(slots, step)
        for position in positions:
            block = int(position) // self.host.block
            if block in self.host:
                self.host.last_step[self.host.indices(np.array([position]))] = step + 1


MUTATIONS = {
    "admission: refresh": (FirstInFirstOut, TransitionLog),
    "admission: last_step": (OneStepLate, TransitionLog),
    "catch-up": (ActiveRows, NoCatchUp),
    "order of eta": (ActiveRows, WrongOrder),
    "current eta": (ActiveRows, CurrentEtaForTheWholeGap),
    "momentum": (MomentumForgotten, TransitionLog),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_engine_is_noticed(mutation):
    case = Case(**SHORT, passes=2.2)
    try:
        rows, oracle, _ = run_both(case, *MUTATIONS[mutation])
    except AssertionError:
        return  # the engine's own assertions noticed first
    assert worst(case, *rows_of_engine(case, rows), oracle) > 1e-9


def test_catching_up_a_copy_changes_nothing():
    case = Case(**SHORT, passes=1.5)
    rows, _, _ = run_both(case)
    before = {name: part.copy() for name, part in rows.state().items()}
    host_before = rows.host.weight.copy()
    first = rows_of_engine(case, rows)
    second = rows_of_engine(case, rows)
    assert all((before[name] == part).all() for name, part in rows.state().items())
    assert (rows.host.weight == host_before).all()
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_exported_rows_are_the_oracle_s_in_instance_order(tmp_path):
    case = Case(**SHORT, passes=1.3)
    rows, oracle, _ = run_both(case)
    with Together(tmp_path, ["rows.npy"]) as new:
        write_rows(new, "rows.npy", RowReader(rows), case.size, case.schedule.instances)
    np.testing.assert_allclose(np.load(tmp_path / "rows.npy"), oracle.rows.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_empty_slots_take_no_part():
    case = Case(active=64, passes=0.2)
    rows = make_engine(case)
    assert rows.mask() is not None
    assert not rows.mask().any()
    assert active_rows.EMPTY == -1
