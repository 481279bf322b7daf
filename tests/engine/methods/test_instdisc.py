"""InstDisc ends where a dense bank ends; what is not visited keeps every bit, wherever it is; there is no momentum anywhere."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from engine.disk.body import RowSizes
from engine.disk.manifest_body import check_map
from engine.methods.method import MicroBatch, forward_places
from engine.rows.checks import crc_of_zeros
from engine.rows.damaged import Damaged
from engine.rows.initial_rows import initial_rows
from engine.rows.snapshots import RowReader, block_checks
from engine.rows.store import NEVER_VISITED
from engine.training.step import Dealing
from kernels.measure import peak_of
from tests.datasets.schedule_inverse import positions_of
from tests.engine.disk_runs import DiskRun, memory_digest, trunk_of
from tests.engine.harness import Case, GivenFeatures, engine_step, make_batch, make_engine, method_of, rows_of_engine
from tests.engine.methods.dense_bank import DenseBank
from tests.engine.rank_runs import train_on_given_features
from tests.on_ranks import on_ranks

BANK = {"bank_momentum": 0.5, "temperature": 0.07}
CASE = Case(**BANK, active=32, passes=2.2)  # K < N, ragged everywhere; rows leave and return


def make_dense(case, dtype=torch.float64):
    lanes = [int(p) // case.block % case.lanes for p in positions_of(case.schedule, np.arange(case.size))]
    start = torch.from_numpy(initial_rows(case.seed, np.arange(case.size), case.dim, 1.0)).to(dtype)
    full = case.active >= case.size
    capacity = case.size if full else case.active // case.lanes
    settings = {"temperature": case.temperature, "bank_momentum": case.bank_momentum, "at_features": case.feature_init}
    return DenseBank(start, lanes, capacity, **settings, all_active=full and not case.feature_init)


def dense_step(case, dense, trunk, step):
    """(loss, dz of the filled places)."""
    batch = make_batch(case, step)
    trunk.step = step
    (z_GD,) = trunk.features(batch.ids_G.tolist()).to(trunk.dtype)
    ids = [int(i) if i >= 0 else None for i in batch.ids_G]
    loss, dz_GD = dense.step(ids, z_GD, skip=step in case.skips)
    return loss, dz_GD[torch.from_numpy(batch.filled_G)]


def engine_gradient(trunk, case, step):
    """What the trunk was sent, of the filled places in their order."""
    filled_G, dz_GD = make_batch(case, step).filled_G, torch.zeros(case.batch, case.dim, dtype=trunk.dtype)
    dealing = Dealing(case.lanes, case.micro_batches, [0])
    for places, part in zip(dealing.places(case.batch), trunk.dz, strict=True):
        (forward,) = forward_places(filled_G[places][None])
        dz_GD[torch.from_numpy(places[forward])] = part
    assert not dz_GD[torch.from_numpy(~filled_G)].any()
    return dz_GD[torch.from_numpy(filled_G)]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"active": 200},
        {"active": 500, "window": 48, "stride": 48},
        {"micro_batches": 2},
        {"kernels": "aten", "bank_momentum": 0.0},
        {"bank_momentum": 1.0, "lanes": 2, "block": 12},
        {"skips": (0, 7, 30, 31)},
        {"feature_init": True},
        {"feature_init": True, "active": 200},
    ],
    ids=str,
)
def test_loss_gradient_and_bank_equal_a_dense_bank_in_float64(change):
    case = Case(**{**BANK, "active": 32, "passes": 3.3, **change})
    rows, dense, trunk = make_engine(case), make_dense(case), trunk_of(case)
    for step in range(case.steps):
        trunk.dz.clear()
        loss = engine_step(case, rows, trunk, step).loss
        true_loss, true_dz = dense_step(case, dense, trunk, step)
        if step in case.skips:
            assert np.isnan(loss)
            continue
        assert loss == pytest.approx(true_loss, rel=1e-11)
        torch.testing.assert_close(engine_gradient(trunk, case, step), true_dz, rtol=1e-10, atol=1e-11)
    bank, _ = rows_of_engine(case, rows)
    np.testing.assert_allclose(bank, dense.bank.numpy(), rtol=0, atol=1e-12)
    assert rows.visited == case.size and (rows.readmitted > 0) == (case.active < case.size)
    assert bank.std() > 0.1


def test_in_float32_errors_are_at_most_twice_those_of_the_dense_bank_in_float32():
    case = Case(**{**BANK, "active": 32, "dtype": np.float32})
    rows, trunk = make_engine(case), trunk_of(case)
    truth, plain = make_dense(case), make_dense(case, torch.float32)
    errors = {"loss": [], "dz": [], "bank": []}

    def note(name, ours, theirs, true):
        scale = np.abs(true).max()
        errors[name].append([np.abs(np.asarray(one) - true).max() / scale for one in (ours, theirs)])

    for step in range(case.steps):
        trunk.dz.clear()
        loss = engine_step(case, rows, trunk, step).loss
        true, near = (dense_step(case, dense, trunk, step) for dense in (truth, plain))
        note("loss", loss, near[0], true[0])
        note("dz", trunk.dz[0].numpy(), near[1].numpy(), true[1].numpy())
    note("bank", rows_of_engine(case, rows)[0], plain.bank.numpy(), truth.bank.numpy())
    for name, both in errors.items():
        ours, theirs = np.array(both).T
        assert 0 < np.sqrt((ours**2).mean()) <= 2 * np.sqrt((theirs**2).mean()), name
        assert ours.max() <= 2 * theirs.max(), name


@pytest.mark.parametrize(
    ("count", "change"),
    [(2, {}), (4, {"micro_batches": 2, "batch": 16}), (2, {"active": 200, "feature_init": True})],
    ids=str,
)
def test_on_several_ranks_bank_and_losses_are_those_of_the_dense_bank(count, change):
    case = Case(**{**BANK, "active": 32, "passes": 2.2, **change})
    dense, trunk = make_dense(case), trunk_of(case)
    losses = [dense_step(case, dense, trunk, step)[0] for step in range(case.steps)]
    for bank, _, own_losses, visited in on_ranks(count, train_on_given_features, case):
        np.testing.assert_allclose(bank, dense.bank.numpy(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(own_losses, losses, rtol=1e-11)
        assert visited == case.size


def peak_bytes(ranks, vectors, backend):
    """Of a step over a whole bank, beyond the bank; in a process of its own."""

    def second_step(size):
        case = Case(
            **BANK,
            size=size,
            active=size,
            batch=256,
            block=64,
            window=size,
            stride=size,
            dtype=np.float32,
            kernels=backend,
        )
        rows, trunk = make_engine(case), GivenFeatures(torch.float32, 1, case.dim)
        engine_step(case, rows, trunk, 0)
        return lambda: engine_step(case, rows, trunk, 1)

    return peak_of(second_step(vectors), second_step(512), ranks.device)


@pytest.mark.parametrize("backend", ["compiled", "aten"])
def test_no_logits_of_65536_vectors_are_held(backend):
    vectors = 65_536
    (peak,) = on_ranks(1, peak_bytes, vectors, backend)
    assert peak < 256 * vectors * 4 / (20 if backend == "compiled" else 4)


@pytest.mark.parametrize("in_memory", [False, True], ids=["zarr", "memory"])
def test_a_vector_that_is_not_visited_keeps_every_bit_through_eviction_disk_and_readmission(tmp_path, in_memory):
    case = Case(**BANK, active=32, passes=2.2, readers=1)
    run = DiskRun(case, tmp_path, in_memory=in_memory)
    before, _ = rows_of_engine(case, run.rows)
    for step in range(case.steps):
        run.train(step + 1, save_every=17)
        after, _ = rows_of_engine(case, run.rows)
        visited = make_batch(case, step).ids_G
        moved = np.flatnonzero((after != before).any(axis=1))
        assert sorted(moved) == sorted(visited[visited >= 0])
        before = after
    assert run.rows.readmitted > 100 and (in_memory or len(list((tmp_path / "rows").iterdir())) > 2)
    run.close()


@pytest.mark.parametrize("in_memory", [False, True], ids=["zarr", "memory"])
def test_a_run_goes_on_to_the_same_bits_from_a_checkpoint_at_any_step(tmp_path, in_memory):
    whole, window = memory_digest(CASE), CASE.schedule.steps_per_window
    for stop in (1, window, window + 1, CASE.steps - 10):
        root = tmp_path / str(stop)
        run = DiskRun(CASE, root, in_memory=in_memory).train(stop)
        run.save()
        run.finish().close()
        again = DiskRun(CASE, root, in_memory=in_memory)
        assert (again.step, again.digest()) == (stop, run.digest())
        again.train(stop + 10)
        run_on = DiskRun(CASE, tmp_path / f"{stop}-on", in_memory=in_memory).train(stop + 10)
        assert torch.equal(again.rows.w_KD, run_on.rows.w_KD)
        assert again.train(CASE.steps).digest() == whole, stop
        again.close()
        run_on.close()


def test_there_is_no_momentum_on_device_host_or_disk(tmp_path):
    case = Case(**BANK, active=32, dtype=np.float32)
    run = DiskRun(case, tmp_path, threaded=False).train(case.steps, save_every=40)
    run.save()
    run.finish()
    rows, host = run.rows, run.rows.host
    assert rows.u_KD is None and host.momentum is None
    assert rows.bytes == 32 * case.dim * 4
    assert host.bytes == len(host.weight) * (case.dim * 4 + 8 + 8)
    names = {path.parent.name for path in (tmp_path / "rows").rglob("c.*")}
    assert names == {"weight", "last_step"}
    newest = run.checkpoints.newest
    assert "u" not in load_file(tmp_path / newest.name / "active.safetensors")
    body = json.loads((tmp_path / "manifests" / f"{newest.number:09d}.json").read_text())["body"]
    assert body["rows"]["momentum"] is False and newest.row_sizes().momentum is False
    blocks = len(run.disk.blocks())
    assert run.live_bytes() == blocks * (case.block * (case.dim * 4 + 8) + 2 * 4)
    run.close()


def test_the_digest_counts_a_momentum_that_is_not_there_as_zeros(tmp_path):
    run = DiskRun(CASE, tmp_path, threaded=False).train(60, save_every=30)
    found, numbers = block_checks(RowReader(run.rows)), CASE.block * CASE.dim * 8
    assert len(found) > 20 and set(found["checks"][:, 1]) == {crc_of_zeros(numbers)}
    run.close()


def test_rows_with_momentum_and_rows_without_are_not_taken_for_each_other(tmp_path):
    trained = Case(active=32, passes=2.2)
    for first, second in ((trained, CASE), (CASE, trained)):
        root = tmp_path / str(first.bank_momentum)
        run = DiskRun(first, root).train(20, save_every=20).finish()
        run.close()
        with pytest.raises(Damaged, match=r"rows of momentum (True|False), and this run of momentum (True|False)"):
            DiskRun(second, root)


def test_a_block_map_that_has_momentum_where_rows_have_none_is_damage(tmp_path):
    run = DiskRun(CASE, tmp_path, threaded=False).train(60, save_every=60)
    part, sizes = run.checkpoints.newest.body.parts[0], run.checkpoints.newest.row_sizes()
    arrays = run.checkpoints.newest.arrays(part.blocks.full)
    check_map(arrays, sizes, part, part.blocks.full)
    with pytest.raises(Damaged, match="has a generation with momentum, and the rows have none"):
        check_map({**arrays, "kind": np.zeros_like(arrays["kind"])}, sizes, part, part.blocks.full)
    run.close()


def test_a_manifest_of_trained_rows_says_nothing_of_momentum():
    sizes = RowSizes(6, 8, 200, "float32")
    assert sizes.json() == {"block": 6, "dim": 8, "positions": 200, "dtype": "float32"}
    without = {**sizes.json(), "momentum": False}
    assert RowSizes.of(without).json() == without and RowSizes.of(sizes.json()).momentum


def test_no_batch_has_an_instance_twice():
    for case in (CASE, Case(**BANK, size=78, window=24, stride=24, passes=3.1, reshuffle=False)):
        for step in range(case.steps):
            ids = make_batch(case, step).ids_G
            assert len(np.unique(ids[ids >= 0])) == (ids >= 0).sum()


def micro_of(case, batch, z_BD):
    filled = batch.filled_G
    weight_RP = (filled / max(1, filled.sum()))[None]
    return MicroBatch(z_BD, np.arange(len(filled)), np.ones_like(filled)[None], weight_RP)


def step_by_hand(case, method, batch, poison=False):
    """Admit, and add with every place through the network, as where fewer than two are filled; returns what `add` gave."""
    method.prepare(batch.step)
    method.begin(batch, batch.filled_G[None])
    z_BD = torch.nn.functional.normalize(torch.arange(8.0 * case.dim, dtype=torch.float64).view(8, -1).sin())
    return z_BD, method.add(micro_of(case, batch, z_BD * float("nan") if poison else z_BD))


def test_an_empty_place_that_goes_through_the_network_moves_nothing():
    rows = make_engine(CASE)
    batch = make_batch(CASE, 0)
    batch.positions_G[1:], batch.ids_G[1:], batch.filled_G[1:] = -1, -1, False
    method = method_of(CASE, rows)
    z_BD, (loss, dz_BD, finite) = step_by_hand(CASE, method, batch)
    assert finite and loss == pytest.approx(0.0) and not dz_BD.any()
    before = rows.w_KD.clone()
    method.apply(0.1)
    (moved,) = torch.nonzero((rows.w_KD != before).any(dim=1)).ravel().tolist()
    assert rows.position_K[moved] == batch.positions_G[0]
    expected = torch.nn.functional.normalize(0.5 * before[moved] + 0.5 * z_BD[0], dim=0)
    torch.testing.assert_close(rows.w_KD[moved], expected, rtol=1e-14, atol=1e-15)


def test_a_step_that_is_not_finite_changes_no_vector_and_leaves_nothing_for_the_next():
    rows, twin = make_engine(CASE), make_engine(CASE)
    for one, poison in ((rows, True), (twin, False)):
        method, batch = method_of(CASE, one), make_batch(CASE, 0)
        _, (loss, _, finite) = step_by_hand(CASE, method, batch, poison)
        before = one.w_KD.clone()
        assert finite != poison and np.isnan(loss) == poison
        method.discard()
        assert torch.equal(one.w_KD, before) and np.isnan(one.log.etas()).all()
        batch = make_batch(CASE, 1)
        step_by_hand(CASE, method, batch)
        method.apply(0.1)
        assert not torch.equal(one.w_KD, before)
    assert torch.equal(rows.w_KD, twin.w_KD)


def test_a_discarded_step_of_which_nothing_was_read_changes_nothing_but_the_number_of_the_step():
    rows = make_engine(CASE)
    method, before = method_of(CASE, rows), rows.w_KD.clone()
    method.discard()
    assert torch.equal(rows.w_KD, before) and rows.log.steps == 1 and np.isnan(rows.log.etas()[0])
    assert (rows.host.last_step == NEVER_VISITED).all()
