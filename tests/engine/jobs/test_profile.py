"""job=profile: the run is as any other, and what it took is told, whatever becomes of it."""

import json
import os
import signal
import time

import pytest

from engine.training import run as run_module
from tests.conftest import GIVEN, TINY
from tests.pooled_start import Running, pooled_start

PROFILE = {**GIVEN, "job": "profile", "log_every": 2, "profile": {"steps": 40, "every_seconds": 0.01}}


def result(run) -> dict:
    return json.loads((run.output / "profile.json").read_text())


def test_a_profile_tells_what_was_planned_and_what_was_counted(run):
    # 4,096 rows of 128 numbers: rows, momentum and window are above the MB below which nothing is compared.
    sizes = {"schedule": {"batch": 64, "window": 8192, "stride": 4096, "block": 64, "lanes": 4}}
    config = {
        **PROFILE,
        **sizes,
        "data": {"source": "synthetic", "limit": 40_000},
        "method": {"active": 4096, "dim": 128, "temperature": 0.2},
    }
    assert run(config=config) == 0
    whole = result(run)
    rows = {row["name"]: row for row in whole["components"]}
    for name in ("active rows: weights", "active rows: momentum", "host window, blocks read ahead and behind"):
        assert rows[name]["ratio"] == pytest.approx(1.0, abs=0.1), name
    assert whole["status"] == "finished" and whole["process"]["peak"] > whole["process"]["libraries"] > 0
    (rank,) = whole["ranks"]
    assert {"softmax", "update", "admit"} <= rank["by_stage"].keys()
    assert max(rank["by_stage"].values()) <= rank["peak_bytes"]
    assert whole["step"]["overhead"] is None  # there is no trunk
    html = (run.output / "profile.html").read_text()
    assert "active rows: momentum" in html and "Memory over time" in html


def test_a_profile_of_a_network_counts_what_a_step_makes_and_the_engine_beside_the_trunk(run):
    config = {**TINY, "job": "profile", "profile": {"steps": 12}, "log_every": 1}
    assert run(config=config) == 0
    whole = result(run)
    assert whole["step"]["overhead"] > 0
    assert whole["step"]["seconds"].keys() >= {"trunk_forward", "trunk_backward", "trunk_update"}
    counts = json.loads((run.output / "profile" / "components-0.json").read_text())
    assert counts["made_bytes"] > 0


def test_a_profile_begins_anew_and_never_removes_a_run(run, capsys):
    assert run(config=PROFILE) == 0
    assert run(config=PROFILE) == 0
    assert result(run)["ranks"][0]["last_step"] == 40
    assert run("job=pretrain", "steps=44", config=PROFILE) == 0
    capsys.readouterr()
    assert run(config=PROFILE) == 2
    assert "holds the checkpoints of a run, and a profile begins anew; set output" in capsys.readouterr().err
    assert json.loads((run.output / "summary.json").read_text())["steps"] == 44


def test_a_run_that_was_killed_has_a_profile(tmp_path):
    output = tmp_path / "run"
    config = {**PROFILE, "output": str(output), "epochs": 10_000, "profile": {"steps": 100_000}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with Running(["--config", str(tmp_path / "config.json")], tmp_path) as running:
        running.wait_for("step 20/")
        os.kill(running.pids[0], signal.SIGKILL)
        running.wait()
    deadline = time.monotonic() + 100
    while not (output / "profile.html").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    whole = json.loads((output / "profile.json").read_text())
    assert whole["status"] == "killed" and whole["ranks"][0]["last_step"] >= 20


def no_memory() -> None:
    """The twentieth step finds no memory."""
    real = run_module.train_step

    def train_step(batch, *arguments, **options):
        if batch.step == 20:
            raise MemoryError("12345 bytes")
        return real(batch, *arguments, **options)

    run_module.train_step = train_step


def test_where_memory_ends_the_run_says_what_is_large_and_what_would_fit(tmp_path):
    output = tmp_path / "run"
    config = {
        **PROFILE,
        "output": str(output),
        "store": {"kind": "memory"},
        "data": {"source": "synthetic", "limit": 200_000},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    start = pooled_start(["--config", str(tmp_path / "config.json")], tmp_path, fault=no_memory)
    assert start.code == 1
    assert "no memory is left" in start.err and "largest parts: store of visited rows (memory)" in start.err
    assert "would fit: store.kind=zarr (rows are written to the disk; saves" in start.err
    whole = json.loads((output / "profile.json").read_text())
    assert whole["status"] == "host memory has ended" and len(whole["advice"]) >= 3


def test_two_ranks_have_one_profile(tmp_path):
    output = tmp_path / "run"
    (tmp_path / "config.json").write_text(json.dumps({**PROFILE, "output": str(output)}))
    with Running(["--config", str(tmp_path / "config.json")], tmp_path, count=2, drawings=False) as running:
        start = running.wait()
    assert start.code == 0, start.err
    whole = json.loads((output / "profile.json").read_text())
    assert [rank["rank"] for rank in whole["ranks"]] == [0, 1]
    assert whole["process"]["least"] <= whole["process"]["peak"]
