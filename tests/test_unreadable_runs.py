"""Runs whose images vanish or break in the middle, and runs that are asked to end while they evaluate or wait."""

import errno
import json
import os
import signal
import struct
import threading
import time

import pytest
from PIL import Image
from safetensors.torch import load_file

from datasets import regular_file
from datasets.folder import ImageFolder
from datasets.probes import split_probe
from datasets.workers import Workers
from engine.evaluation import evaluate, nearest
from engine.training import run as run_module
from tests.conftest import folder_config


@pytest.fixture
def at_step(monkeypatch):
    """{step: what to do before it}."""
    actions = {}
    real = run_module.train_step

    def train_step(batch, *arguments, **options):
        if batch.step in actions:
            actions.pop(batch.step)()
        return real(batch, *arguments, **options)

    monkeypatch.setattr(run_module, "train_step", train_step)
    return actions


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(regular_file, "PAUSES_SECONDS", (0.0, 0.0))


def steps_kept(run):
    manifests = (run.output / "checkpoints" / "manifests").glob("*.json")
    return sorted(json.loads(path.read_text())["body"]["step"] for path in manifests)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_root_that_vanishes_ends_the_run_and_costs_nothing(run, capsys, photos, at_step, workers, left):
    config, words = folder_config(photos), ("epochs=8", "checkpoint.every_steps=3", f"data.workers={workers}")
    assert run(*words, config=config) == 0
    whole = run.summary()["digest"]

    def vanish():
        photos.rename(photos.parent / "away")
        if left != "nothing":
            photos.mkdir()

    at_step[7] = vanish
    assert run(*words, config=config, flags=("--fresh",)) == 1
    captured = capsys.readouterr()
    assert "error: cannot read " in captured.err and "checkpoints that were written before are whole" in captured.err
    assert len(captured.err[captured.err.index("error: ") :].strip().splitlines()) == 1
    assert "cannot read" not in captured.out
    # The eighth batch was at hand, and each worker may have had two more ready. How many it had is a matter of time.
    kept = steps_kept(run)
    assert kept and set(kept) <= set(range(3, 8 + 2 * workers + 1, 3))
    if left != "nothing":
        photos.rmdir()
    (photos.parent / "away").rename(photos)
    assert run(*words, config=config) == 0
    assert run.summary()["digest"] == whole
    assert run.summary()["unreadable_images"] == 0


def test_steps_in_which_nothing_was_read_change_nothing_and_push_no_checkpoint_out(run, photos, at_step):
    config, words = folder_config(photos), ("checkpoint.every_steps=1", "data.max_unreadable=1", "log_every=1")
    assert run("steps=6", *words, config=config) == 0
    backbone, good = load_file(run.output / "backbone.safetensors"), steps_kept(run)

    def break_all():
        for path in photos.glob("*/*.jpg"):
            path.write_bytes(b"<html>")

    at_step[5] = break_all
    assert run("steps=40", *words, config=config, flags=("--fresh",)) == 1
    assert run.summary()["status"].startswith("stopped: none of the images of 3 steps in a row could be read")
    assert steps_kept(run) == good == [5, 6]
    assert len(run.lines()) == 8
    for name, tensor in load_file(run.output / "backbone.safetensors").items():
        assert tensor.equal(backbone[name]), name


@pytest.fixture
def fails(monkeypatch):
    """Every opening of a file whose path ends so fails with this error; a list of the paths that were asked for."""
    real, times = os.open, []

    def fail(number, end):
        def refuse(path, *arguments, **options):
            if os.fsencode(path).endswith(end):
                times.append(path)
                raise OSError(number, os.strerror(number), path)
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, "open", refuse)
        return times

    return fail


@pytest.mark.parametrize(("number", "end"), [(errno.EACCES, b"05.jpg"), (errno.EIO, b".jpg")])
def test_a_machine_that_gives_no_image_is_no_reason_to_skip_it(run, capsys, photos, fails, number, end):
    times = fails(number, end)
    assert run("steps=12", config=folder_config(photos)) == 1
    assert "error: cannot read cats/" in capsys.readouterr().err or end == b".jpg"
    assert sum(path == times[0] for path in times) == 3  # tried again twice


def test_a_bad_sector_under_one_image_ends_no_run(run, capsys, photos, fails):
    fails(errno.EIO, b"05.jpg")
    assert run("steps=12", config=folder_config(photos)) == 0
    out = capsys.readouterr().out
    assert out.count("cannot read cats/05.jpg: Input/output error, twice, while other images come; its place") == 1
    assert run.summary()["unreadable_images"] == 1
    assert run.summary()["status"] == "finished"


def test_no_bad_image_of_any_kind_ends_a_run_and_each_is_named_once(run, capsys, photos, fails, at_step):
    def write(name, content):
        (photos / "dogs" / f"{name}.jpg").write_bytes(content)

    whole = (photos / "dogs" / "00.jpg").read_bytes()
    bytes_08 = (photos / "dogs" / "08.jpg").read_bytes()
    size_10 = (photos / "dogs" / "10.jpg").stat().st_size
    write("00", whole[: len(whole) // 2])
    write("02", b"")
    write("04", b"<html>404</html>")
    bomb = bytearray(whole)
    place = whole.index(b"\xff\xc0") + 5
    bomb[place : place + 4] = struct.pack(">HH", 30_000, 30_000)
    write("06", bytes(bomb))
    write("._06", b"a resource fork")
    Image.new("RGB", (24, 20), (9, 99, 9)).save(photos / "cats" / "01.jpg", "PNG")
    Image.new("RGB", (1, 1), (9, 99, 9)).save(photos / "cats" / "03.jpg")
    Image.new("RGB", (30_000, 10), (9, 99, 9)).save(photos / "cats" / "07.jpg")
    fails(errno.EIO, b"05.jpg")

    def change():
        (photos / "dogs" / "08.jpg").unlink()
        write("10", whole + b"more")

    at_step[0] = change
    config = folder_config(photos, max_unreadable=0.5, workers=0)
    assert run("steps=24", config=config) == 0
    out = capsys.readouterr().out
    told = dict(
        line.removeprefix("cannot read ").split(": ", 1) for line in out.splitlines() if line.startswith("cannot read")
    )
    assert out.count("cannot read ") == len(told)
    reasons = {name: reason.removesuffix("; its place stays empty") for name, reason in told.items()}
    assert reasons.pop("dogs/00.jpg").startswith("OSError: image file is truncated")
    assert reasons == {
        "dogs/02.jpg": "an empty file",
        "dogs/04.jpg": "not an image in a known format",
        "dogs/06.jpg": "more than 89478485 pixels",
        "cats/05.jpg": "Input/output error, twice, while other images come",
        "dogs/08.jpg": "No such file or directory",
        "dogs/10.jpg": f"changed since it was listed: {len(whole) + 4:,} bytes, it was {size_10:,} bytes",
    }
    assert run.summary()["unreadable_images"] == 7
    # The next start takes what lies there then.
    write("08", bytes_08)
    assert run("steps=36", config=config) == 0
    assert "cannot read" not in capsys.readouterr().out
    assert len(run.lines("unreadable.jsonl")) == 7


def test_each_unreadable_image_is_told_once_whatever_the_run_is_cut_into(run, capsys, photos):
    for name in ("01", "03"):
        (photos / "cats" / f"{name}.jpg").write_bytes(b"<html>")
    config = folder_config(photos, max_unreadable=0.5)
    for steps in (4, 8, 12):
        assert run(f"steps={steps}", config=config) == 0
    out = capsys.readouterr().out
    assert sorted(line for line in out.splitlines() if line.startswith("cannot read")) == [
        f"cannot read cats/{name}.jpg: not an image in a known format; its place stays empty" for name in ("01", "03")
    ]
    assert run.summary()["unreadable_images"] == 2
    assert "2 images could not be read; they are listed in" in out
    listed = [json.loads(line) for line in (run.output / "unreadable.jsonl").read_text().splitlines()]
    assert sorted(entry["name"] for entry in listed) == ["cats/01.jpg", "cats/03.jpg"]


def test_no_number_in_any_file_is_nan_though_nothing_of_a_set_can_be_read(run, capsys, photos):
    for path in photos.glob("*/*.jpg"):
        if path.stem in ("01", "11", "21"):
            path.write_bytes(b"<html>")
    images = sorted(photos.glob("*/*.jpg"))
    for path in images[: len(images) // 3]:
        path.write_bytes(b"<html>")
    assert run("steps=6", config=folder_config(photos, labels="folders", max_unreadable=1)) == 0
    for name in ("summary.json", "metrics.jsonl", "evaluations.jsonl", "plan.json"):
        for line in (run.output / name).read_text().split("\n"):
            assert "NaN" not in line and "Infinity" not in line


def test_sets_of_the_evaluation_that_cannot_be_read_are_told_at_the_start(run, capsys, photos, monkeypatch):
    from datasets.batch import UnreadableImage

    def refuse(source, instance):
        raise UnreadableImage(source.instance_name(instance), "no image")

    monkeypatch.setattr(ImageFolder, "image", refuse)
    assert run("steps=6", config=folder_config(photos, labels="folders")) == 1
    out = capsys.readouterr().out
    assert out.count("can be read; it will have no figure") == 2
    assert "none of the images of 3 steps" in out or "more than data.max_unreadable" in out


@pytest.mark.parametrize("workers", [0, 2])
def test_a_labelled_folder_whose_queries_are_all_broken_trains_to_its_end_and_says_so(run, capsys, photos, workers):
    queries = split_probe(ImageFolder(photos, "folders"), 16).queries[0]
    broken = [photos / queries.names(number) for number in range(queries.count)]
    for path in broken:
        path.write_bytes(b"<html>")
    config = folder_config(photos, labels="folders", max_unreadable=0.5, workers=workers)
    assert run(config=config) == 0
    assert f"none of the images of {queries.name} that the evaluation asks for can be read" in capsys.readouterr().out
    summary = run.summary()
    assert summary["status"] == "finished" and summary["unreadable_images"] == len(broken) == 2
    assert summary["knn_top1"] is None and summary["rankme"] > 1
    loaders = [line["loader"] for line in run.lines()]
    sizes = [path.stat().st_size for path in photos.glob("*/*.jpg") if path not in broken]
    read_bytes, images = (sum(loader[name] for loader in loaders) for name in ("read_bytes", "images"))
    assert min(sizes) * images <= read_bytes <= max(sizes) * images and images > 50


def test_a_signal_in_the_last_evaluation_ends_it_at_the_next_batch(run, capsys, monkeypatch):
    calls = []
    real = nearest.embedder

    def embedder(network, features):
        embed = real(network, features)

        def counted(images):
            calls.append(len(images))
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return embed(images)

        return counted

    monkeypatch.setattr(evaluate, "EVALUATION_BATCH", 16)
    with monkeypatch.context() as patch:
        patch.setattr(nearest, "embedder", embedder)
        assert run("steps=6") == 0
    assert len(calls) == 3  # of 113
    assert run.summary()["status"] == "stopped by SIGTERM"
    assert run.summary()["knn_top1"] is None
    assert "SIGTERM: checkpoint written after step 6; the same command goes on from there" in capsys.readouterr().out
    assert run("steps=6") == 0
    assert run.summary()["status"] == "finished" and run.summary()["knn_top1"] is not None


def test_a_signal_in_an_evaluation_on_the_way_ends_with_a_checkpoint_of_that_step(run, monkeypatch):
    words = ("steps=12", "checkpoint.every_steps=5", "evaluate.every_steps=4")
    assert run(*words) == 0
    whole = run.summary()["digest"]
    real, asked = nearest.raw_pixels, []

    def raw_pixels(images):
        if not asked:
            asked.append(os.kill(os.getpid(), signal.SIGTERM))
        return real(images)

    monkeypatch.setattr(evaluate, "EVALUATION_BATCH", 64)
    monkeypatch.setattr(nearest, "raw_pixels", raw_pixels)
    assert run(*words, flags=("--fresh",)) == 0
    assert run.summary()["status"] == "stopped by SIGTERM" and run.summary()["steps"] == 4
    assert steps_kept(run) == [4]
    assert run(*words) == 0
    assert run.summary()["digest"] == whole
    assert [line["step"] for line in run.lines("evaluations.jsonl")] == [4, 8, 12]  # that of step 4 is made up for


def test_a_terminal_that_closes_ends_a_run_with_a_checkpoint_and_nohup_does_not(run, at_step):
    at_step[4] = lambda: os.kill(os.getpid(), signal.SIGHUP)
    assert run("steps=9") == 0
    assert run.summary()["status"] == "stopped by SIGHUP" and steps_kept(run) == [5]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step[6] = lambda: os.kill(os.getpid(), signal.SIGHUP)
        assert run("steps=9") == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert run.summary()["status"] == "finished"


def test_a_signal_while_a_batch_does_not_come_ends_with_a_checkpoint(run, photos, monkeypatch, tmp_path):
    real, real_take, taking = ImageFolder.image, Workers.take, threading.Event()

    def hang(source, instance):
        if source.instance_name(instance) == "cats/05.jpg" and os.getpid() != here:
            (tmp_path / "hangs").touch()
            time.sleep(3600)
        return real(source, instance)

    def take(*arguments):
        taking.set()
        batch = real_take(*arguments)
        taking.clear()
        return batch

    def stop_once_it_waits():
        while not (tmp_path / "hangs").exists() or not taking.is_set():
            time.sleep(0.05)
        os.kill(here, signal.SIGTERM)

    here = os.getpid()
    monkeypatch.setattr(ImageFolder, "image", hang)
    monkeypatch.setattr(Workers, "take", take)
    thread = threading.Thread(target=stop_once_it_waits, daemon=True)
    thread.start()
    assert run("steps=12", "data.workers=1", "data.patience_seconds=3000", config=folder_config(photos)) == 0
    thread.join()
    assert run.summary()["status"] == "stopped by SIGTERM"
    assert run.summary()["steps"] < 12
    assert steps_kept(run) == ([run.summary()["steps"]] if run.summary()["steps"] else [])


def test_a_batch_that_does_not_come_ends_the_run_with_the_worker_and_what_to_set(run, capsys, photos, monkeypatch):
    real = ImageFolder.image

    def hang(source, instance):
        if source.instance_name(instance) == "cats/05.jpg" and os.getpid() != here:
            time.sleep(600)
        return real(source, instance)

    here = os.getpid()
    monkeypatch.setattr(ImageFolder, "image", hang)
    assert run("steps=12", "data.workers=1", "data.patience_seconds=2", config=folder_config(photos)) == 1
    error = capsys.readouterr().err
    assert "worker 0 of the loader" in error and "data.patience_seconds" in error


def test_a_worker_that_is_killed_ends_the_run_in_one_line(run, capsys, photos, monkeypatch):
    real = ImageFolder.image

    def die(source, instance):
        if source.instance_name(instance) == "cats/05.jpg" and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(source, instance)

    here = os.getpid()
    monkeypatch.setattr(ImageFolder, "image", die)
    assert run("steps=12", "data.workers=2", config=folder_config(photos)) == 1
    error = capsys.readouterr().err
    assert "was killed by SIGKILL" in error and len(error.strip().splitlines()) == 1
