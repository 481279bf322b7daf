"""The examples of CONTRIBUTING are what they say: whole files that work as they stand."""

import argparse
import json
import re
import sys
import types

import pytest

from configs import schema
from configs.methods import REGISTRY
from tests.conftest import REPOSITORY, TINY


def example(path):
    """The example that begins with `# path`, as a module."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    (code,) = [
        code for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if code.startswith(f"# {path}")
    ]
    module = types.ModuleType(path.partition(".")[0].replace("/", "."))
    exec(compile(code, path, "exec"), module.__dict__)
    return module


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**TINY, "output": str(tmp_path / "run")}))
    return schema.load(str(path), [])


def test_the_method_trains_and_collapses_as_it_says(run, monkeypatch):
    method, settings = example("engine/methods/alignment.py"), example("configs/methods.py").AlignmentSettings
    monkeypatch.setitem(sys.modules, "engine.methods.alignment", method)
    monkeypatch.setitem(REGISTRY, "alignment", (settings, "engine.methods.alignment"))
    data = {**TINY["data"], "augment": {"kind": "grey", "views": 2}}
    config = {**TINY, "data": data, "method": {"kind": "alignment", "dim": 16}, "optimizer": {"lr": 0.03}}
    assert run("steps=40", config=config) == 0
    summary = run.summary()
    assert summary["status"] == "finished" and summary["loss"] < 0.2 < summary["chance_loss"]


def test_the_job_counts(config, capsys):
    assert example("engine/jobs/count.py").run(config, argparse.Namespace()) == 0
    assert capsys.readouterr().out == "1,437 images of digits; 46.0 steps a pass\n"


def test_the_evaluator_gets_its_place_in_a_run(run, monkeypatch):
    from engine.jobs import start as starts

    spread, real = example("engine/evaluation/spread.py").Spread, starts.Start.make_run

    def make_run(start):
        made = real(start)
        made.evaluators.append(spread(start.sample, start.ranks))
        return made

    monkeypatch.setattr(starts.Start, "make_run", make_run)
    assert run("steps=4") == 0
    line = run.lines("evaluations.jsonl")[-1]
    assert -0.1 < line["spread"] <= 1 and line["spread"] == run.summary()["spread"]
    assert line["figures"]["knn_top1"] == run.summary()["knn_top1"]
