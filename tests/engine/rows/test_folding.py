"""Folded rows: one vector instead of two, equal to dense SGD as far as float32 can tell, whatever checkpoints and skips come between."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.rows.folding import Folding, departure, is_folded, steps_to_fold
from engine.rows.store import NEVER_VISITED, Block
from engine.rows.transitions import TransitionLog, catch_up
from tests.engine.disk_runs import DiskRun, memory_digest, trained_oracle
from tests.engine.harness import Case, errors, rows_of_engine, run_both

# m = 0.3 forgets in two dozen steps, so that rows of a small case stay away long enough.
FOLDS = Case(size=300, active=24, batch=12, momentum=0.3, weight_decay=1e-3, passes=2.2, fold=True)


def log_of(etas, momentum=0.9, weight_decay=1e-4, nesterov=False):
    log = TransitionLog(momentum, weight_decay, nesterov)
    for eta in etas:
        log.append(eta)
    return log


def test_the_number_of_steps_follows_from_momentum_and_weight_decay():
    assert steps_to_fold(0.9, 1e-4) == 290
    assert steps_to_fold(0.0, 1e-4) == 1
    assert steps_to_fold(0.95, 1e-4) == 581
    assert steps_to_fold(0.99, 1e-4) == 2804
    # Without decay nothing but momentum moves a row, and it must be gone to 1e-12 of the row.
    assert steps_to_fold(0.9, 0.0) == 486


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.95]),
    weight_decay=st.sampled_from([0.0, 1e-4, 1e-3]),
    nesterov=st.booleans(),
    ratio=st.sampled_from([0.0, 1e-3, 1.0, 900.0]),
    gap=st.integers(0, 300),
    skipped=st.booleans(),
)
def test_a_folded_row_comes_back_where_the_two_vectors_would_have(
    seed, momentum, weight_decay, nesterov, ratio, gap, skipped
):
    rng = np.random.default_rng(seed)
    needed = steps_to_fold(momentum, weight_decay)
    etas = rng.uniform(0.01, 0.3, needed + gap + 10).tolist()
    if skipped:  # a skipped step forgets nothing
        for step in rng.integers(0, len(etas), 7):
            etas[step] = None
    log = log_of(etas, momentum, weight_decay, nesterov and momentum > 0)
    folding = Folding(log)
    assert folding.steps == needed
    w = rng.standard_normal((3, 16)).astype(np.float32)
    u = (ratio * rng.standard_normal((3, 16))).astype(np.float32)
    start = np.array([0, 4, 9])
    end = log.steps
    folded_w, last_step = folding.fold(w, u, start)
    assert folded_w.dtype == np.float32
    got_w, got_u = folding.catch_up(folded_w, np.zeros_like(u), last_step, np.zeros(3, bool), end)
    true_w, true_u = catch_up(w.astype(np.float64), u.astype(np.float64), log.products(start, end))
    told = is_folded(last_step)
    if not skipped:
        assert told.all()
    assert (departure(last_step) == start).all()
    scale = np.maximum.reduce(
        [
            np.linalg.norm(true_u, axis=1),
            weight_decay / (1 - momentum) * np.linalg.norm(true_w, axis=1),
            1e-12 * np.linalg.norm(true_w, axis=1),
        ]
    )
    error_w = np.linalg.norm(got_w - true_w, axis=1) / np.linalg.norm(true_w, axis=1)
    error_u = np.linalg.norm(got_u - true_u, axis=1) / scale
    assert error_w[told].max(initial=0) <= 2 * 2.0**-24 * 2
    assert error_u[told].max(initial=0) <= 4 * 2.0**-24
    # Folded when it left, or when it comes back: the same bits.
    late_w, late_u = folding.catch_up(w, u, start, np.zeros(3, bool), end)
    assert late_w[told].tobytes() == got_w[told].tobytes()
    assert late_u[told].tobytes() == got_u[told].tobytes()


def test_a_row_whose_momentum_one_vector_cannot_tell_is_not_folded():
    log = log_of([None] * 400)  # every step was skipped: nothing is forgotten
    folding = Folding(log)
    w, u = np.ones((2, 4), np.float32), np.ones((2, 4), np.float32)
    u[1] = 0
    kept, last_step = folding.fold(w, u, np.array([0, 0]))
    assert last_step.tolist() == [0, -2]
    assert (kept == w).all()


def test_a_block_is_folded_whole_or_keeps_its_momentum():
    log = log_of([0.1] * 400)
    folding = Folding(log)
    rng = np.random.default_rng(0)
    w, u = rng.standard_normal((4, 8)).astype(np.float32), rng.standard_normal((4, 8)).astype(np.float32)
    old = Block(w, u, np.array([3, NEVER_VISITED, 50, -2 - 10]))
    folded = folding.fold_block(old, 400)
    assert folded.momentum is None
    assert folded.last_step.tolist() == [-5, NEVER_VISITED, -52, -12]
    young = folding.fold_block(Block(w, u, np.array([3, 399, 50, 60])), 400)
    assert is_folded(young.last_step).tolist() == [True, False, True, True]
    assert (young.momentum[1] == u[1]).all()
    assert (young.momentum[0] == 0).all()
    assert (old.last_step == [3, -1, 50, -12]).all()  # the caller's block is its own


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"weight_decay": 0.0, "momentum": 0.15},
        {"nesterov": True},
        {"momentum": 0.0},
        {"skips": (5, 6, 40, 41, 99)},
    ],
    ids=str,
)
def test_rows_equal_dense_sgd_as_far_as_float32_can_tell(tmp_path, change):
    case = Case(**{**vars(FOLDS), **change})
    run = DiskRun(case, tmp_path)
    run.train(case.steps)
    run.finish()
    generations = run.disk.disk.generations.values()
    assert sum(g.blocks for g in generations if len(g.columns) == 2) > 0, "no block was ever folded"
    oracle = trained_oracle(case)
    w, u = rows_of_engine(case, run.rows)
    error_w, error_u = errors(case, w, u, oracle.rows.detach().numpy(), oracle.momentum.numpy())
    # float64 rows: what is seen is the fold's own error, one half ulp of float32 at most each time.
    assert error_w.max() <= 1e-6
    assert error_u.max() <= 1e-5 or case.momentum == 0
    assert run.rows.visited == case.size


def test_float32_rows_that_fold_are_as_near_to_the_oracle_as_those_that_do_not(tmp_path):
    case = Case(**{**vars(FOLDS), "dtype": np.float32})
    run = DiskRun(case, tmp_path).train(case.steps)
    plain = run_both(Case(**{**vars(case), "fold": False}))[0]
    oracle = trained_oracle(Case(**{**vars(case), "fold": False, "dtype": np.float64}))
    truth = oracle.rows.detach().numpy(), oracle.momentum.numpy()
    with_folding = errors(case, *rows_of_engine(case, run.rows), *truth)
    without = errors(case, *rows_of_engine(case, plain), *truth)
    for folded, exact in zip(with_folding, without, strict=True):
        assert np.sqrt((folded**2).mean()) <= 2 * np.sqrt((exact**2).mean())


def test_a_row_that_the_schedule_brings_back_too_early_is_never_folded(tmp_path):
    case = Case(active=24, momentum=0.9, weight_decay=1e-3, passes=2.2, fold=True)  # away for less than T
    assert steps_to_fold(0.9, 1e-3) > case.schedule.steps_per_pass
    run = DiskRun(case, tmp_path).train(case.steps, save_every=30)
    run.finish()
    assert all(len(g.columns) == 3 for g in run.disk.disk.generations.values())
    assert run.digest() == memory_digest(Case(**{**vars(case), "fold": False}))


@settings(max_examples=6, deadline=None)
@given(
    save_every=st.integers(1, 60),
    stops=st.lists(st.integers(1, 113), max_size=3),
    skips=st.frozensets(st.integers(0, 70), max_size=8),
    in_memory=st.booleans(),
    bfloat16=st.booleans(),
    readers=st.sampled_from([0, 2]),
    read_ahead=st.integers(1, 3),
)
def test_checkpoints_resumes_and_reading_ahead_change_no_bit_of_a_run_that_folds_or_rounds(
    tmp_path_factory, save_every, stops, skips, in_memory, bfloat16, readers, read_ahead
):
    bfloat16 = bfloat16 and not in_memory
    case = Case(**{**vars(FOLDS), "skips": skips, "dtype": np.float32, "bfloat16": bfloat16})
    never = DiskRun(case, tmp_path_factory.mktemp("never"), in_memory=in_memory).train(case.steps)
    never.finish()
    root = tmp_path_factory.mktemp("often")
    for stop in [*sorted(stops), case.steps]:
        run = DiskRun(Case(**{**vars(case), "readers": readers, "read_ahead": read_ahead}), root, in_memory=in_memory)
        run.train(min(stop, case.steps), save_every).finish()
        run.close()
    assert run.digest() == never.digest()


def test_folding_halves_the_bytes_of_the_rows_on_the_disk(tmp_path):
    case = Case(**{**vars(FOLDS), "size": 2000, "dim": 64, "passes": 1.0})
    folded = DiskRun(case, tmp_path / "folded").train(case.steps)
    plain = DiskRun(Case(**{**vars(case), "fold": False}), tmp_path / "plain").train(case.steps)
    folded.finish()
    plain.finish()
    row_bytes = [run.live_bytes() / len(run.disk.blocks()) / case.block for run in (folded, plain)]
    assert row_bytes[1] == pytest.approx(16 * case.dim + 8 + 12 / case.block)
    assert row_bytes[0] == pytest.approx(8 * case.dim + 8 + 8 / case.block)


def test_the_effect_of_bfloat16_rows_is_within_their_rounding(tmp_path):
    case = Case(active=24, dtype=np.float32, bfloat16=True, lr=0.05)
    run = DiskRun(case, tmp_path).train(case.steps)
    run.finish()
    oracle = trained_oracle(Case(**{**vars(case), "bfloat16": False, "dtype": np.float64}))
    w, u = rows_of_engine(case, run.rows)
    error_w, error_u = errors(case, w, u, oracle.rows.detach().numpy(), oracle.momentum.numpy())
    assert 1e-5 < error_w.mean() < 2**-7, error_w.mean()  # inexact, and not more than a few roundings
    assert error_u.mean() < 0.1, error_u.mean()
