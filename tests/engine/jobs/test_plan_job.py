"""job=plan prints and writes nothing; what a run plans is what it holds; what a user asks is answered or refused."""

import json
import re

import pytest

from engine.planning import components as names
from tests.conftest import TINY
from tests.engine.given_configs import TO_PLAN


@pytest.fixture(autouse=True)
def _as_large_at_every_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process grows from one start to the next, and may be larger than the limits here; what fits would be another size each time."""
    monkeypatch.setattr("engine.planning.resident.resident_bytes", lambda: 500 * 2**20)


def test_the_plan_is_printed_and_nothing_is_written(run, capsys) -> None:
    assert run("job=plan", "plan.step_seconds=0.5", config=TO_PLAN) == 0
    text = capsys.readouterr().out
    assert names.ACTIVE_ROWS in text and re.search(r"500\.0 MiB +libraries \(measured\)", text) and "MiB/s" in text
    assert not run.output.exists()


def test_a_trillion_images_are_planned(run, capsys) -> None:
    sizes = ["schedule.window=null", "schedule.stride=null", "schedule.block=null", "method.active=null"]
    assert run("job=plan", "data.limit=1000000000000", *sizes, config=TO_PLAN) == 0
    assert "1,000,000,000,000 images" in capsys.readouterr().out


def test_rows_and_disk_of_a_run_are_as_planned(run) -> None:
    assert run("log_every=1", "checkpoint.every_steps=50", config=TO_PLAN) == 0
    plan = json.loads((run.output / "plan.json").read_text())
    disk = sum(path.stat().st_size for path in (run.output / "checkpoints").rglob("*") if path.is_file())
    planned = sum(plan["disk"].values())
    assert disk < planned < 1.6 * disk  # planned for the moment before the last checkpoint replaces the oldest
    lines = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
    assert max(line["bytes"]["device"] for line in lines) == sum(plan["device"].values())
    assert 0.75 < max(line["bytes"]["host"] for line in lines) / sum(plan["host"].values()) < 1.1


def test_the_sizes_that_fit_are_told_with_the_keys_that_give_them(run, capsys) -> None:
    limits = ["plan.fit.device_gib=0.001", "plan.fit.host_gib=4", "plan.fit.disk_gib=0.05"]
    assert run("job=plan", *limits, config=TO_PLAN) == 0
    text = capsys.readouterr().out
    together = text[text.index("together:") :]
    keys = re.findall(r"((?:method|schedule)\.\w+=\d+)", together)
    images = re.search(r"data\.limit=(\d+)", together)
    assert len(keys) == 3 and images
    assert run("job=plan", *limits, *keys, f"data.limit={images[1]}", config=TO_PLAN) == 0
    assert "as configured, once all rows were visited: fits" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["K alone:", "W alone:", "N alone:", "together:"])
def test_sizes_that_were_left_to_be_chosen_are_told_with_those_that_fit(run, capsys, line) -> None:
    """Each line's words give a run that fits, though with other sizes others would be chosen."""
    chosen = {"window": None, "stride": None, "block": None, "lanes": None}
    config = {**TO_PLAN, "data": {"source": "synthetic", "limit": 10**6}, "schedule": {"batch": 64, **chosen}}
    config["method"] = {"active": None, "dim": 32}
    limits = ["plan.fit.host_gib=2", "plan.fit.disk_gib=1"]
    assert run("job=plan", *limits, config=config) == 0
    text = capsys.readouterr().out
    answer = text[text.index(line) :].partition("\n")[0]
    words = re.findall(r"((?:method|schedule|data)\.\w+=\d+)", answer)
    assert {"schedule.window", "schedule.stride", "schedule.block", "schedule.lanes", "method.active"} <= {
        word.partition("=")[0] for word in words
    }
    assert run("job=plan", *limits, *words, config=config) == 0
    text = capsys.readouterr().out
    assert "as configured, once all rows were visited: fits" in text and "sizes that were chosen" not in text


def test_a_method_without_rows_is_told_what_fits(run, capsys) -> None:
    config = {**TINY, "schedule": {"batch": 64}, "method": {"kind": "simclr", "dim": 16}}
    config["optimizer"] = {"lr": 0.03, "warmup_epochs": 0.5}
    config["data"] = {**TINY["data"], "augment": {"kind": "grey", "views": 2}}
    assert run("job=plan", "plan.fit.host_gib=8", config=config) == 0
    text = capsys.readouterr().out
    assert "together:" in text and "method.active" not in text and "K alone" not in text


def test_what_cannot_fit_is_refused_with_what_would(run, capsys) -> None:
    assert run("job=plan", "plan.fit.host_gib=0.01", config=TO_PLAN) == 2
    error = capsys.readouterr().err
    assert "libraries of 1 ranks" in error
    enough = re.search(r"plan\.fit\.host_gib=[\d.]+", error)
    assert enough
    assert run("job=plan", enough[0], config=TO_PLAN) == 0


@pytest.mark.parametrize("words", [["plan.ranks=3"], ["plan.ranks=4", "plan.machines=3"]])
def test_ranks_that_cannot_run_the_config_are_refused(run, capsys, words) -> None:
    assert run("job=plan", *words, config=TO_PLAN) == 2
    assert "does not divide" in capsys.readouterr().err


def test_ranks_share_rows_and_machines_share_ranks(run, capsys) -> None:
    assert run("job=plan", "plan.ranks=4", "plan.machines=2", config=TO_PLAN) == 0
    text = capsys.readouterr().out
    assert "host of a machine with 2 ranks" in text and "device of each rank" in text
