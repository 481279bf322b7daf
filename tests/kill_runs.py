"""Runs that are killed, for real: `python -m tests.kill_runs --kills 200`.

A child trains on a directory, with the writer's thread, readers, a checkpoint every few steps and the lock. It is killed with SIGKILL at a
random instant, and the next child goes on with what it left. A child that reaches its end must have the digest of the run that was
never killed; the next one then starts over. At last one is let run to its end.

The instant is uniform over the processor time that a whole run takes, or over a quarter or a sixteenth of it, so that a directory sees
several kills before its run ends and some fall while a child still recovers. A busy machine slows the child and its instant alike. What a
child said was saved, the next one must find.

A child is a fork of a process that has torch loaded and one thread, so a kill costs milliseconds and not the seconds of an import.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: this process must have one thread

import argparse
import contextlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from engine.disk.files import TEMPORARY, DiskFiles
from engine.disk.lock import Lock
from tests.engine.harness import Case
from tests.engine.small_training import Training

EVERY = 8
ENDED_OR_NOT = os.WEXITED | os.WNOHANG | os.WNOWAIT
# 40 blocks, 3 passes, 120 steps: every block is written, read and dropped several times.
CASE = Case(
    size=240, active=32, window=48, stride=24, batch=12, block=6, lanes=2, dim=8, passes=3.0, dtype=np.float32, readers=1
)  # fmt: skip


def child(directory, pipe, case, saves=True):
    """Go on with the run in `directory`; writes a line into the pipe for all that a parent may rely on from then on."""

    def say(*words):
        os.write(pipe, (" ".join(str(word) for word in words) + "\n").encode())

    lock = Lock(directory)
    training = Training(case, DiskFiles(directory / "checkpoints"), threaded=True)
    for complaint in training.complaints:
        say("complaint", complaint)
    say("from", training.first_step)
    before = None
    for what, step in training.train(EVERY if saves else 0):
        if what == "saved":
            if before is not None:  # a save returns when the one before is on the disk
                say("saved", before)
            before = step
    training.checkpoints.finish()
    if before is not None:
        say("saved", before)
    say("end", training.state())
    training.close()
    lock.release()


def start(directory, case, saves=True):
    """Fork a child; returns (its process, where it can be read what it says)."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.close(reading)
            child(directory, writing, case, saves)
            code = 0
        except BaseException as error:
            os.write(writing, f"error {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    os.close(writing)
    return process, reading


def said(process, reading):
    """Wait for the child's end; returns (its status, [(word, rest)] of what it said)."""
    with os.fdopen(reading) as lines:
        words = [line.rstrip("\n").partition(" ")[::2] for line in lines if line.endswith("\n")]
    return os.waitpid(process, 0)[1], words


def wait_for_processor_seconds(process, seconds):
    """Return once a child has used so much processor time, or has ended."""
    clock = (~process << 3) | 2  # Linux: the clock of all threads of a process
    with contextlib.suppress(OSError):  # it has ended
        while time.clock_gettime(clock) < seconds and os.waitid(os.P_PID, process, ENDED_OR_NOT) is None:
            time.sleep(0.0005)


def kill_runs(kills, seed, root, case=CASE):
    """Returns what happened. AssertionError where a run lost or changed anything."""
    assert len(os.listdir("/proc/self/task")) == 1, "a fork of several threads is no copy of the process"
    luck, done = random.Random(seed), Counter()
    for name in ("undisturbed", "whole", "0"):
        (root / name).mkdir()
    status, words = said(*start(root / "undisturbed", case, saves=False))
    assert status == 0, words
    want = dict(words)["end"]
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    status, words = said(*start(root / "whole", case))
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    duration = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
    assert status == 0 and dict(words)["end"] == want, words

    directory, saved = root / "0", 0
    while True:
        last = done["kills"] == kills
        process, reading = start(directory, case)
        if not last:
            wait_for_processor_seconds(process, luck.uniform(0, duration / luck.choice([1, 4, 16])))
            os.kill(process, signal.SIGKILL)
        status, words = said(process, reading)
        assert not [rest for word, rest in words if word in ("complaint", "error")], words
        found = [int(rest) for word, rest in words if word == "from"]
        assert all(step >= saved for step in found), f"step {saved} was saved, and {found[0]} was found"
        saved = max([saved, *found, *(int(rest) for word, rest in words if word == "saved")])
        done["kills"] += not last
        done["recoveries"] += any(found)
        ended = "end" in dict(words)
        if ended:
            assert dict(words)["end"] == want, "the run ended elsewhere"
            done["ends"] += 1
        else:
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (status, words)
            done["kills before the end"] += 1
            done["kills before the run went on"] += not found
            done["kills that left a half-written file"] += any(directory.rglob("*" + TEMPORARY))
        if last:
            return {**done, "seed": seed, "processor seconds of a whole run": round(duration, 2)}
        if ended:
            shutil.rmtree(directory)
            directory, saved = root / str(done["ends"]), 0
            directory.mkdir()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        begun = time.perf_counter()
        done = kill_runs(options.kills, options.seed, Path(root))
    for what, count in done.items():
        print(f"{what}: {count}")
    print(f"seconds: {time.perf_counter() - begun:.0f}")
    # A kill that comes after the end shows nothing.
    return 0 if done["kills before the end"] > 0.5 * options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
