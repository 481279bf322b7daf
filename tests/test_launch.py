"""The run's contract, end to end on digits: outputs, backends, evaluation, exports."""

import errno
import json
import math
import os
from argparse import Namespace

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torchvision.models.vgg import VGG, make_layers

import kernels.catch_up
import kernels.compiled
import kernels.row_update
from engine.results.output import Output
from kernels.compiled import NotCompiled, choose
from kernels.sampled_softmax import ops as softmax_ops
from tests.conftest import Runner

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


def test_full_pic_is_the_same_code_and_says_that_the_active_rows_were_clamped(run, capsys):
    whole_window = ("schedule.window=null", "schedule.stride=null", "schedule.batch=64", "steps=8")
    assert run("method.active=4096", *whole_window) == 0
    assert "all 1,437 rows are active" in capsys.readouterr().out
    assert run.summary()["active"] == 1437
    assert run.summary()["readmitted"] == 0


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


def test_two_jobs_in_one_output_directory_are_refused(run, capsys):
    from engine.disk.lock import Lock

    assert run("steps=3") == 0
    held = Lock(run.output)
    assert run("steps=5") == 2
    assert "is in use by" in capsys.readouterr().err
    held.release()
    assert run("steps=5") == 0


def test_a_finished_run_without_its_report_makes_it_again_and_trains_no_step(run, capsys, monkeypatch):
    real = Output.write_text

    def full(output, name, text):
        if name == "report.html":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(output, name, text)

    monkeypatch.setattr(Output, "write_text", full)
    assert run("steps=4") == 1
    assert not (run.output / "summary.json").exists() and "store.verb=scrub" in capsys.readouterr().err
    monkeypatch.undo()
    for missing in ("nothing", "report.html"):
        (run.output / missing).unlink(missing_ok=True)
        assert run("steps=4") == 0
        assert "going on after step 4" in capsys.readouterr().out
        assert (run.output / "report.html").exists() and run.summary()["status"] == "finished"
    assert run("steps=4") == 0
    assert "this run is finished" in capsys.readouterr().out
