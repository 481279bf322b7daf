"""Whatever lies around and inside output and data.root, and whatever is asked for: no byte that is not ours changes or goes."""

import json
import shutil
from pathlib import Path

import pytest

from datasets.batch import MARK
from tests.conftest import TINY, folder_config, refused
from tests.foreign_runs import run_seed
from tests.trees import contents


@pytest.mark.parametrize("seed", range(8))
def test_random_jobs_among_random_files_change_none_of_them(tmp_path, seed):
    codes = run_seed(seed, tmp_path)
    assert codes


@pytest.mark.parametrize("name", ["exports", "checkpoints", "tensorboard", "checkpoints/rows", "images"])
def test_fresh_does_not_take_the_folder_of_images_with_it(run, capsys, photos, name):
    root = run.output / name
    root.parent.mkdir(parents=True)
    shutil.move(photos, root)
    before = contents(run.output)
    for flags in (("--fresh",), ()):
        assert run(config=folder_config(root), flags=flags) == 2
        assert "is above data.root" in capsys.readouterr().err
    assert contents(run.output) == before


@pytest.mark.parametrize("flags", [(), ("--fresh",)])
def test_the_directory_of_another_tool_is_refused_by_every_job(run, capsys, flags):
    for name in ("config.json", "report.html", "backbone.safetensors", "checkpoints/rows/a", "checkpoints/step-1/b"):
        (run.output / name).parent.mkdir(parents=True, exist_ok=True)
        (run.output / name).write_text("another tool's")
    before = contents(run.output)
    assert run(flags=flags) == 2
    assert "holds files that this engine did not write" in capsys.readouterr().err
    if not flags:
        backbone = run.directory / "b.safetensors"
        backbone.write_bytes(b"")
        for words in (
            ["job=knn", f"evaluate.backbone={backbone}"],
            ["job=export"],
            ["job=linear"],
            *(["job=store", f"store.verb={verb}"] for verb in ("inspect", "scrub", "repair", "export", "verify")),
        ):
            assert run(*words) == 2, words
            assert "Traceback" not in capsys.readouterr().err
    assert contents(run.output) == before


def test_a_run_that_was_made_before_there_was_a_mark_goes_on_and_gets_it(run):
    assert run("steps=4") == 0
    (run.output / MARK).unlink()
    assert run("steps=6") == 0
    assert run.summary()["steps"] == 6
    assert "config.json" in (run.output / MARK).read_text()
    (run.output / MARK).unlink()
    assert run("steps=2", flags=("--fresh",)) == 0
    assert run.summary()["steps"] == 2


def test_what_a_copy_of_the_checkpoints_alone_needs_to_go_on_is_made_anew(run, tmp_path):
    assert run("steps=4") == 0
    shutil.move(run.output, tmp_path / "old")
    run.output.mkdir()
    shutil.copytree(tmp_path / "old" / "checkpoints", run.output / "checkpoints")
    assert run("steps=8") == 0
    assert run.summary()["steps"] == 8
    assert [line["step"] for line in run.lines()] == [5, 8]


def test_an_output_among_the_images_is_no_image(run, capsys, photos):
    run.output = photos / "runs" / "a"
    config = folder_config(photos)
    assert run("steps=4", config=config) == 0
    assert run("job=store", config=config) == 0  # a picture, store.png
    assert run("job=export", config=config) == 0
    assert run("steps=6", config=config) == 0
    assert run.summary()["instances"] == 24
    run.output = photos / "runs" / "b"
    assert run("steps=3", config=config) == 0
    assert run.summary()["instances"] == 24


def test_checkpoints_on_another_disk_are_started_over_and_the_link_stays(run, tmp_path):
    (tmp_path / "disk").mkdir()
    run.output.mkdir()
    (run.output / "checkpoints").symlink_to(tmp_path / "disk")
    assert run("steps=31") == 0
    assert (tmp_path / "disk" / "manifests").is_dir()
    assert run("steps=33") == 0
    (tmp_path / "disk" / "mine").write_text("mine")
    assert run("steps=3", flags=("--fresh",)) == 0
    assert run.summary()["steps"] == 3
    assert (run.output / "checkpoints").is_symlink()
    assert (tmp_path / "disk" / "mine").read_text() == "mine"
    assert run("steps=5") == 0


def test_files_that_another_put_beside_ours_survive_fresh_and_are_told(run, capsys):
    assert run("steps=3") == 0
    assert run("job=export") == 0
    mine = [
        run.output / name for name in ("notes.txt", "exports/mine.npy", "checkpoints/mine", "checkpoints/rows/mine")
    ]
    for path in mine:
        path.write_text("mine")
    assert run("steps=2", flags=("--fresh",)) == 0
    assert all(path.read_text() == "mine" for path in mine)
    assert "exports/mine.npy was not written by this engine and stays" in capsys.readouterr().out
    assert not (run.output / "exports" / "rows.npy").exists()


def test_a_job_that_would_replace_a_file_of_ours_by_name_alone_is_refused(run, capsys):
    assert run("steps=3") == 0
    (run.output / "knn.json").write_text("mine")
    refused(run, capsys, "job=knn", expect="knn.json was not written by this engine")
    (run.output / "linear.json").write_text("mine")
    refused(run, capsys, "job=linear", expect="linear.json was not written by this engine")
    (run.output / "exports").mkdir()
    (run.output / "exports" / "rows.npy").write_text("mine")
    refused(run, capsys, "job=export", expect="rows.npy was not written by this engine")
    assert json.loads((run.output / "config.json").read_text())["epochs"] == TINY["epochs"]
    assert (run.output / "knn.json").read_text() == "mine"


def test_two_outputs_whose_checkpoints_lie_at_one_place_exclude_each_other(run, capsys, tmp_path):
    from engine.disk.lock import Lock

    assert run("steps=3") == 0
    first = run.output
    run.output = tmp_path / "other"
    run.output.mkdir()
    (run.output / "checkpoints").symlink_to(first / "checkpoints")
    config = (first / "config.json").read_text()
    (run.output / "config.json").write_text(config)
    before = contents(first)
    held = Lock(first)
    try:
        for words, flags in ((["steps=5"], ("--fresh",)), (["job=store", "store.verb=scrub"], ())):
            assert run(*words, flags=flags) == 2
            assert "is in use by this very process" in capsys.readouterr().err
    finally:
        held.release()
    assert {name: content for name, content in contents(first).items() if Path(name).name != "lock"} == {
        name: content for name, content in before.items() if Path(name).name != "lock"
    }
    assert run("steps=5") == 0
    run.output = first
    assert run("steps=6") == 0
