"""A run for which there is too little memory is refused at its start, with changes that would fit."""

import re

import pytest

from engine.jobs import room
from engine.planning.fit import GIB
from engine.profiling.limits import HostLimit
from tests.engine.given_configs import TO_PLAN

MANY_ROWS = ["method.active=2048", "method.dim=8192", "steps=1"]  # 128 MiB of rows and momentum


def limit_host(monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> None:
    monkeypatch.setattr(room, "host_limit", lambda: HostLimit(size_bytes, "the limit of the control group jobs"))


def test_it_is_refused_with_changes_of_which_the_first_fits(run, capsys, monkeypatch) -> None:
    limit_host(monkeypatch, 1)
    assert run(*MANY_ROWS, config=TO_PLAN) == 2
    text = capsys.readouterr().err
    need = float(re.search(r"would take ([\d.]+) GiB of host memory, and there are 0.00 GiB \(the limit", text)[1])
    assert "plan.refuse=false" in text and "job=plan" in text and not (run.output / "checkpoints").exists()

    limit_host(monkeypatch, int((need - 0.08) * GIB))
    assert run(*MANY_ROWS, config=TO_PLAN) == 2
    words = re.search(r"\n  (\S.*?)    saves 0\.\d\d GiB; half of the negatives", capsys.readouterr().err)
    assert words
    assert run(*MANY_ROWS, *words[1].split(), config=TO_PLAN) == 0


def test_it_may_be_tried_all_the_same(run, capsys, monkeypatch) -> None:
    limit_host(monkeypatch, 1)
    assert run("steps=2", "plan.refuse=false", config=TO_PLAN) == 0
    assert "is tried all the same" in capsys.readouterr().out


def test_a_run_that_goes_on_is_warned_and_not_refused(run, capsys, monkeypatch) -> None:
    assert run("steps=2", config=TO_PLAN) == 0
    limit_host(monkeypatch, 1)
    assert run("steps=4", config=TO_PLAN) == 0
    assert "is tried all the same" in capsys.readouterr().out


def test_a_profile_looks_at_what_does_not_fit(run, monkeypatch) -> None:
    limit_host(monkeypatch, 1)
    assert run("job=profile", "profile.steps=20", config=TO_PLAN) == 0
