"""Whatever a start meets, it ends in words: no traceback, no wait without end, an exit code that tells whose fault it was."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.hostile import CASES, lay
from tests.pooled_start import pooled_start


@pytest.fixture(autouse=True)
def nothing_deep_is_left(tmp_path):
    """pytest removes old directories by functions that call themselves at every level; rm does not."""
    yield
    subprocess.run(["rm", "-rf", str(tmp_path / "photos")], check=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_start_ends_in_words(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)  # traps are laid from here, and it is set back
    lay(tmp_path)
    words = case.prepare(tmp_path) or []
    start = pooled_start(
        ["--config", str(tmp_path / "config.json"), *words],
        tmp_path,
        env={name: value.format(directory=tmp_path) for name, value in case.env.items()},
        limits=case.limits,
        fault=case.fault,
        encoding=case.encoding,
        drawings=False,
    )
    said = f"{start.out}\n{start.err}"
    assert start.code == case.code, said
    assert "Traceback" not in said, said
    assert case.expect in said, said
    if case.code:
        assert 1 <= len(start.message.splitlines()) <= 3 or "stopped: " in start.out, said
    assert "\x1b" not in said and "\u202e" not in said


def test_an_interpreter_of_its_own_imports_everything_without_a_home_and_a_temporary_directory(tmp_path):
    """The forked starts find everything imported."""
    lay(tmp_path)
    nowhere = {"TMPDIR": "/dev/null/nowhere", "HOME": "/dev/null/nowhere", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "launch.py", "--config", str(tmp_path / "config.json")]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **nowhere}, capture_output=True, text=True, timeout=230
    )
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0 and "report" in done.stdout, said
    assert "Traceback" not in said, said


def test_there_are_some_hundred_of_them():
    assert len(CASES) >= 95
    assert len({case.name for case in CASES}) == len(CASES)
