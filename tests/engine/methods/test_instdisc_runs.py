"""InstDisc through launch.py: it learns, goes on to the bit, survives what PIC survives, is planned as it is, and refuses the rest."""

import json
import os
import re
import signal

import numpy as np
import pytest
import torch

from configs import schema
from engine.jobs.chosen_sizes import sized
from engine.planning import components as names
from engine.rows.snapshots import RowReader
from tests.conftest import GIVEN, REPOSITORY, TINY
from tests.engine.methods.poisoned import poisoned_steps
from tests.ranked_runs import Runs

SETTINGS = {"kind": "instdisc", "active": 128, "dim": 16, "temperature": 0.1}
CONFIG = {**TINY, "epochs": 3, "method": SETTINGS, "optimizer": {"lr": 0.03, "warmup_epochs": 0.5}}
ALL_GIVEN = {**GIVEN, "method": SETTINGS, "optimizer": {}, "log_every": 4}


def test_the_bank_finds_features_of_its_images_and_the_run_says_what_it_does(run, capsys):
    assert run("epochs=8", config=ALL_GIVEN) == 0
    out, summary, lines = capsys.readouterr().out, run.summary(), run.lines()
    assert (summary["status"], summary["method"], summary["active"]) == ("finished", "instdisc", 128)
    assert summary["loss"] < 0.7 * summary["chance_loss"] and summary["visited"] == 2000
    assert lines[-1]["active"] == 128 and lines[-1]["readmitted"] > 1000
    assert set(lines[-1]["backends"]) == {"sampled_softmax"}
    assert "sampled_softmax runs on" in out and "row_update" not in out and "catch_up" not in out
    assert "the gradient of rows is none: the loss does not move them" in out


def test_a_network_is_trained_evaluated_and_reported(run):
    assert run("steps=12", config=CONFIG) == 0
    summary, plan = run.summary(), json.loads((run.output / "plan.json").read_text())
    assert np.isfinite(summary["loss"]) and 0 < summary["knn_top1"] < 1
    assert "active rows" in (run.output / "report.html").read_text()
    planned = {item for items in plan.values() for item in items}
    assert names.ACTIVE_ROWS in planned and not {names.ROWS_MOMENTUM, names.ROWS_GRADIENT} & planned


def test_rows_and_disk_are_planned_without_momentum_and_are_what_a_run_holds(run, capsys):
    config = {**ALL_GIVEN, "epochs": 1, "data": {"source": "synthetic", "limit": 20_000}, "log_every": 1}
    config |= {"schedule": {"batch": 64, "window": 2048, "stride": 512, "block": 64, "lanes": 4}}
    config |= {"method": {**SETTINGS, "active": 512, "dim": 32}}
    assert run("checkpoint.every_steps=50", config=config) == 0
    plan = json.loads((run.output / "plan.json").read_text())
    disk = sum(path.stat().st_size for path in (run.output / "checkpoints").rglob("*") if path.is_file())
    assert disk < sum(plan["disk"].values()) < 1.6 * disk
    lines = run.lines()
    assert plan["device"] == {names.ACTIVE_ROWS: 512 * 32 * 4}
    assert max(line["bytes"]["device"] for line in lines) == 512 * 32 * 4
    assert 0.75 < max(line["bytes"]["host"] for line in lines) / sum(plan["host"].values()) < 1.1
    assert run("job=store", config=config) == 0
    assert "momentum" not in capsys.readouterr().out.split("rows on the disk")[1].split("its own files")[0]


def test_a_run_in_three_pieces_ends_where_the_whole_run_ends_to_the_bit(run, tmp_path, capsys):
    whole = tmp_path / "whole"
    assert run(f"output={whole}", "epochs=2", config=CONFIG) == 0
    for words in (["steps=17"], ["steps=33"], []):
        assert run(*words, "epochs=2", config=CONFIG) == 0
    summaries = [run.summary(), json.loads((whole / "summary.json").read_text())]
    for key in ("digest", "loss", "steps", "visited", "readmitted"):
        assert summaries[0][key] == summaries[1][key], key
    assert run("job=store", "store.verb=verify", "epochs=2", config=CONFIG) == 0
    capsys.readouterr()
    assert run("job=store", "store.verb=digest", "epochs=2", config=CONFIG) == 0
    assert f"is {summaries[1]['digest']}\nsummary.json has the same" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["store.kind=memory"], ["checkpoint.every_steps=3"], ["store.read_ahead=2"]])
def test_where_vectors_wait_and_how_often_they_are_saved_changes_no_bit(run, tmp_path, words):
    config = {**ALL_GIVEN, "steps": 60}
    assert run(f"output={tmp_path / 'other'}", *words, config=config) == 0
    assert run(config=config) == 0
    assert run.summary()["digest"] == json.loads((tmp_path / "other" / "summary.json").read_text())["digest"]


def bank_of(method, instances):
    return np.concatenate([bank for _, bank in RowReader(method.rows).caught_up_blocks(instances)])


def test_a_step_that_is_skipped_or_of_which_nothing_is_read_leaves_the_whole_bank_as_it_was(run, monkeypatch):
    kept = poisoned_steps(monkeypatch, lambda method: bank_of(method, method.schedule.instances))
    assert run("steps=20", config=ALL_GIVEN) == 0
    assert run.summary()["skipped_steps"] == 2 and np.isfinite(run.summary()["loss"])
    assert len(kept) == 2
    for before, after in kept:
        assert len(before) == 2000 and np.array_equal(before, after)


def test_the_export_has_the_bank_whose_visited_vectors_have_length_one(run):
    assert run("steps=12", config=ALL_GIVEN) == 0
    assert run("job=store", "store.verb=export", config=ALL_GIVEN) == 0
    lengths = np.linalg.norm(np.load(run.output / "exports" / "rows-12.npy"), axis=1)
    assert (np.abs(lengths - 1) < 1e-6).sum() == run.summary()["visited"]
    assert 0.9 < lengths.mean() < 1.1 and lengths.std() > 0.05  # one that was never visited is what it started as


def test_two_ranks_take_the_steps_of_one_and_go_on_to_the_bit_after_a_kill(tmp_path, run):
    config = {**ALL_GIVEN, "steps": 40}
    assert run(config=config) == 0
    losses = {line["step"]: line["loss"] for line in run.lines()}
    del config["output"]  # each has its own
    quick = {**config, "ranks": {"timeout_seconds": 20}, "checkpoint": {"every_steps": 5, "keep": 2}}
    two, killed = Runs(tmp_path / "two", **config), Runs(tmp_path / "killed", **quick)
    code, out = two(2)
    assert code == 0, out
    np.testing.assert_allclose(list(two.losses().values()), list(losses.values()), rtol=1e-5)
    with killed.running(2, "steps=1000", "epochs=40") as running:
        killed.wait_for(12, lambda: not running.is_at_work)
        os.kill(running.pids[1], signal.SIGKILL)
        ended = running.wait()
    assert ended.code != 0 and "rank 1" in ended.err and "was lost after step" in ended.err, ended.err
    done = max(killed.losses()) + 40
    whole = Runs(tmp_path / "whole", **quick)
    for runs in (killed, whole):
        code, out = runs(2, f"steps={done}", "epochs=40")
        assert code == 0, out
    assert killed.summary()["digest"] == whole.summary()["digest"]
    assert killed.summary()["visited"] == whole.summary()["visited"]


def test_micro_batches_train_the_same_bank(run, tmp_path):
    config = {**ALL_GIVEN, "steps": 30}
    assert run(config=config) == 0
    assert run("schedule.micro_batches=2", f"output={tmp_path / 'other'}", config=config) == 0
    other = [json.loads(line)["loss"] for line in (tmp_path / "other" / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(other, [line["loss"] for line in run.lines()], rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ['data.augment={"kind":"grey","views":2}'],
            "takes one view of each image, and data.augment makes 2; set data.aug",
        ),
        (
            ["optimizer.rows_lr_scale=2.0"],
            "optimizer.rows_lr_scale is 2.0, but method instdisc has rows that no optimizer",
        ),
        (
            ["optimizer.rows_weight_decay=0.0"],
            "optimizer.rows_weight_decay is 0.0, but method instdisc has rows that no",
        ),
        (
            ["optimizer.rows_clip=1.0"],
            "optimizer.rows_clip is 1.0, but method instdisc has rows that no optimizer moves",
        ),
        (
            ["store.fold=true"],
            "store.fold is true, but method instdisc has rows that no optimizer moves; leave store.fold",
        ),
        (["method.init=feature", "schedule.micro_batches=2"], "set schedule.micro_batches to 1"),
        (["method.norm_floor=0.1"], "unknown key method.norm_floor; the nearest known one is"),
        (["method.sharding=zero3"], "unknown key method.sharding; the nearest known one is"),
        (["method.bank_momentum=1.5"], "method.bank_momentum is 1.5"),
        (["job=peer", "scale.peer=pic_dense"], "a peer trains rows by SGD, and method.kind is instdisc; set it to pic"),
    ],
)
def test_what_it_cannot_take_is_refused(run, capsys, words, said):
    assert run(*words, config={**ALL_GIVEN, "steps": 3}) == 2
    assert said in capsys.readouterr().err
    assert not run.output.exists()


def test_the_published_command_has_the_published_settings():
    words = ["output=runs/x", "data.root=x", 'method={"kind":"instdisc"}', 'data.augment={"kind":"instdisc"}']
    assert all(f"'{word}'" in (REPOSITORY / "configs" / "README.md").read_text() for word in words[2:])
    config = sized(schema.load(str(REPOSITORY / "configs" / "imagenet_resnet50.json"), words), 1_281_167)
    method = config.method
    assert (method.temperature, method.bank_momentum, method.dim, method.active) == (0.07, 0.5, 128, 65_536)
    assert (config.data.sides, config.data.augment.crops[0].scale) == ((224,), (0.2, 1.0))
    assert (config.optimizer.lr, config.schedule.batch, config.optimizer.warmup_epochs) == (0.03, 256, 200 / 40)


def test_a_disk_has_room_for_about_twice_as_many_images_as_with_rows_that_are_trained(run, capsys):
    words = ["job=plan", "plan.fit.disk_gib=0.05", "method.dim=128"]
    found = []
    for config in (ALL_GIVEN, {**GIVEN, "optimizer": {}}):
        assert run(*words, config=config) == 0
        found.append(int(re.search(r"N alone: .*data\.limit=(\d+)", capsys.readouterr().out)[1]))
    # 520 bytes a row instead of 1,032; beside the rows there are files of checkpoints, which are smaller too.
    assert 1.9 < found[0] / found[1] < 2.2


def test_pic_does_not_go_on_with_a_bank(run, capsys):
    assert run("steps=4", config=ALL_GIVEN) == 0
    assert run("steps=8", config={**GIVEN, "log_every": 4}) == 2
    assert 'holds a run with method.kind = "instdisc", now it is "pic"' in capsys.readouterr().err


def test_vectors_that_are_rounded_on_the_disk_are_planned_and_stored_at_half_their_bytes(run):
    config = {**ALL_GIVEN, "steps": 60}
    assert run("store.dtype=bfloat16", config=config) == 0
    chunks = [path.stat().st_size for path in (run.output / "checkpoints" / "rows").rglob("weight/c.*")]
    block = config["schedule"]["block"]
    # Those that left, and what checkpoints wrote exactly.
    assert {block * 16 * 2 + 4, block * 16 * 4 + 4} == set(chunks)


def test_the_run_of_a_network_in_bfloat16_keeps_the_bank_in_float32(run):
    words = ["deepspeed.torch_autocast.enabled=true", 'deepspeed.torch_autocast.dtype="bfloat16"']
    assert run("steps=6", *words, config=CONFIG) == 0
    assert np.isfinite(run.summary()["loss"])
    assert run("job=store", "store.verb=export", *words, config=CONFIG) == 0
    bank = torch.from_numpy(np.load(run.output / "exports" / "rows-6.npy"))
    assert not torch.equal(bank, bank.bfloat16().float())
