"""A rank ends when the launcher above it is gone, and does not care about shells."""

import os
import subprocess
import sys
import time

import psutil

from engine.ranks.launcher import launchers_above
from tests.conftest import REPOSITORY

RANK = """
import os, sys, time
from engine.ranks.launcher import stop_with_launcher
print(os.getpid(), *stop_with_launcher(lambda: os._exit(7), poll_seconds=0.05), flush=True)
time.sleep(60)
"""
# A process that starts the next one and waits for it: words[0] is the file that stands for a launcher's name.
STARTER = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"


def started(tmp_path, *names):
    """A rank below processes of these names; returns (the outermost, the rank's number, the launchers that it found)."""
    words = [sys.executable, "-c", RANK]
    for name in reversed(names):
        script = tmp_path / name
        script.write_text(STARTER)
        words = [sys.executable, str(script), *words]
    outer = subprocess.Popen(
        words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."}
    )
    with outer.stdout as said:
        rank, *above = (int(word) for word in said.readline().split())
    return outer, rank, above


def ended(process, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_rank_ends_with_the_command_that_started_its_launcher(tmp_path):
    outer, rank, above = started(tmp_path, "deepspeed", "deepspeed.launcher.launch")
    assert above == [psutil.Process(rank).ppid(), outer.pid]
    outer.kill()
    outer.wait()
    assert ended(rank)


def test_a_rank_outlives_the_shell_of_its_launcher(tmp_path):
    outer, rank, above = started(tmp_path, "shell", "torchrun")
    assert above == [psutil.Process(rank).ppid()] and above != [outer.pid]
    outer.kill()
    outer.wait()
    assert not ended(rank, 0.5)
    psutil.Process(above[0]).kill()
    assert ended(rank)


def test_plain_python_has_no_launcher(tmp_path):
    outer, rank, above = started(tmp_path, "shell")
    assert above == []
    outer.kill()
    outer.wait()
    assert not ended(rank, 0.3)
    os.kill(rank, 9)


def test_no_such_process_is_no_launcher():
    assert launchers_above(2**22 + 1) == []
