"""job=scale through launch.py: what is refused before the first cell, and a small sweep from its config to its page."""

import csv
import json
import os
import signal
import statistics
import time
from itertools import pairwise

import pytest

import launch
from engine.results.output import Output
from engine.results.output_names import SCALE
from engine.scaling import results
from engine.scaling.cells import cells_of
from engine.scaling.records import Record
from engine.scaling.scale_page import scale_page
from engine.scaling.tree import marked
from tests.engine.given_configs import TO_SCALE
from tests.pooled_start import Running

SWEEP = {
    **TO_SCALE,
    "job": "scale",
    "schedule": {"batch": 64, "window": 320, "stride": 64, "block": 16, "lanes": 4},
    "method": {**TO_SCALE["method"], "active": 128},
}


def grid(*grids: dict) -> str:
    return f"scale.grid={json.dumps(grids)}"


def test_a_small_sweep_leaves_figures_of_every_cell(run, capsys):
    words = ["scale.steps=12", "scale.skip_steps=2", "scale.repeats=1"]
    cells = grid({"data.limit": [1000, 2000]}, {"data.limit": [1000], "peer": ["pic_dense"]})
    assert run(cells, *words, config=SWEEP) == 0
    whole = json.loads((run.output / "scale.json").read_text())
    runs = [cell["runs"] for cell in whole["cells"]]
    assert [[one["status"] for one in each] for each in runs] == [["ended"]] * 3, runs
    with open(run.output / "scale.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    for row in rows:
        lines = run.lines(f"cells/b0-c{row['cell']}/metrics.jsonl")
        assert [line["step"] for line in lines] == list(range(1, 13))  # every step has a line
        seconds = [after["elapsed_seconds"] - before["elapsed_seconds"] for before, after in pairwise(lines[1:])]
        assert float(row["step_seconds"]) == pytest.approx(statistics.median(seconds))
        assert 0 < float(row["first_step_seconds"]) <= float(row["seconds"])
        # A peer has no store. Whether a block was written before the last line is up to the thread that writes.
        assert (row["rows_on_disk"] != "") == (row["peer"] == "")
        assert int(row["tree_peak_bytes"]) > 50 * 2**20 and float(row["pss_bytes"]) > 0
    assert not list(run.output.glob("cells/*/checkpoints/[!l]*")), "the checkpoints of a cell go"
    assert whole["config"]["scale"]["steps"] == 12 and whole["versions"]["torch"] and whole["hardware"]["cores"]
    assert [bar["claim"] for bar in whole["bars"]] and {one["axis"] for one in whole["growth"]} == {"data.limit"}
    page = (run.output / "scale.html").read_text()
    assert "peer=pic_dense" in page and "Along data.limit" in page and "What the store took" in page
    assert "all cells have ended" in capsys.readouterr().out
    # The same command has nothing to do, and another sweep may not take its place.
    assert run(cells, *words, config=SWEEP) == 0
    assert "going on: 3 cells have ended before" in capsys.readouterr().out
    assert run(cells, *words, "optimizer.lr=0.5", config=SWEEP) == 2
    assert "holds a sweep with optimizer.lr = 0.03, now it is 0.5" in capsys.readouterr().err


def test_a_sweep_that_gets_sigterm_ends_its_cell_and_leaves_its_pages(tmp_path):
    path, output = tmp_path / "config.json", tmp_path / "sweep"
    path.write_text(json.dumps(SWEEP))
    words = [f"output={output}", "epochs=100000", grid({"data.limit": [1000, 2000]})]
    with Running(["--config", str(path), *words], tmp_path) as running:
        while not list(output.glob("cells/*/metrics.jsonl")):
            assert running.is_at_work, running.err
            time.sleep(0.05)
        os.kill(running.pids[0], signal.SIGTERM)
        start = running.wait()
    assert start.code == 0 and "stopped; the same command goes on" in start.out, start.err
    assert marked(str(output)) == []
    assert json.loads((output / "scale.json").read_text())["cells"][0]["runs"] == []
    assert "not run yet" in (output / "scale.html").read_text()


def test_a_dead_cell_is_on_the_page_with_why():
    cells = cells_of([{"data.limit": [10, 100]}])
    records = [
        Record(
            0,
            {"data.limit": 10},
            0,
            0,
            "ended",
            "exit code 0",
            "",
            {"step_seconds": 1.0, "step_seconds_mean": 1.0, "seconds": 2.0}
            | {"step_seconds_q1": 0.9, "step_seconds_q3": 1.1},
        ),
        Record(
            1,
            {"data.limit": 100},
            0,
            1,
            "killed for memory",
            "its processes took more than 1.00 GiB",
            "Bad <things>",
            {"seconds": 3.0},
        ),
    ]
    about = {
        "hardware": {"processor": "p", "cores": 2, "memory_bytes": 2**34, "devices": []},
        "versions": {"torch": "2"},
        "limits": {"cell_seconds": 5.0, "cell_bytes": 2**30, "memory_limit": "watched"},
        "config": {"output": "runs/x"},
    }
    whole, grown, bars = results.results(cells, records, about)
    page = scale_page(whole, cells, records, grown, bars)
    assert "its processes took more than 1.00 GiB" in page and "killed for memory" in page
    assert "Bad &lt;things&gt;" in page and "<things>" not in page
    assert bars == [] and grown == []


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"data.instances": [1000, 2000]}, "scale.grid, cell data.instances=1000: unknown key data.instances"),
        ({"data.limit": [1000, 1e3]}, "cell data.limit=1000.0: data.limit is 1000.0"),
        ({"data.limit": [1000, 100]}, "cell data.limit=100: schedule"),
        ({"method.active": [128, 126]}, "cell method.active=126: "),
        ({"ranks": [1, 3]}, "ranks (3) does not divide schedule.lanes (4)"),
        ({"peer": ["pic_sparse"]}, "scale.grid, cell peer=pic_sparse: scale.peer is"),
        ({"peer": ["pic_dense"], "ranks": [2]}, "a peer trains on one rank"),
        ({"peer": ["pic_dense"], "backbone.name": ["resnet18"]}, 'set it to "given"'),
        ({"job": ["knn"]}, "scale.grid has the key job"),
        ({"seed": []}, "scale.grid"),
    ],
)
def test_a_wrong_cell_is_refused_by_its_name_before_the_first_one_runs(run, capsys, cells, message):
    assert run(grid({"seed": [5]}, cells), config=SWEEP) == 2
    assert message in capsys.readouterr().err
    assert not run.output.exists()


def test_a_sweep_without_cells_and_a_limit_above_the_machine_are_refused(run, capsys):
    assert run(config=SWEEP) == 2
    assert "job=scale has no cells; set scale.grid" in capsys.readouterr().err
    assert run(grid({"seed": [1]}), "scale.cell_gib=1000000", config=SWEEP) == 2
    assert "scale.cell_gib is 1e+06, and the machine has" in capsys.readouterr().err
    assert not run.output.exists()


def test_the_output_of_a_run_is_not_taken_for_that_of_a_sweep(run, capsys):
    assert run("steps=2", "job=pretrain", config=SWEEP) == 0
    assert run(grid({"seed": [1]}), config=SWEEP) == 2
    assert 'holds a sweep with job = "pretrain", now it is "scale"' in capsys.readouterr().err
    (run.output / "config.json").unlink()  # a run goes on without it
    assert run(grid({"seed": [1]}), config=SWEEP) == 2
    assert "holds the checkpoints of a run; set output to" in capsys.readouterr().err
    assert not (run.output / "config.json").exists()


@pytest.mark.parametrize("lost", ["nothing", "config.json", "cells.jsonl"])
@pytest.mark.parametrize("job", ["pretrain", "profile", "peer"])
def test_the_output_of_a_sweep_is_not_taken_for_that_of_a_run(run, capsys, job, lost):
    own = Output(run.output, SCALE)
    own.make()
    own.write_json("config.json", {"job": "scale"})
    own.write_text("cells.jsonl", "{}\n")
    (run.output / lost).unlink(missing_ok=True)
    before = {path: path.read_bytes() for path in run.output.iterdir()}
    for flags in ((), ("--dry-run",), ("--fresh",)):
        flags = flags if job == "pretrain" else ()
        assert run(f"job={job}", "scale.peer=pic_dense", config=SWEEP, flags=flags) == 2
        assert f"{run.output} holds a sweep (job=scale); set output to" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.output.iterdir()} == before


def test_a_dry_run_lists_the_cells(run, capsys):
    assert run(grid({"data.limit": [1000, 2000], "seed": [1]}), config=SWEEP, flags=("--dry-run",)) == 0
    out = capsys.readouterr().out
    assert "2 cells, 3 blocks" in out and "data.limit=2000 seed=1" in out
    assert not run.output.exists()


def test_the_config_that_ships_has_the_same_sizes_in_all_cells_along_n(capsys):
    assert launch.main(["--config", "configs/scale_1b.json", "--dry-run"]) == 0
    assert "data.limit=1000000000 method.active=65536" in capsys.readouterr().out
