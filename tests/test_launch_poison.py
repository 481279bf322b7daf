"""Steps whose loss or gradient is not finite: skipped, counted, and the end of a run where they go on."""

import numpy as np
import torch
from safetensors.torch import load_file

from engine.training import run as run_module


def test_three_losses_that_are_not_finite_stop_the_run_and_name_the_checkpoint(run, monkeypatch, capsys):
    assert run("steps=30") == 0
    good = run.summary()["digest"]
    real = run_module.train_step

    def poisoned(batch, *arguments, **options):
        if batch.step >= 32:
            batch.views = [view * float("nan") for view in batch.views]
        return real(batch, *arguments, **options)

    monkeypatch.setattr(run_module, "train_step", poisoned)
    assert run("steps=60") == 1
    out = capsys.readouterr().out
    assert "3 steps in a row" in out
    assert "step-000000030" in out
    assert run.summary()["skipped_steps"] == 3
    assert run.summary()["status"].startswith("stopped: ")
    tensors = load_file(run.output / "backbone.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert run.summary()["digest"] != good  # two good steps were taken before


def test_a_run_whose_steps_are_all_refused_ends(run, capsys, monkeypatch):
    from engine.trunk.trunk import Trunk

    monkeypatch.setattr(Trunk, "update", lambda trunk, lr: trunk.discard())
    assert run("steps=60") == 1
    assert "DeepSpeed refused 50 steps in a row, up to step 49; the last good checkpoint is " in capsys.readouterr().out
    assert run.summary()["skipped_steps"] == run.summary()["steps"] == 50


def test_one_poisoned_step_is_skipped_and_counted_and_training_goes_on(run, monkeypatch):
    real = run_module.train_step

    def poisoned(batch, *arguments, **options):
        if batch.step in (3, 9):
            batch.views = [view * float("nan") for view in batch.views]
        return real(batch, *arguments, **options)

    monkeypatch.setattr(run_module, "train_step", poisoned)
    assert run("steps=15", "schedule.micro_batches=2") == 0
    assert run.summary()["skipped_steps"] == 2
    assert np.isfinite(run.summary()["loss"])


def test_a_poisoned_step_leaves_no_row_behind_that_started_at_its_features(run, monkeypatch):
    real = run_module.train_step

    def poisoned(batch, *arguments, **options):
        if batch.step == 3:
            batch.views = [view * float("nan") for view in batch.views]
        return real(batch, *arguments, **options)

    monkeypatch.setattr(run_module, "train_step", poisoned)
    assert run("steps=40", "method.init=feature") == 0
    assert run.summary()["skipped_steps"] == 1
    assert run("job=export", "method.init=feature") == 0
    rows = np.load(run.output / "exports" / "rows.npy")
    visited = np.isfinite(rows).all(axis=1)
    assert visited.sum() == run.summary()["visited"]
