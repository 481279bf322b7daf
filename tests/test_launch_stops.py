"""What stops a run, and that it goes on to the bit: signals, kills, damaged checkpoints, full disks, every kind of store."""

import errno
import json
import os
import random
import signal
import time

import pytest
import torch

from engine.disk.files import DiskFiles
from engine.evaluation import nearest
from engine.rows.damaged import Damaged
from engine.training import run as run_module
from engine.trunk.backbones import Plain
from tests.conftest import GIVEN, TINY, Runner, leave_out_drawings
from tests.pooled_start import Running

SHORTER = "steps=72"  # of the 138: more than one and a half passes, so that rows leave, go to the disk and come back


@pytest.fixture(scope="module")
def shorter(tmp_path_factory):
    """The summary of a run that ends at SHORTER, which nothing happens to."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_drawings(patch)
        runner = Runner(tmp_path_factory.mktemp("shorter"))
        assert runner(SHORTER) == 0
    return runner.summary()


def test_five_interruptions_leave_the_digest_of_the_run_never_interrupted(shorter, run, interrupt_at):
    interrupt_at |= set(random.Random(time.time_ns()).sample(range(71), 5))
    planned = sorted(interrupt_at)
    for number, step in enumerate(planned):
        assert run(SHORTER) == 0
        assert run.summary()["steps"] == step + 1, planned
        assert run.summary()["status"] == "stopped by SIGINT"
        assert len(interrupt_at) == 4 - number
    assert run(SHORTER) == 0
    pieces = run.summary()
    for key in ("digest", "steps", "visited", "readmitted", "loss", "knn_top1"):
        assert pieces[key] == shorter[key], (key, planned)
    assert shorter["readmitted"] > 0


def test_a_killed_run_goes_on_from_its_last_checkpoint_to_the_same_end(shorter, run, monkeypatch):
    real = run_module.train_step

    class Killed(BaseException):
        pass

    def train_step(batch, *arguments, **options):
        if batch.step == 45:
            raise Killed
        return real(batch, *arguments, **options)

    monkeypatch.setattr(run_module, "train_step", train_step)
    with pytest.raises(Killed):
        run(SHORTER)
    monkeypatch.setattr(run_module, "train_step", real)
    assert run(SHORTER) == 0
    assert run.summary()["digest"] == shorter["digest"]


def test_an_evaluation_that_was_killed_is_made_up_for(run, monkeypatch):
    words = ("steps=12", "checkpoint.every_steps=4", "evaluate.every_steps=4", "evaluate.limit=60", "evaluate.views=0")
    real, asked = nearest.embedder, []

    class Killed(BaseException):
        pass

    def embedder(network, features):
        asked.append(features)
        if len(asked) == 2:
            raise Killed
        return real(network, features)

    monkeypatch.setattr(nearest, "embedder", embedder)
    with pytest.raises(Killed):
        run(*words)
    assert [line["step"] for line in run.lines("evaluations.jsonl")] == [4]
    assert run(*words) == 0
    assert [line["step"] for line in run.lines("evaluations.jsonl")] == [4, 8, 12]
    killed = run.summary()["digest"]
    assert run(*words, flags=("--fresh",)) == 0
    assert run.summary()["digest"] == killed
    assert run("steps=14", *words[1:]) == 0
    assert [line["step"] for line in run.lines("evaluations.jsonl")] == [4, 8, 12, 14]  # none twice


def test_a_line_of_metrics_is_of_its_own_steps_alone(run):
    assert run("steps=6", "log_every=1", "evaluate.views=0") == 0
    losses = [line["loss"] for line in run.lines("metrics.jsonl")]
    assert run("steps=4", "log_every=20", "evaluate.views=0", flags=("--fresh",)) == 0
    assert run("steps=6", "log_every=20", "evaluate.views=0") == 0
    first, last = run.lines("metrics.jsonl")
    assert (first["interval_steps"], last["interval_steps"]) == (4, 2)
    assert last["loss"] == pytest.approx(sum(losses[4:]) / 2) != pytest.approx(sum(losses) / 6)
    trunk_seconds = [line["seconds"]["trunk_forward"] + line["seconds"]["trunk_backward"] for line in (first, last)]
    assert run.summary()["trunk_seconds"] == pytest.approx(sum(trunk_seconds) / 6)


def test_time_and_memory_of_the_last_evaluation_are_in_the_summary(run, monkeypatch):
    monkeypatch.setattr(run_module, "peak_resident_bytes", lambda: 2**45)
    assert run("steps=3") == 0
    summary = run.summary()
    assert summary["peak_host_bytes"] == 2**45 and {"evaluation", "label_free"} <= summary["rest_seconds"].keys()
    assert "evaluate without labels</td>" in (run.output / "report.html").read_text()


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run, capsys):
    assert run("steps=35") == 0
    newest = sorted((run.output / "checkpoints").iterdir())[-1]
    content = bytearray((newest / "active.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "active.safetensors").write_bytes(content)
    assert run("steps=36") == 0
    out = capsys.readouterr().out
    assert f"{newest.name} is damaged (active.safetensors does not match its checksum)" in out
    assert "going on after step 30" in out


def test_rows_that_start_at_their_feature_can_be_continued(run, interrupt_at):
    interrupt_at.add(9)
    assert run("method.init=feature", "steps=20") == 0
    assert run("method.init=feature", "steps=20") == 0
    pieces = run.summary()
    assert run("method.init=feature", "steps=20", flags=("--fresh",)) == 0
    assert run.summary()["digest"] == pieces["digest"]


def test_a_signal_at_the_step_that_ends_a_run_tells_no_untruth(run, capsys, monkeypatch):
    real = run_module.train_step

    def poisoned(batch, *arguments, **options):
        batch.views = [view * float("nan") for view in batch.views]
        if batch.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(batch, *arguments, **options)

    monkeypatch.setattr(run_module, "train_step", poisoned)
    assert run("steps=60") == 1
    assert "checkpoint written" not in capsys.readouterr().out
    assert run.summary()["status"].startswith("stopped: ")


def test_a_run_killed_in_its_last_evaluation_is_finished_by_the_next_start(run, monkeypatch):
    from engine.evaluation import nearest

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(nearest, "evaluate", killed)
        assert run("steps=6") == 130
    assert not (run.output / "summary.json").exists()
    assert run("steps=6") == 0
    assert run.summary()["status"] == "finished"
    assert run.summary()["knn_top1"] is not None


def test_an_interruption_in_the_last_step_is_finished_by_the_next_start(run, interrupt_at):
    interrupt_at.add(5)
    assert run("steps=6") == 0
    assert run.summary()["status"] == "stopped by SIGINT"
    assert run("steps=6") == 0
    assert run.summary()["status"] == "finished"


def test_a_backbone_that_draws_random_numbers_resumes_to_the_same_bits(run, interrupt_at, monkeypatch):
    forward, drawn = Plain.forward, []

    def with_dropout(backbone, images):
        features = forward(backbone, images)
        if not backbone.training or features.is_meta:
            return features
        kept = torch.nn.functional.dropout(torch.ones_like(features))
        drawn.append(kept.sum().item())
        return features * kept

    monkeypatch.setattr(Plain, "forward", with_dropout)
    interrupt_at.add(3)
    assert run("steps=8") == 0
    assert run("steps=8") == 0
    pieces, in_pieces = run.summary()["digest"], drawn.copy()
    drawn.clear()
    assert run("steps=8", flags=("--fresh",)) == 0
    assert run.summary()["digest"] == pieces
    assert drawn == in_pieces and len(set(drawn)) > 4


def long_run(run, config):
    """A process of its own on a config, for far more epochs than a test waits for."""
    path = run.directory / "config.json"
    path.write_text(json.dumps(config))
    words = ["--config", str(path), f"output={run.output}", "epochs=2000"]
    return Running(words, run.directory, drawings=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_ends_a_real_process_with_a_checkpoint(run, number):
    with long_run(run, {**TINY, "data": {**TINY["data"], "workers": 1}}) as process:
        process.wait_for("step 10/")
        os.kill(process.pids[0], number)
        start = process.wait()
    assert start.code == 0, start.err
    assert "checkpoint written after step" in start.out
    assert "Traceback" not in start.err
    assert run.summary()["status"] == f"stopped by {signal.Signals(number).name}"
    assert list((run.output / "checkpoints").glob("step-*"))


def test_a_run_whose_output_nobody_reads_any_more_ends_with_a_checkpoint(run):
    # DeepSpeed's launcher of several nodes cuts the connection before it sends a signal.
    os.mkfifo(run.directory / "stdout")
    with long_run(run, TINY) as process:
        with (run.directory / "stdout").open() as said:
            for line in said:
                if line.startswith("step 10/"):
                    break
        start = process.wait()
    assert start.code == 0, start.err
    assert run.summary()["status"] == "stopped by SIGPIPE"
    assert list((run.output / "checkpoints").glob("step-*"))


def test_a_checkpoint_that_a_running_job_replaced_is_not_called_damaged(run, monkeypatch, capsys):
    from engine.disk import manifest
    from engine.rows import snapshots

    assert run("steps=20", "checkpoint.every_steps=10") == 0
    files = run.output / "checkpoints"

    def replaced(*_):
        (files / manifest.path_of(manifest.numbers(manifest_files)[0])).unlink()
        raise Damaged("block 3 (weight) of generation 000001-aaaaaa is missing")

    manifest_files = DiskFiles(files)
    monkeypatch.setattr(snapshots.RowReader, "block", replaced)
    assert run("job=export", "checkpoint.every_steps=10") == 2
    assert "has replaced checkpoint step-000000020; try again" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("store.kind=memory",), ("store.dtype=bfloat16",), ("store.fold=true",)], ids=str)
def test_every_kind_of_store_resumes_to_the_same_bits(run, interrupt_at, words, capsys):
    # A pass takes 23 steps: blocks leave for the store and come back three times. Rows learn as well from features that are given.
    config = {**GIVEN, "data": {"source": "synthetic", "limit": 1437}, "epochs": 6}
    words = (*words, "optimizer.momentum=0.5", "optimizer.rows_weight_decay=0.001", "steps=95")
    assert run(*words, config=config) == 0
    whole = run.summary()["digest"]
    assert run("job=store", "store.verb=digest", *words, config=config) == 0
    assert f"is {whole}\nsummary.json has the same" in capsys.readouterr().out
    # In pieces, and with other checkpoints: whichever of the two changed a bit, the digest would tell.
    interrupt_at |= {17, 55, 90}
    assert run(*words, "checkpoint.every_steps=7", flags=("--fresh",), config=config) == 0
    for _ in range(3):
        assert run(*words, "checkpoint.every_steps=7", config=config) == 0
    assert run.summary()["status"] == "finished" and run.summary()["digest"] == whole


def test_the_digest_of_a_checkpoint_is_that_of_the_run_that_ended_there(run, capsys):
    assert run("steps=35") == 0
    at_35 = run.summary()["digest"]
    assert run("steps=60", "checkpoint.keep=9") == 0
    assert run("job=store", "store.verb=digest", "store.step=35") == 0
    out = capsys.readouterr().out
    assert f"after 35 steps, is {at_35}\nthere is no summary.json of this step" in out
    (run.output / "summary.json").write_text(json.dumps({**run.summary(), "digest": at_35}))
    assert run("job=store", "store.verb=digest") == 1
    assert f"summary.json has {at_35}: these are not the files" in capsys.readouterr().out


def test_memory_and_disk_end_with_the_same_bits(shorter, run):
    assert run(SHORTER, "store.kind=memory") == 0
    assert run.summary()["digest"] == shorter["digest"]


def test_a_full_disk_ends_the_run_in_one_line_and_the_checkpoint_before_goes_on(shorter, run, monkeypatch, capsys):
    real = DiskFiles._create

    def full(self, path, parts):
        if "step-000000060" in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        real(self, path, parts)

    monkeypatch.setattr(DiskFiles, "_create", full)
    assert run(SHORTER) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "checkpoints that were written before are whole" in error
    monkeypatch.setattr(DiskFiles, "_create", real)
    assert run(SHORTER) == 0
    assert "going on after step 30" in capsys.readouterr().out
    assert run.summary()["digest"] == shorter["digest"]
