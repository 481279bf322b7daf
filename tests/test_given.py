"""Runs without a network: features that are given, through the same command, stores, resume and ranks as any other."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import GIVEN, REPOSITORY, TINY

LARGE = {
    **GIVEN,
    "schedule": {"batch": 64, "window": 1024, "stride": 512, "block": 32, "lanes": 4},
    "data": {"source": "synthetic", "limit": 10**12},
    "epochs": 1,
}
# What a run without a network is to do without, as if it were not installed.
_WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["deepspeed", "torchvision", "faiss", "sklearn", "scipy"]))
import launch
sys.exit(launch.main(sys.argv[1:]))
"""


def test_rows_learn_from_given_features(run):
    assert run("epochs=12", config=GIVEN) == 0
    summary = run.summary()
    assert summary["status"] == "finished" and "knn_top1" not in summary
    first = np.mean([line["loss"] for line in run.lines()[:3]])
    assert summary["loss"] < 0.8 * summary["chance_loss"] < first
    assert not (run.output / "backbone.safetensors").exists() and not (run.output / "evaluations.jsonl").exists()
    assert "No evaluation was made in this run." in (run.output / "report.html").read_text()


@pytest.mark.parametrize("config", [GIVEN, LARGE], ids=["small", "of 10^12 images"])
def test_a_run_that_was_stopped_goes_on_to_the_bit_whatever_its_store(run, config):
    assert run("steps=70", config=config) == 0
    whole = run.summary()["digest"]
    assert run("steps=25", "checkpoint.every_steps=10", flags=("--fresh",), config=config) == 0
    assert run("steps=70", config=config) == 0
    assert run.summary()["digest"] == whole
    assert run("steps=70", "store.kind=memory", flags=("--fresh",), config=config) == 0
    assert run.summary()["digest"] == whole
    assert run("steps=70", "seed=1", flags=("--fresh",), config=config) == 0
    assert run.summary()["digest"] != whole


def test_images_can_be_added_at_a_later_start(run, capsys):
    assert run("steps=10", config=GIVEN) == 0
    assert run("steps=40", "data.limit=3000", config=GIVEN) == 0
    assert "1,000 images were added" in capsys.readouterr().out
    assert run.summary()["instances"] == 3000
    assert run("steps=50", "data.limit=2500", config=GIVEN) == 2


def test_what_needs_a_network_is_refused_in_a_line(run, capsys):
    assert run("steps=4", config=GIVEN) == 0
    assert run("job=export", config=GIVEN) == 2
    assert 'backbone.name is "given": there is no network, which job=export needs' in capsys.readouterr().err
    assert run("job=store", "store.verb=export", config=GIVEN) == 0
    assert np.load(run.output / "exports" / "rows-4.npy").shape == (2000, 16)
    assert run("steps=8", "backbone.name=vgg", config={**GIVEN, "backbone": TINY["backbone"]}) == 2


def test_a_network_trains_on_synthetic_images(run):
    config = {**TINY, "data": {**TINY["data"], "source": "synthetic", "limit": 3000}}
    assert run("steps=6", config=config) == 0
    assert 0 <= run.summary()["knn_top1"] <= 1


def test_it_runs_where_torchvision_deepspeed_and_faiss_are_not_installed(run):
    assert run("steps=6", config=GIVEN) == 0
    digest = run.summary()["digest"]
    command = [sys.executable, "-c", _WITHOUT, "--config", str(run.directory / "config.json")]
    command += [f"output={run.output}", "steps=6", "--fresh"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=230)
    assert done.returncode == 0, done.stderr
    assert run.summary()["digest"] == digest
