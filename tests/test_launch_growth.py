"""Runs whose folder of images grows between two starts."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from datasets.index import packed
from engine.training import run as run_module
from tests.conftest import folder_config


@pytest.fixture
def growing(tmp_path):
    """(a folder of 24 photos, its config, a function that adds more)."""
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
