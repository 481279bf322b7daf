"""A message that names a way out tells the truth: the way is gone, and the same command does not fail again."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.conftest import folder_config


def told(run, capsys, *words, code=2, **options):
    """The message of a start that is refused."""
    assert run("steps=2", *words, **options) == code
    captured = capsys.readouterr()
    return captured.err[captured.err.index("error: ") :]


@pytest.mark.parametrize(
    ("words", "message", "way"),
    [
        ("optimiser.lr=1", "the nearest known one is optimizer", None),
        ("schedule.batch=66", r"set schedule.batch to (\d+)", "schedule.batch={}"),
        ("schedule.batch=66", r"set schedule.batch to \d+ or (\d+)", "schedule.batch={}"),
        ("method.active=32", r"set method.active to (\d+)", "method.active={}"),
        ("method.active=32", r"or schedule.batch to (\d+)", "schedule.batch={} method.active=32"),
        ("method.active=130", r"set method.active to (\d+)", "method.active={}"),
        ("method.active=768", r"set method.active to (\d+)", "method.active={}"),
        ("method.active=768", r"or null \(all rows\)", "method.active=null"),
        ("schedule.stride=300", r"set schedule.stride to (\d+)", "schedule.stride={}"),
        ("schedule.window=700", r"set schedule.window to (\d+)", "schedule.window={}"),
        ("schedule.window=1280", r"set schedule.window to (\d+)", "schedule.window={}"),
        ("schedule.window=1280", "or schedule.reshuffle to false", "schedule.reshuffle=false"),
        (
            "schedule.window=32000",
            r"set schedule.window to (\d+)",
            "schedule.window={}",
        ),
        (
            "method.init=feature schedule.micro_batches=2",
            "set schedule.micro_batches to 1",
            "schedule.micro_batches=1",
        ),
        ('optimizer={"momentum":0,"nesterov":true}', "optimizer.nesterov to false", "optimizer.nesterov=false"),
        ('optimizer={"momentum":0,"nesterov":true}', "set optimizer.momentum", "optimizer.momentum=0.9"),
        ("store.kind=memory store.dtype=bfloat16", "set store.kind to zarr", "store.kind=zarr"),
        ("store.kind=memory store.dtype=bfloat16", "store.dtype to float32", "store.dtype=float32"),
        ("optimizer.rows_weight_decay=0.9", "set optimizer.rows_weight_decay to 0", "optimizer.rows_weight_decay=0"),
        ("optimizer.rows_weight_decay=0.9", "method.norm_floor above 0", "method.norm_floor=0.01"),
        ("data.limit=100", "set it to null", "data.limit=null"),
        ('data.held_out=["x"]', r"set it to \[\]", "data.held_out=[]"),
        ("data.labels=folders", "set it to null", "data.labels=null"),
        ('data.augment={"kind":"photos"}', r'set data.augment=(\{"kind":"grey"\})', "data.augment={}"),
        ("deepspeed.gradient_clipping=1", "set optimizer.clip instead", None),
        (
            "schedule.batch=2000 schedule.window=2048 schedule.stride=2048 method.active=null",
            "set schedule.batch",
            None,
        ),
        ("method.kernels=fast", "compiled", "method.kernels=auto"),
        ("backbone.name=resnet18", "set it to null", "backbone.layers=null"),
        ("schedule.batch=96", r"set schedule.batch to (\d+)", "schedule.batch={}"),
    ],
)
def test_what_the_message_says_to_set_works(run, capsys, words, message, way):
    found = re.search(message, told(run, capsys, *words.split(" "), flags=("--dry-run",)))
    assert found
    if way is not None:
        value = found.group(1) if found.groups() else ""
        assert run(*words.split(" "), *way.replace("{}", value).split(" "), flags=("--dry-run",)) == 0


def broken(path):
    path.write_bytes(b"<html>404</html>")


def test_unreadable_images_that_stop_a_run_cost_nothing_and_can_be_repaired_or_skipped(run, capsys, photos):
    config = folder_config(photos, on_unreadable="stop")
    good = (photos / "cats" / "01.jpg").read_bytes()
    assert run("steps=4", "checkpoint.every_steps=100", config=config) == 0
    for name in ("01", "03"):
        broken(photos / "cats" / f"{name}.jpg")
        repaired = (photos / "cats" / f"{name}.jpg").stat().st_size
        assert repaired != len(good)
    message = told(run, capsys, "steps=9", "checkpoint.every_steps=100", config=config)
    assert "cannot read cats/01.jpg" in message and "Repair the file, or set data.on_unreadable to skip" in message
    assert run("steps=5", "data.on_unreadable=skip", "data.max_unreadable=0.5", config=config) == 0
    for name in ("01", "03"):
        (photos / "cats" / f"{name}.jpg").write_bytes(good)
    assert run("steps=9", "data.max_unreadable=0.5", config=config) == 0  # this window's two are counted already


def test_a_broken_image_may_be_repaired_when_the_run_goes_on(run, capsys, photos):
    name = photos / "cats" / "01.jpg"
    good = name.read_bytes()
    broken(name)
    config = folder_config(photos, on_unreadable="stop")
    message = told(run, capsys, "steps=12", "checkpoint.every_steps=100", config=config)
    assert "cannot read cats/01.jpg" in message and "the run stops before step" in message
    assert "the same command again" in message
    step = int(re.search(r"before step (\d+)", message).group(1))
    if step:
        assert f"step-{step:09}" in message
    assert "cats/01.jpg" in told(run, capsys, "steps=12", "checkpoint.every_steps=100", config=config)
    name.write_bytes(good)
    assert run("steps=12", config=config) == 0
    out = capsys.readouterr().out
    assert step == 0 or f"going on after step {step} " in out
    assert run.summary()["steps"] == 12


def test_a_broken_image_may_be_skipped_when_the_run_goes_on(run, capsys, photos):
    broken(photos / "cats" / "01.jpg")
    assert "on_unreadable to skip" in told(run, capsys, config=folder_config(photos, on_unreadable="stop"), code=2)
    assert run("steps=6", config=folder_config(photos, on_unreadable="skip")) == 0
    assert run.summary()["unreadable_images"] == 1


def test_what_a_limit_stopped_goes_on_when_the_images_are_repaired_or_the_limit_is_raised(run, capsys, photos):
    good = {path: path.read_bytes() for path in sorted(photos.glob("*/*.jpg"))[:8]}
    for path in good:
        broken(path)
    config = folder_config(photos)
    assert run("checkpoint.every_steps=1", config=config) == 1
    out = capsys.readouterr().out
    assert "more than data.max_unreadable (0.1) allows" in out and "the first: cats/" in out
    for path, content in good.items():
        path.write_bytes(content)
    assert run("checkpoint.every_steps=1", config=config) == 0
    for path in good:
        broken(path)
    assert run("data.max_unreadable=0.5", config=config, flags=("--fresh",)) == 0
    assert run.summary()["unreadable_images"] == 8


def test_another_spelling_of_the_root_and_other_labels_are_the_same_run(run, photos, monkeypatch, tmp_path):
    assert run("steps=2", config=folder_config(photos)) == 0
    assert run("steps=3", config=folder_config(f"{photos}/")) == 0
    monkeypatch.chdir(tmp_path)
    assert run("steps=4", config=folder_config("photos")) == 0
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("steps=5", config=folder_config("~/photos", labels="folders")) == 0
    shutil.move(photos, tmp_path / "moved")
    assert run("steps=6", config=folder_config(tmp_path / "moved")) == 0
    assert run.summary()["steps"] == 6


def test_what_need_not_be_the_same_may_be_changed(run):
    assert run("steps=2") == 0
    for number, word in enumerate(
        ("checkpoint.keep=3", "checkpoint.every_steps=1", "threads=2", "data.max_unreadable=0.3")
    ):
        assert run(f"steps={3 + number}", word) == 0, word


def test_a_run_with_another_config_can_be_set_back_moved_or_started_over(run, capsys):
    assert run("steps=2") == 0
    message = told(run, capsys, "optimizer.lr=0.04")
    assert "set it back, choose another output, or start over with --fresh" in message
    assert run("steps=3") == 0
    first = run.output
    run.output = run.directory / "other"
    assert run("steps=2", "optimizer.lr=0.04") == 0
    run.output = first
    assert run("steps=2", "optimizer.lr=0.04", flags=("--fresh",)) == 0


def test_images_that_are_gone_can_be_restored_or_the_run_started_over(run, capsys, photos):
    config = folder_config(photos)
    paths = [photos / "cats" / f"{number:02}.jpg" for number in (1, 3, 5)]
    contents = [path.read_bytes() for path in paths]
    assert run("steps=2", config=config) == 0
    for path in paths:
        path.unlink()
    assert "3 images are gone" in told(run, capsys, config=config)
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert run("steps=3", config=config) == 0
    for path in paths:
        path.unlink()
    assert run("steps=3", config=config, flags=("--fresh",)) == 0


def test_images_that_a_full_run_cannot_take_can_be_taken_away_or_started_over_with(run, capsys, photos):
    config = folder_config(photos)
    config["schedule"] |= {"window": None, "stride": None}
    config["method"] = {**config["method"], "active": None}
    assert run("steps=2", config=config) == 0
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(photos / "cats" / "new.jpg")
    assert "take the new images out again, or start over with --fresh" in told(run, capsys, config=config)
    config["schedule"] |= {"window": 16, "stride": 8}
    assert run("steps=2", config=config, flags=("--fresh",)) == 0
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(photos / "cats" / "newest.jpg")
    message = told(run, capsys, config=config)
    assert "restore the images, or start over with --fresh and method.active below the number of images" in message
    config["method"]["active"] = 8
    assert run("steps=2", config=config, flags=("--fresh",)) == 0
    Image.fromarray(np.zeros((21, 20, 3), np.uint8)).save(photos / "cats" / "newer.jpg")
    assert run("steps=3", config=config) == 0


def test_a_damaged_newest_checkpoint_is_verified_and_repaired_as_the_message_says(run, capsys):
    assert run("steps=31") == 0
    manifests = sorted((run.output / "checkpoints" / "manifests").iterdir())
    body = json.loads(manifests[-1].read_text())["body"]
    path = run.output / "checkpoints" / body["directory"] / "trunk.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    assert run("job=store", "store.verb=verify") == 1
    assert "store.verb=repair goes back" in capsys.readouterr().out
    assert run("job=store", "store.verb=repair") == 0
    assert run("steps=33") == 0


def test_a_missing_backbone_can_be_trained_or_named(run, capsys):
    assert "train one with job=pretrain, or set evaluate.backbone" in told(run, capsys, "job=knn")
    assert run("steps=2") == 0
    assert "set evaluate.features to backbone" in told(run, capsys, "job=knn", "evaluate.features=head")
    assert run("job=knn", "evaluate.features=backbone") == 0
    saved = run.output / "backbone.safetensors"
    run.output = run.directory / "other"
    assert run("job=knn", f"evaluate.backbone={saved}") == 0
    assert run("job=knn", f"evaluate.backbone={saved}") == 0


def test_a_step_that_has_no_checkpoint_can_be_one_of_those_that_are_named(run, capsys):
    assert run("steps=31") == 0
    message = told(run, capsys, "job=store", "store.step=7")
    there = re.search(r"there are: ([\d, ]+)", message).group(1).split(", ")
    for step in there:
        assert run("job=store", f"store.step={step}") == 0


def test_the_readmes_words_for_a_label_file(run, photos, tmp_path):
    lines = [f"{path.relative_to(photos).as_posix()},{path.parent.name}" for path in sorted(photos.glob("*/*.jpg"))]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["path,label", *lines, "", ""]))
    assert run("steps=2", config=folder_config(photos, labels=str(labels))) == 0
    assert 0 <= run.summary()["knn_top1"] <= 1
