"""Jobs that are killed, and the lock that they leave; `python -m tests.kill_runs --kills 200` kills in earnest."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from engine.disk.lock import Lock
from tests.conftest import REPOSITORY


def test_a_run_that_is_killed_again_and_again_ends_with_the_digest_of_one_that_never_was():
    # A process of its own, since a fork must not have threads beside it.
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill_runs", "--kills", "20", "--seed", "1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {what: int(count) for what, count in re.findall(r"^([a-z -]+): (\d+)$", done.stdout, re.MULTILINE)}
    assert counts["kills"] == 20 and counts["ends"] >= 1
    assert counts["recoveries"] >= 5


HOLDER = """
import sys
from pathlib import Path
from engine.disk.lock import Lock
try:
    lock = Lock(Path(sys.argv[1]))
except ValueError as error:
    print(error)
    sys.exit(2)
{fork}
print("locked", flush=True)
print("told:", sys.stdin.readline().strip(), flush=True)
lock.release()
"""


def holder(directory, fork=""):
    """Another process that tries to take the lock, and waits for a word if it has it."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(fork=fork), str(directory)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_second_job_is_refused_in_a_line_and_the_first_goes_on(tmp_path):
    with holder(tmp_path) as first:
        assert first.stdout.readline() == "locked\n"
        for _ in range(2):
            with pytest.raises(ValueError, match="is in use by") as refused:
                Lock(tmp_path)
            line = str(refused.value)
            assert "\n" not in line and str(tmp_path) in line
            assert f"process {first.pid} on {socket.gethostname()} since 20" in line
        out, _ = first.communicate("go on\n")
        assert out == "told: go on\n" and first.returncode == 0
    lock = Lock(tmp_path)
    assert lock.left_by is None
    lock.release()


@pytest.mark.parametrize("worker", [False, True], ids=["alone", "with a worker that lives on"])
def test_the_lock_of_a_killed_job_is_taken_over_and_named(tmp_path, worker):
    fork = "import os, time\nworker = os.fork()\nif worker == 0:\n    time.sleep(100)\nprint(worker, flush=True)\n"
    with holder(tmp_path, fork if worker else "") as killed:
        forked = int(killed.stdout.readline()) if worker else None
        assert killed.stdout.readline() == "locked\n"
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        try:
            lock = Lock(tmp_path)
            assert lock.left_by.startswith(f"process {killed.pid} on {socket.gethostname()} since 20")
            lock.release()
        finally:
            if forked:
                os.kill(forked, signal.SIGKILL)  # it was alive until now, else there would be none to kill


def test_a_second_job_of_the_same_process_is_refused_and_the_lock_holds(tmp_path):
    lock = Lock(tmp_path)
    with pytest.raises(ValueError, match="in use by this very process") as refused:
        Lock(tmp_path)
    assert "\n" not in str(refused.value)
    with holder(tmp_path) as other:
        out, _ = other.communicate("")
        assert other.returncode == 2 and f"process {os.getpid()} on" in out
    lock.release()
    Lock(tmp_path).release()
