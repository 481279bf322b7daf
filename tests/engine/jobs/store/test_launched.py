"""job=store through launch.py, on digits."""

import json
import shutil

import numpy as np
import pytest
import zarr

from tests.conftest import Runner, leave_out_drawings
from tests.engine.jobs.store.stores import blocks_of, chunk, flip


@pytest.fixture(autouse=True, scope="module")
def _nobody_looks_at_reports():
    with pytest.MonkeyPatch.context() as patch:
        leave_out_drawings(patch)
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory, _nobody_looks_at_reports):
    """(a run that was stopped at step 30, exported, and went on to 35; the rows at step 30)."""
    runner = Runner(tmp_path_factory.mktemp("digits"))
    assert runner("steps=30") == 0
    assert runner("job=export") == 0
    rows = np.load(runner.output / "exports" / "rows.npy")
    assert runner("steps=35") == 0
    return runner, rows


@pytest.fixture
def run(digits, tmp_path):
    """A copy of that run, to be damaged."""
    runner = Runner(tmp_path)
    shutil.copytree(digits[0].output, runner.output)
    return runner


def test_every_verb_runs_on_a_whole_run_and_exits_with_0(run, capsys):
    for verb, said in {
        "verify": "checkpoint step-000000030: ",
        "scrub": "there was nothing to remove",
        "repair": "nothing is to be repaired",
        "inspect": "a picture of that is in ",
        "export": "exported the rows of step 35",
    }.items():
        assert run("job=store", f"store.verb={verb}") == 0, verb
        assert said in capsys.readouterr().out, verb
    assert (run.output / "store.png").exists()


def test_an_older_checkpoint_exports_the_rows_that_it_had(run, digits):
    for form in ("npy", "zarr"):
        assert run("job=store", "store.verb=export", "store.step=30", f"store.format={form}") == 0
    exports = run.output / "exports"
    assert np.load(exports / "rows-30.npy").tobytes() == digits[1].tobytes()
    array = zarr.open_array(str(exports / "rows-30.zarr"), mode="r")
    assert np.asarray(array[:]).tobytes() == digits[1].tobytes()
    assert json.loads((exports / "rows-30.json").read_text())["step"] == 30


@pytest.mark.parametrize("verb", ["verify", "inspect", "export"])
def test_a_step_that_is_not_kept_is_a_mistake_that_lists_those_that_are(run, capsys, verb):
    assert run("job=store", f"store.verb={verb}", "store.step=7") == 2
    assert "of step 7 (there are: 30, 35)" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["verify", "scrub", "repair", "inspect", "export"])
def test_where_nothing_was_trained_every_verb_says_so(tmp_path, capsys, verb):
    runner = Runner(tmp_path)
    assert runner("job=store", f"store.verb={verb}") == 2
    assert "train" in capsys.readouterr().err
    assert not runner.output.exists()


def test_a_repaired_run_ends_with_the_digest_of_one_that_was_never_damaged(run, tmp_path, capsys):
    root = run.output / "checkpoints"
    earlier, later = blocks_of(root, 30), blocks_of(root, 35)
    block = next(block for block in later if earlier.get(block) != later[block])
    flip(chunk(root, later[block][0], "momentum", block))
    assert run("job=store", "store.verb=verify") == 1
    assert f"block {block} (momentum) of generation {later[block][0]}" in capsys.readouterr().out
    assert run("job=store", "store.verb=scrub") == 1
    assert run("job=store", "store.verb=repair") == 0
    assert run("steps=40") == 0
    assert "going on after step 30" in capsys.readouterr().out
    assert run("job=store", "store.verb=verify") == 0
    whole = Runner(tmp_path / "whole")
    whole.directory.mkdir()
    assert whole("steps=40") == 0
    assert run.summary()["digest"] == whole.summary()["digest"]
