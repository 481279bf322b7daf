"""Output directories: damaged, foreign, in use, in the way."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.hostile.case import Prepare, earlier_run, hostile


@hostile(2, "not a directory")
def an_output_that_is_a_file(directory):
    (directory / "out").write_text("mine")


@hostile(2, "a link to nothing")
def an_output_that_links_to_nothing(directory):
    (directory / "out").symlink_to("nothing")


@hostile(2, "output")
def an_output_that_links_to_itself(directory):
    (directory / "out").symlink_to("out")


@hostile(2, "did not write")
def an_output_with_a_thesis_in_it(directory):
    (directory / "out").mkdir()
    (directory / "out" / "thesis.tex").write_text("mine")
    return ["--fresh"]


@hostile(2, "is above data.root")
def an_output_above_the_images(directory):
    return [f"output={directory}", "--fresh"]


@hostile(2, "is above data.root")
def an_output_that_is_the_folder_of_images(directory):
    return [f"output={directory / 'photos'}"]


def _after(*words: str) -> Callable[[Callable[[Path], object]], Prepare]:
    """Lay the trap in a run that was made before, and start it again."""

    def wrap(trap: Callable[[Path], object]) -> Prepare:
        def prepare(directory: Path) -> list[str]:
            shutil.copytree(earlier_run(), directory / "out")
            trap(directory / "out")
            return list(words)

        prepare.__name__ = trap.__name__
        return prepare

    return wrap


@hostile(2, "lock")
@_after("steps=4")
def a_lock_that_is_a_link(out):
    (out / "lock").unlink()
    (out / "lock").symlink_to(out / "config.json")


@hostile(2, "lock")
@_after("steps=4")
def a_lock_that_is_a_fifo(out):
    (out / "lock").unlink()
    os.mkfifo(out / "lock")


@hostile(0, "report")
@_after("steps=4")
def a_lock_full_of_bytes(out):
    (out / "lock").write_bytes(bytes(range(256)))


@hostile(2, "config.json is a link")
@_after("steps=4")
def a_config_of_a_run_that_is_a_link(out):
    (out / "config.json").unlink()
    (out / "config.json").symlink_to("plan.json")


@hostile(2, "report.html is a link")
@_after("steps=4")
def a_report_that_is_a_link(out):
    (out / "report.html").unlink()
    (out / "report.html").symlink_to("/dev/full")


@hostile(0, "report")
@_after("steps=4")
def no_files_for_people(out):
    for name in (
        "metrics.jsonl",
        "evaluations.jsonl",
        "summary.json",
        "config.json",
        "plan.json",
        "backbone.safetensors",
    ):
        (out / name).unlink()


@hostile(0, "report")
@_after("steps=4")
def files_for_people_that_are_broken(out):
    (out / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": NaN}\n{"st\xff\n[]\nnull\n{"step": "x"}\n')
    (out / "evaluations.jsonl").write_bytes(b"{}\n\0\n")
    (out / "summary.json").write_text("[]")
    (out / "plan.json").write_bytes(b"\xff\xfe")


@hostile(0, "report")
@_after("steps=4")
def no_mark(out):
    (out / ".pic-engine").unlink()


@hostile(2, "checkpoints")
@_after("steps=4")
def checkpoints_that_are_a_file(out):
    shutil.rmtree(out / "checkpoints")
    (out / "checkpoints").write_text("mine")


@hostile(2, "whole")
@_after("steps=4")
def manifests_that_are_html(out):
    for path in (out / "checkpoints" / "manifests").iterdir():
        path.write_text("<html>")


@hostile(2, "whole")
@_after("steps=4")
def manifests_nested_50000_deep(out):
    for path in (out / "checkpoints" / "manifests").iterdir():
        path.write_text("[" * 50_000)


@hostile(2, "whole")
@_after("steps=4")
def a_manifest_that_names_files_elsewhere(out):
    for path in (out / "checkpoints" / "manifests").iterdir():
        body = json.loads(path.read_text())["body"]
        body["files"]["../../victim"] = "0" * 64
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        path.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": body}))


@hostile(2, "rows is a link")
@_after("steps=4")
def rows_that_are_a_link(out):
    shutil.move(out / "checkpoints" / "rows", out.parent / "rows")
    (out / "checkpoints" / "rows").symlink_to(out.parent / "rows")


@hostile(0, "report")
@_after("steps=4")
def a_lost_list_of_images(out):
    for path in out.rglob("images.index"):
        path.unlink()


@hostile(0, "report")
@_after("steps=4")
def a_broken_list_of_images(out):
    for path in out.rglob("images.index"):
        path.write_bytes(b"\xff" * 10)


@hostile(0, "stays")
@_after("steps=4", "--fresh")
def somebodys_files_in_every_room(out):
    for name in ("", "checkpoints", "checkpoints/rows", "checkpoints/manifests"):
        (out / name / "mine").write_text("mine")


@hostile(2, "exports is a link")
@_after("job=export")
def exports_that_are_a_link(out):
    (out / "exports").symlink_to(out.parent)


@hostile(2, "linear is a link")
@_after("job=linear", "data.labels=folders")
def kept_features_that_are_a_link(out):
    (out / "linear").symlink_to(out.parent)


@hostile(2, "linear.json is a directory")
@_after("job=linear")
def figures_of_a_probe_that_are_a_directory(out):
    (out / "linear.json").mkdir()


@hostile(2, "store.png")
@_after("job=store")
def a_picture_that_is_a_link(out):
    (out / "store.png").symlink_to(out.parent / "config.json")


@hostile(2, "is no file of weights that torch or safetensors wrote")
@_after("job=knn")
def a_backbone_of_bytes(out):
    (out / "backbone.safetensors").write_bytes(bytes(1000))


def _after_a_tampered_manifest(name: str, change: Callable[[dict], object]) -> None:
    """A start after a run whose manifest says something odd, with its checksum made right again."""

    def trap(out: Path) -> None:
        for path in (out / "checkpoints" / "manifests").iterdir():
            body = json.loads(path.read_text())["body"]
            change(body)
            text = json.dumps(body, sort_keys=True, separators=(",", ":"))
            path.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": body}))

    trap.__name__ = name
    hostile(1, "its manifest ")(_after("steps=4")(trap))


_after_a_tampered_manifest(
    "a_manifest_with_a_list_of_nothing", lambda body: body.update(unreadable=[["x", 1], [{}, 2]])
)
_after_a_tampered_manifest("a_manifest_with_totals_in_words", lambda body: body["totals"].update(images="many"))
_after_a_tampered_manifest("a_manifest_without_a_config", lambda body: body.pop("config"))
_after_a_tampered_manifest("a_manifest_without_images", lambda body: body.pop("segments"))
_after_a_tampered_manifest("a_manifest_with_kernels_in_lists", lambda body: body["kernels"].update(sampled_softmax=[1]))


@hostile(2, "summary.json is a directory")
@_after("steps=4")
def a_summary_that_is_a_directory(out):
    (out / "summary.json").unlink()
    (out / "summary.json").mkdir()


@hostile(0, "exported step 2")
@_after("job=export")
def a_fifo_in_the_place_of_the_list_of_unreadable_images(out):
    os.mkfifo(out / "unreadable.jsonl")
