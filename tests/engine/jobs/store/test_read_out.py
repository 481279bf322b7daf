"""What is on the disk, read out: sums, ages, a picture, rows in instance order."""

import json

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import zarr

from engine.disk.zarr_store import ROWS
from engine.jobs import store_export, store_picture
from engine.jobs.store_export import export
from engine.jobs.store_jobs import inspect
from tests.engine.disk_runs import DiskRun
from tests.engine.harness import rows_of_engine
from tests.engine.jobs.store.stores import CASE, CASES, checkpoint_of, saved


@pytest.mark.parametrize("name", CASES)
def test_inspect_adds_up_to_what_is_on_the_disk(tmp_path, capsys, name):
    case = CASES[name]
    saved(case, tmp_path, keep=1, stops=(case.steps,))
    kept = checkpoint_of(tmp_path, case.steps)
    assert inspect(kept, tmp_path / "store.png") == 0
    out = capsys.readouterr().out
    blocks = -(-case.size // case.block)
    assert f"{case.size:,}, in {blocks} blocks of {case.block}" in out
    assert f"number {kept.number}, after {case.steps:,} steps" in out
    for generation in kept.generations().values():
        chunks = len(list((tmp_path / ROWS / generation.name / "weight").glob("c.*")))
        line = next(line for line in out.splitlines() if generation.name in line)
        assert f" {chunks} block" in line
        assert ("momentum" in line) == (tmp_path / ROWS / generation.name / "momentum").is_dir()
    widths = {len(generation.columns) for generation in kept.generations().values()}
    assert widths == ({2, 3} if case.fold else {3})
    assert matplotlib.image.imread(tmp_path / "store.png").shape == (990, 1500, 4)


@pytest.mark.parametrize("name", CASES)
def test_the_age_of_a_block_is_that_of_its_latest_row(tmp_path, name):
    case = CASES[name]
    run = DiskRun(case, tmp_path, keep=1)
    blocks = -(-case.size // case.block)
    expected = np.full(blocks, -1)
    for step in range(run.step, case.steps * 2 // 3):
        run.train(step + 1)
        # A block with active rows is as old as nothing; it ages from the step on that takes the last of them.
        active = np.unique(run.rows.position_K[run.rows.position_K >= 0] // case.block)
        expected[expected >= 0] += 1
        expected[active] = 0
    run.save()
    run.finish()
    kept = run.checkpoints.newest
    ages = store_picture.ages_of(kept, blocks)
    run.close()
    assert (ages >= 0).any() and (ages == 0).any()
    # A row that leaves in the middle of step s has done s steps: the block was seen with it after step s - 1, s steps done.
    assert ages.tolist() == expected.tolist()
    by_decade = store_picture.by_decade(ages)
    assert sum(count for _, count in by_decade) == blocks
    assert dict(by_decade)["never visited"] == (expected == -1).sum()


@pytest.mark.parametrize("blocks", [1, 20, 16_000, 16_001, 500_000])
def test_a_picture_of_any_number_of_blocks_has_the_colours_of_its_ages(tmp_path, blocks):
    ages = np.arange(blocks) * 100 // blocks
    ages[blocks // 2 :] = -1
    store_picture.draw(ages, 64, 1000, tmp_path / "store.png")
    cells = matplotlib.image.imread(tmp_path / "store.png")[:800, 160:1250, :3].reshape(-1, 3)  # no text, no colour bar
    never, now = (0xD9, 0xDD, 0xE4), matplotlib.colormaps["viridis_r"](0.0, bytes=True)[:3]
    for colour, is_there in ((never, True), (now, blocks > 1)):
        assert (np.abs(cells * 255 - np.array(colour)).max(axis=1) < 2).any() == is_there


@pytest.mark.parametrize("name", CASES)
def test_exports_are_the_caught_up_rows_in_instance_order_in_both_formats(tmp_path, name, monkeypatch):
    case = CASES[name]
    run = DiskRun(case, tmp_path / "checkpoints").train(case.steps)
    expected = rows_of_engine(case, run.rows)[0].astype(np.float32)
    monkeypatch.setattr(store_export, "_CHUNK_BYTES", 4 * case.dim * 33)  # 200 rows are seven chunks, the last ragged
    exports = tmp_path / "exports"
    for form in ("npy", "zarr", "zarr"):  # again over what is there
        assert export(exports, run.rows, case.size, case.schedule.instances, case.steps, form) == 0
    run.close()
    name = f"rows-{case.steps}"
    assert sorted(path.name for path in exports.iterdir()) == [f"{name}.json", f"{name}.npy", f"{name}.zarr"]
    assert np.load(exports / f"{name}.npy").tobytes() == expected.tobytes()
    array = zarr.open_array(str(exports / f"{name}.zarr"), mode="r")
    assert array.shape == (case.size, case.dim)
    assert array.chunks == (33, case.dim)
    assert array.dtype == np.float32
    assert np.asarray(array[:]).tobytes() == expected.tobytes()
    about = json.loads((exports / f"{name}.json").read_text())
    assert about == {"order": "row i belongs to instance i", "step": case.steps, "shape": [case.size, case.dim]}


def test_an_export_that_is_cut_short_leaves_no_final_name(tmp_path, monkeypatch):
    run = DiskRun(CASE, tmp_path / "checkpoints").train(20)

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(store_export, "create_export", killed)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "exports", run.rows, CASE.size, CASE.schedule.instances, 20, "zarr")
    run.close()
    assert [path.name for path in (tmp_path / "exports").iterdir()] == []
