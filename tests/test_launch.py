"""The run's contract, end to end on digits: outputs, resuming to the bit, evaluation, exports, signals."""

import errno
import json
import math
import os
import random
import shutil
import signal
import time
from argparse import Namespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torchvision.models.vgg import VGG, make_layers

import kernels.catch_up
import kernels.compiled
import kernels.row_update
from datasets.index import packed
from engine.disk.files import DiskFiles
from engine.rows.damaged import Damaged
from engine.training import run as run_module
from engine.trunk.backbones import Plain
from kernels.compiled import NotCompiled, choose
from kernels.sampled_softmax import ops as softmax_ops
from tests.conftest import GIVEN, TINY, Runner, leave_out_drawings
from tests.pooled_start import Running

TOTAL = 6 * 1472 // 64  # 1437 digits fill 23 stripes of 64


def test_a_run_leaves_what_the_contract_promises(finished):
    for name in ("config.json", "plan.json", "metrics.jsonl", "summary.json", "report.html", "backbone.safetensors"):
        assert (finished.output / name).stat().st_size > 0, name
    assert list((finished.output / "checkpoints").iterdir())
    summary = finished.summary()
    assert summary["job"] == "pretrain"
    assert summary["method"] == "pic"
    assert summary["status"] == "finished"
    assert summary["instances"] == summary["visited"] == 1437
    assert summary["steps"] == TOTAL
    assert summary["passes"] == pytest.approx(3)
    assert summary["readmitted"] > 1437
    assert summary["skipped_steps"] == 0
    assert summary["chance_loss"] == pytest.approx(math.log(128))
    assert 0 < summary["loss"] < 2 * summary["chance_loss"]
    for key in (
        "images_per_second",
        "step_seconds",
        "trunk_seconds",
        "peak_host_bytes",
        "peak_device_bytes",
        "store_bytes",
    ):
        assert summary[key] > 0, key
    assert summary["trunk_seconds"] < summary["step_seconds"]
    compiled = choose("sampled_softmax", torch.device("cpu")).name
    assert summary["backends"] == {
        "sampled_softmax": compiled,
        "row_update": f"{compiled} (fused)",
        "catch_up": choose("catch_up", torch.device("cpu")).name,
    }
    assert len(summary["digest"]) == 64
    line = finished.lines()[-1]
    assert line["step"] == TOTAL
    plan = json.loads((finished.output / "plan.json").read_text())
    assert line["bytes"]["disk"] <= sum(plan["disk"].values()) * 1.1
    assert 0 < line["bytes"]["host"] <= sum(plan["host"].values())
    assert set(line) >= {"loss", "lr", "images_per_second", "seconds", "bytes", "prefetch_waits", "backends", "loader"}
    loaders = [one["loader"] for one in finished.lines()]
    trained = [one["images_per_second"] * one["interval_seconds"] for one in finished.lines()]
    assert [loader["images"] for loader in loaders] == [round(images) for images in trained]
    assert all(0 < loader["waiting_share"] < 1 and loader["read_bytes"] == 0 for loader in loaders)
    assert all(loader["images_per_core_second"] > 0 for loader in loaders)


def test_the_chance_level_of_the_first_steps_is_that_of_the_rows_that_are_there(run, capsys):
    assert run("steps=6", "log_every=1") == 0
    lines, out = run.lines(), capsys.readouterr().out
    for line in lines:
        assert line["chance_loss"] == pytest.approx(math.log(line["active"]))
        assert f"(chance {line['chance_loss']:.2f})" in out
    assert lines[0]["active"] <= 64 and lines[-1]["chance_loss"] == pytest.approx(math.log(128))
    assert run.summary()["chance_loss"] == pytest.approx(math.log(128))


@pytest.mark.parametrize("wanted", ["compiled", "aten"])
@pytest.mark.parametrize("words", [(), ("schedule.micro_batches=2",)], ids=["fused", "written"])
def test_the_backend_that_summary_names_for_an_op_is_the_one_that_ran_it(run, monkeypatch, capfd, wanted, words):
    ran = {op: set() for op in ("sampled_softmax", "row_update", "catch_up")}
    implementation = softmax_ops._implementation

    def noted(name):
        ran["sampled_softmax"].add(name)
        return implementation(name)

    monkeypatch.setattr(softmax_ops, "_implementation", noted)
    for module, op in ((kernels.row_update, "row_update"), (kernels.catch_up, "catch_up")):
        monkeypatch.setattr(module, "_IMPLEMENTATIONS", Noting(module._IMPLEMENTATIONS, ran[op]))
    assert run(f"method.kernels={wanted}", "steps=20", *words) == 0
    named = run.summary()["backends"]
    name = "cpu" if wanted == "compiled" else "aten"
    assert ran["sampled_softmax"] == {name} == {named["sampled_softmax"]}
    assert ran["catch_up"] == {name} == {named["catch_up"]}
    assert ran["row_update"] == (set() if not words else {name})
    assert named["row_update"] == (f"{name} (fused)" if not words else name)
    said = capfd.readouterr().out
    assert f"sampled_softmax runs on {name} (" in said
    assert f"the gradient of rows is {'written: it is added up over micro-batches' if words else 'fused: '}" in said
    assert run.lines()[-1]["backends"] == named


class Noting(dict):
    """Implementations by name, and the names that were asked for."""

    def __init__(self, implementations, asked):
        super().__init__(implementations)
        self.asked = asked

    def __getitem__(self, name):
        self.asked.add(name)
        return super().__getitem__(name)


def test_a_run_may_go_on_with_other_kernels_and_says_so(run, capsys):
    assert run("method.kernels=aten", "steps=3") == 0
    assert run("method.kernels=compiled", "steps=6") == 0
    assert "sampled_softmax ran on aten so far" in capsys.readouterr().out
    assert run.summary()["steps"] == 6


def test_kernels_that_cannot_be_compiled_stop_the_run_if_they_were_asked_for(run, monkeypatch, capsys):
    def refuse(op, device):
        raise NotCompiled("there is no C++ compiler")

    monkeypatch.setattr(kernels.compiled, "load", refuse)
    assert run("method.kernels=compiled", "steps=3") == 2
    assert "compiled kernels were asked for: there is no C++ compiler" in capsys.readouterr().err
    assert run("steps=3", flags=("--fresh",)) == 0
    assert run.summary()["backends"] == {
        "sampled_softmax": "aten",
        "row_update": "aten (fused)",
        "catch_up": "aten",
    }


def test_knn_at_the_end_stands_beside_raw_pixels_and_chance(finished):
    evaluation = finished.lines("evaluations.jsonl")[-1]
    assert evaluation["chance"] == pytest.approx(0.1)
    assert evaluation["figures"]["knn_top1"] == finished.summary()["knn_top1"] > 0.5
    assert set(evaluation["raw_pixels"]) == set(evaluation["figures"])
    assert "k = 5" in evaluation["protocol"]
    assert 1 <= evaluation["rankme"] <= evaluation["rankme_dim"]


def test_the_backbone_loads_strictly_into_torchvision(finished):
    model = VGG(make_layers([8, "M", 16], batch_norm=True))
    model.classifier = torch.nn.Identity()
    model.load_state_dict(load_file(finished.output / "backbone.safetensors"), strict=True)


def test_a_named_backbone_loads_strictly_into_torchvision(run):
    assert run("backbone.name=resnet18", "backbone.layers=null", "steps=2", "data.image_size=32") == 0
    model = torchvision.models.resnet18()
    model.fc = torch.nn.Identity()
    model.load_state_dict(load_file(run.output / "backbone.safetensors"), strict=True)


@pytest.fixture
def interrupt_at(monkeypatch):
    """Send SIGINT to this process during given steps, each once."""
    real = run_module.train_step
    steps: set[int] = set()

    def train_step(batch, *arguments, **options):
        if batch.step in steps:
            steps.remove(batch.step)
            os.kill(os.getpid(), signal.SIGINT)
        return real(batch, *arguments, **options)

    monkeypatch.setattr(run_module, "train_step", train_step)
    return steps


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


def test_keys_that_may_differ_do_and_others_are_refused_by_name(run, capsys):
    assert run("steps=10") == 0
    assert run("steps=12", "log_every=3", "evaluate.k=3", "data.workers=1") == 0
    assert run.summary()["steps"] == 12
    assert run("steps=14", "optimizer.lr=0.04") == 2
    error = capsys.readouterr().err
    assert "optimizer.lr = 0.03" in error
    assert len(error.strip().splitlines()) <= 3


def test_a_finished_run_says_so_and_fresh_starts_over(run, capsys):
    assert run("steps=6") == 0
    before = (run.output / "summary.json").stat().st_mtime_ns
    assert run("steps=6") == 0
    assert "this run is finished" in capsys.readouterr().out
    assert run("steps=5") == 0
    assert "6 steps are done, and steps=5 asks for fewer" in capsys.readouterr().out
    assert (run.output / "summary.json").stat().st_mtime_ns == before
    assert run("steps=4", flags=("--fresh",)) == 0
    assert run.summary()["steps"] == 4


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


def test_full_pic_is_the_same_code_and_says_that_the_active_rows_were_clamped(run, capsys):
    whole_window = ("schedule.window=null", "schedule.stride=null", "schedule.batch=64", "steps=8")
    assert run("method.active=4096", *whole_window) == 0
    assert "all 1,437 rows are active" in capsys.readouterr().out
    assert run.summary()["active"] == 1437
    assert run.summary()["readmitted"] == 0


def test_rows_that_start_at_their_feature_can_be_continued(run, interrupt_at):
    interrupt_at.add(9)
    assert run("method.init=feature", "steps=20") == 0
    assert run("method.init=feature", "steps=20") == 0
    pieces = run.summary()
    assert run("method.init=feature", "steps=20", flags=("--fresh",)) == 0
    assert run.summary()["digest"] == pieces["digest"]


@pytest.fixture(scope="module")
def at_stage_0(tmp_path_factory):
    """The digest of a run of 12 steps, each of two micro-batches."""
    runner = Runner(tmp_path_factory.mktemp("stage-0"))
    assert runner("steps=12", "schedule.micro_batches=2") == 0
    return runner.summary()["digest"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_zero_stage_trains_and_resumes_to_the_same_bits_as_stage_0(run, at_stage_0, stage):
    words = ("schedule.micro_batches=2", f"deepspeed.zero_optimization.stage={stage}")
    assert run("steps=7", *words) == 0
    assert run("steps=12", *words) == 0
    assert run.summary()["digest"] == at_stage_0


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


def test_job_knn_repeats_the_figure_of_the_run(finished, run, capsys):
    backbone = finished.output / "backbone.safetensors"
    assert run("job=knn", f"evaluate.backbone={backbone}") == 0
    line = json.loads((run.output / "knn.json").read_text())
    assert line["figures"]["knn_top1"] == pytest.approx(finished.summary()["knn_top1"], abs=0.01)
    assert "raw pixels" in capsys.readouterr().out
    assert run("job=knn", "evaluate.backbone=/nowhere") == 2
    assert run("job=knn", f"evaluate.backbone={backbone}", "backbone.layers=[8,8]") == 2


def test_a_backbone_in_a_published_checkpoint_is_evaluated_and_exported(finished, run, capsys):
    """The run's own, as the published repository would have saved it; so figure and features are those of the run."""
    own = load_file(finished.output / "backbone.safetensors")
    model = {f"module.encoder.{name}": tensor for name, tensor in own.items()} | {
        "module.encoder.fc1.bias": torch.ones(1)
    }
    path = run.directory / "ckpt_epoch_200.pth"
    torch.save({"opt": Namespace(arch="resnet50"), "model": model, "epoch": 200}, path)
    assert run("job=knn", f"evaluate.backbone={path}") == 0
    said = "a checkpoint of the published PIC repository, of which fc1.bias were left out"
    assert f"{path}: {said}" in capsys.readouterr().out
    figures = json.loads((run.output / "knn.json").read_text())["figures"]
    assert figures["knn_top1"] == pytest.approx(finished.summary()["knn_top1"], abs=0.01)
    assert run("job=export", f"evaluate.backbone={path}") == 0
    exports = run.output / "exports"
    assert sorted(os.listdir(exports)) == ["backbone.safetensors", "embeddings.npy", "manifest.json", "names.txt"]
    assert load_file(exports / "backbone.safetensors").keys() == own.keys()
    assert json.loads((exports / "manifest.json").read_text())["backbone"] == str(path)
    again = np.load(exports / "embeddings.npy")
    assert finished("job=export") == 0
    assert np.abs(again - np.load(finished.output / "exports" / "embeddings.npy")).max() < 1e-6
    # Beside a run of its own it would be mixed up with that.
    assert finished("job=export", f"evaluate.backbone={path}") == 2
    assert "choose another output, or leave evaluate.backbone out" in capsys.readouterr().err
    assert run("job=export", "evaluate.backbone=/nowhere") == 2


def test_job_export_writes_rows_and_embeddings_in_instance_order(finished):
    assert finished("job=export") == 0
    exports = finished.output / "exports"
    rows, embeddings = np.load(exports / "rows.npy"), np.load(exports / "embeddings.npy")
    assert rows.shape == (1437, 16)
    assert embeddings.shape == (1437, 64)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    assert json.loads((exports / "manifest.json").read_text())["order"] == "row i belongs to instance i"


def test_tensorboard_events_on_request(run):
    pytest.importorskip("tensorboard")
    assert run("steps=5", "evaluate.tensorboard=true") == 0
    assert list((run.output / "tensorboard").glob("events*"))


def test_evaluations_on_the_way_change_nothing(run):
    assert run("steps=12") == 0
    without = run.summary()["digest"]
    assert run("steps=12", "evaluate.every_steps=5", flags=("--fresh",)) == 0
    assert [line["step"] for line in run.lines("evaluations.jsonl")] == [5, 10, 12]
    assert run.summary()["digest"] == without


def test_dry_run_prints_config_and_plan_and_writes_nothing(run, capsys):
    assert run(flags=("--dry-run",)) == 0
    out = capsys.readouterr().out
    assert '"every_steps": 30' in out
    assert "active rows" in out
    assert not run.output.exists()


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


@pytest.fixture
def growing(tmp_path):
    """(a folder of 24 photos, its config, a function that adds more)."""
    from tests.test_bad_input import folder_config

    root = tmp_path / "photos"
    root.mkdir()
    rng = np.random.default_rng(0)

    def add(names):
        for name in names:
            pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{name}.png")

    add(f"m{number:02}" for number in range(24))
    return root, {**folder_config(root), "epochs": 12}, add


def test_images_that_are_added_are_trained_from_the_next_pass_on(run, growing, capsys):
    root, config, add = growing
    assert run("steps=4", config=config) == 0
    assert run("job=export", config=config) == 0
    before = np.load(run.output / "exports" / "rows.npy")
    add(["a0", "m10b", "z0", "z1", "z2"])  # before, between and after those that are there
    assert run("steps=4", config=config) == 0  # what it was asked for is done
    assert run("job=export", config=config) == 0
    assert (np.load(run.output / "exports" / "rows.npy") == before).all()
    capsys.readouterr()
    assert run("steps=40", "epochs=30", config=config) == 2  # the learning rate's length is no growth
    assert run("steps=12", config=config) == 0
    assert "5 images were added; they are visited from the next pass on" in capsys.readouterr().out
    assert run.summary()["instances"] == 29
    assert run.summary()["visited"] == 29
    assert run.summary()["digest"]
    rows = {}
    for name in names_in(run.output / "checkpoints" / "images.index"):
        rows[name] = len(rows)
    assert list(rows)[:24] == [f"m{number:02}.png" for number in range(24)]
    assert list(rows)[24:] == ["a0.png", "m10b.png", "z0.png", "z1.png", "z2.png"]
    assert run("job=export", config=config) == 0
    assert np.load(run.output / "exports" / "rows.npy").shape[0] == 29
    add(["b7"])
    assert run("steps=30", config=config) == 0
    assert run.summary()["instances"] == run.summary()["visited"] == 30
    (root / "b7.png").unlink()
    assert run("steps=45", config=config) == 0
    assert "1 image is gone and skipped; a number is never given to another one: b7.png" in capsys.readouterr().out
    assert run.summary()["instances"] == 30
    assert [line["name"] for line in run.lines("unreadable.jsonl")] == ["b7.png"]


def names_in(path):
    index, _ = packed.unpacked(path.read_bytes(), path)
    return [os.fsdecode(index.entry(instance).path) for instance in range(len(index))]


@pytest.mark.parametrize("lost", ["images.index", "checkpoints/images.index", "all but checkpoints"])
def test_a_run_that_grew_goes_on_though_a_list_of_its_images_is_lost(run, growing, lost):
    _, config, add = growing
    assert run("steps=4", config=config) == 0
    add(["a0", "z1"])
    assert run("steps=6", config=config) == 0
    if lost == "all but checkpoints":
        shutil.move(run.output, run.directory / "old")
        run.output.mkdir()
        shutil.copytree(run.directory / "old" / "checkpoints", run.output / "checkpoints")
    else:
        (run.output / lost).unlink()
    assert run("steps=8", config=config) == 0
    assert run.summary()["instances"] == 26
    copies = [(run.output / name).read_bytes() for name in ("images.index", "checkpoints/images.index")]
    assert copies[0] == copies[1]
    assert names_in(run.output / "images.index")[24:26] == ["a0.png", "z1.png"]


def test_a_start_that_was_killed_before_its_first_step_fixes_no_new_image(run, growing, monkeypatch, capsys):
    root, config, add = growing
    assert run("steps=4", config=config) == 0
    add(["a0", "b1"])

    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Run, "run", killed)
        assert run("steps=8", config=config) == 130
    (root / "a0.png").unlink()
    capsys.readouterr()
    assert run("steps=8", config=config) == 0
    assert "1 images were added" in capsys.readouterr().out
    assert run.summary()["instances"] == 25


def test_an_export_between_two_starts_leaves_new_images_out(run, growing):
    _, config, add = growing
    assert run("steps=4", config=config) == 0
    add(["a0", "z1"])
    assert run("job=export", config=config) == 0
    for name in ("rows", "embeddings"):
        assert len(np.load(run.output / "exports" / f"{name}.npy")) == 24


def test_a_window_over_all_images_keeps_its_length_when_they_grow(run, growing):
    _, config, add = growing
    config["schedule"] |= {"window": None, "stride": 8, "reshuffle": False}
    assert run("steps=4", config=config) == 0
    add([f"z{number}" for number in range(10)])
    assert run("steps=12", config=config) == 0
    assert run("steps=20", config=config) == 0  # resumes after it grew
    assert run.summary()["instances"] == 34


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


def test_a_run_that_grew_resumes_to_the_same_bits(run, growing, interrupt_at):
    _, config, add = growing
    assert run("steps=4", config=config) == 0
    add(["a0", "z1"])
    shutil.copytree(run.output, run.directory / "copy")
    assert run("steps=14", config=config) == 0
    whole = run.summary()["digest"]
    shutil.rmtree(run.output)
    shutil.copytree(run.directory / "copy", run.output)
    interrupt_at |= {5, 9}
    for _ in range(3):
        assert run("steps=14", config=config) == 0
    assert run.summary()["status"] == "finished"
    assert run.summary()["digest"] == whole


def test_a_run_with_all_rows_active_refuses_to_grow(run, growing, capsys):
    _, config, add = growing
    words = ("method.active=null", "schedule.window=16")
    assert run("steps=4", *words, config=config) == 0
    add(["z"])
    assert run("steps=6", *words, config=config) == 2
    assert "keeps all rows active" in capsys.readouterr().err


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


def test_two_jobs_in_one_output_directory_are_refused(run, capsys):
    from engine.disk.lock import Lock

    assert run("steps=3") == 0
    held = Lock(run.output)
    assert run("steps=5") == 2
    assert "is in use by" in capsys.readouterr().err
    held.release()
    assert run("steps=5") == 0
