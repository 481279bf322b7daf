"""Starts of launch.py on several ranks, which are forked or under a real launcher, and what their runs left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.training import run as run_module
from tests.conftest import REPOSITORY, TINY
from tests.on_ranks import taken_port
from tests.pooled_start import Running

BIN = Path(sys.executable).parent
# At TINY's rate a last bit in the trunk, such as one rank's and several ranks' batch normalisation differ in, grows to 2e-3 of the rows in
# as many steps; with a slower trunk to 5e-4. The rows' own exactness has tests of its own (engine/training/test_elastic.py).
SLOWER = {**TINY["optimizer"], "lr": 0.003, "rows_lr_scale": 100.0}


class Runs:
    """Starts of launch.py on one config; the output directory is `directory`/run.

    fault   called in each process before a start that is forked (tests/pooled_start.py)
    """

    fault: Callable[[], None] | None = None

    def __init__(self, directory, **changes):
        self.directory, self.output = directory, directory / "run"
        directory.mkdir(exist_ok=True)
        self.config = directory / "config.json"
        self.config.write_text(
            json.dumps({**TINY, "optimizer": SLOWER, "output": str(self.output), "log_every": 4, **changes})
        )

    def __call__(self, count, *overrides):
        """Forked ranks, to their end: (exit code, what they said)."""
        with self.running(count, *overrides) as running:
            start = running.wait()
        return start.code, start.out + start.err

    def running(self, count, *overrides):
        words = ["--config", str(self.config), *overrides]
        return Running(words, self.directory, count=count, fault=self.fault, drawings=False)

    def launch(self, count, launcher, *overrides, program=("launch.py",)):
        """The process of a real launcher."""
        with taken_port() as port:  # which the launcher inherits: as long as it is there, no other test gets the port
            number = str(port.getsockname()[1])
            head = {
                "torchrun": [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", str(count)],
                "deepspeed": [str(BIN / "deepspeed"), "--master_port", number, "--num_accelerators", str(count)],
            }[launcher]
            return subprocess.Popen(
                [*head, *program, "--config", str(self.config), *overrides],
                cwd=REPOSITORY,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "DS_ACCELERATOR": "cpu",
                    "HELD_IN": str(self.directory),  # for tests/held_start.py
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                pass_fds=[port.fileno()],
            )

    def summary(self):
        return json.loads((self.output / "summary.json").read_text())

    def losses(self):
        lines = [json.loads(line) for line in (self.output / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines}

    def rows(self, *words):
        """The rows of the newest checkpoint in instance order. words: those that the run was started with."""
        code, out = self(1, "job=store", "store.verb=export", *words)
        assert code == 0, out
        return np.load(max((self.output / "exports").glob("rows-*.npy"), key=lambda path: path.stat().st_mtime))

    def wait_for(self, step, has_ended):
        """Until metrics.jsonl tells of this step. AssertionError where has_ended() becomes true before."""
        while not (self.output / "metrics.jsonl").exists() or max([0, *self.losses()]) < step:
            assert not has_ended(), f"it ended before step {step}"
            time.sleep(0.05)


def killed_in(rank, step):
    """A fault: this rank is killed as it begins this step, counted from 0, and a checkpoint is whole; when, the file `killed` tells."""
    real = run_module.train_step

    def train_step(batch, *arguments, **options):
        if batch.step == step:
            while not list(Path("run/checkpoints/manifests").glob("*.json")):  # the writer is behind
                time.sleep(0.01)
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(batch, *arguments, **options)

    if os.environ["RANK"] == str(rank):
        run_module.train_step = train_step
