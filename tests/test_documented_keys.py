"""Every key of what a run writes for programs is explained in engine/RUNS.md."""

import json
import re

from tests.conftest import REPOSITORY, folder_config


def explained():
    """Names that stand in backticks."""
    return set(re.findall(r"`([A-Za-z_0-9]+)`", (REPOSITORY / "engine" / "RUNS.md").read_text()))


def keys(content, path=()):
    """Of an object; the names of classes, sets, stages and versions are no keys."""
    inside = ("loader", "prefetch_waits", "bytes", "left_out", "heads", "features")
    if isinstance(content, list):
        return {key for one in content for key in keys(one, path)}
    if not isinstance(content, dict):
        return set()
    below = {key for name in inside for key in keys(content.get(name), (*path, name))}
    return content.keys() | below


def test_every_key_of_what_is_written_is_explained(run, photos):
    (photos / "cats" / "01.jpg").write_bytes(b"<html>")
    config = folder_config(photos, labels="folders")
    config["evaluate"] = {**config.get("evaluate", {}), "online_probe": True, "views": 8, "more_k": [2]}
    assert run("epochs=2", "log_every=4", config=config) == 0
    written = keys(run.lines("metrics.jsonl")) | keys(run.lines("evaluations.jsonl")) | keys(run.summary())
    assert run("job=knn", config=config) == 0
    assert run("job=linear", "linear.least_images=2", "linear.epochs=1", "linear.few=[2]", config=config) == 0
    for name in ("knn.json", "linear.json"):
        written |= keys(json.loads((run.output / name).read_text()))
    assert len(written) > 80 and "left_out" in written and "probe_top1" in written
    unknown = {key.removeprefix("head_") for key in written} - explained()
    assert not unknown, sorted(unknown)
