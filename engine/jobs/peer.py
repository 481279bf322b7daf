"""job=peer: train a rival of the engine on the same given features, in the same order, and measure it in the same form.

A rival is in memory only: there are no checkpoints, and a run that is started again starts over. metrics.jsonl has the lines of a run of
the engine, so that job=scale reads both alike.
"""

import argparse
import importlib.util
import time
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs import schema
from datasets.given import GivenFeatures
from datasets.schedule import Schedule
from engine.jobs import parts, sizes
from engine.jobs.data import open_data
from engine.jobs.locked import lock, require_no_sweep
from engine.methods.stages import Stages
from engine.ranks.process_table import peak_resident_bytes
from engine.results.listeners import MetricsFile
from engine.results.output import Output
from engine.results.output_names import LOCK
from engine.results.progress import progress
from engine.scaling.peers.peer import Peer, PeerTask
from engine.training.stop_signal import StopSignal

# scale.peer -> module of engine/scaling/peers, what makes it there, and the package that it needs.
PEERS = {
    "pic_dense": ("pic_dense", "make", "torch"),
    "partial_fc": ("partial_fc", "make", "torch"),
    "embedding_sgd": ("embedding", "make_sgd", "torch"),
    "embedding_sparse_adam": ("embedding", "make_sparse_adam", "torch"),
    "fbgemm": ("fbgemm", "make", "fbgemm_gpu"),
}
_FILES = (LOCK, "config.json", "metrics.jsonl", "summary.json")


def run(config: schema.Config, options: argparse.Namespace) -> int:
    """Returns the exit code."""
    check_peer(config)
    require_no_sweep(Path(config.output))
    own = Output(Path(config.output), _FILES)
    with ExitStack() as cleanup:
        own.make()
        own.enter(LOCK)
        lock(own.path, cleanup)
        for name in _FILES[2:]:
            own.remove(name)
        _, augmentation, schedule, config = open_data(config, None)
        own.write_text("config.json", config.model_dump_json(indent=2) + "\n")
        parts.use_threads(config)
        stop = cleanup.enter_context(StopSignal())
        peer = make_peer(config, schedule)
        assert isinstance(augmentation, GivenFeatures)
        return _Run(config, own, schedule, peer).train(augmentation, stop)


def check_peer(config: schema.Config) -> None:
    """ValueError where no peer is named or its package is missing, or for what no peer can do."""
    name = config.scale.peer
    if name is None:
        raise ValueError(f"job=peer has no peer; set scale.peer to one of {', '.join(PEERS)}")
    package = PEERS[name][2]
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"scale.peer {name} needs {package}, which is not installed; pip install -e '.[bench]', or leave it out"
        )
    if not config.backbone.is_given:
        raise ValueError(
            f'a peer trains rows on given features, and backbone.name is {config.backbone.name}; set it to "given"'
        )
    if len(config.data.rows_grad_V) != 1:
        raise ValueError(
            f"a peer takes one view of an image, and data.augment makes {len(config.data.rows_grad_V)}; set views to 1"
        )
    if not config.rows.rows_have_momentum:
        raise ValueError(f"a peer trains rows by SGD, and method.kind is {config.method.kind}; set it to pic")
    if config.rows.init != "random":
        raise ValueError(
            f"a peer has rows that start at random, and method.init is {config.rows.init}; set it to random"
        )


def make_peer(config: schema.Config, schedule: Schedule) -> Peer:
    """The peer that scale.peer names, with the settings of the rows."""
    wanted, optimizer = config.rows, config.optimizer
    module, maker, _ = PEERS[config.scale.peer or ""]
    task = PeerTask(
        size=schedule.size,
        active=sizes.active_rows_of(config, schedule),
        dim=wanted.dim,
        temperature=getattr(wanted, "temperature", 1.0),
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        weight_decay=optimizer.decay_of_rows,
        seed=config.seed,
        init_norm=wanted.init_norm,
    )
    peer: Peer = getattr(import_module(f"engine.scaling.peers.{module}"), maker)(task)
    return peer


class _Run:
    """A peer that is trained from the first step to the last, and what is said of it."""

    def __init__(self, config: schema.Config, own: Output, schedule: Schedule, peer: Peer) -> None:
        self.config, self.own, self.schedule, self.peer = config, own, schedule, peer
        self.total = sizes.total_steps(config, schedule)
        self.end = sizes.end_of(config, schedule)
        self.stages, self.elapsed_seconds = Stages(), 0.0

    def train(self, augmentation: GivenFeatures, stop: StopSignal) -> int:
        losses: list[float] = []
        images, interval = 0, time.perf_counter()
        active = sizes.active_rows_of(self.config, self.schedule)
        terminal = progress(total_steps=self.end, first_step=0, chance_loss=float(np.log(active)), planned_bytes={})
        with MetricsFile(self.own) as metrics, terminal:
            for step in range(self.end):
                start = time.perf_counter()
                lr, loss, count = self._step(step, augmentation)
                losses.append(loss)
                images += count
                self.elapsed_seconds += time.perf_counter() - start
                is_last = step + 1 == self.end or stop.is_asked
                if is_last or (step + 1) % self.config.log_every == 0:
                    now = time.perf_counter()
                    line = self._line(step + 1, losses[-self.config.log_every :], lr, images, now - interval)
                    images, interval = 0, now
                    metrics.update(line)
                    terminal.update(line)
                if is_last:
                    break
        self._summarise(losses)
        return 0

    def _step(self, step: int, augmentation: GivenFeatures) -> tuple[float, float, int]:
        """(learning rate of the trunk, loss, images)."""
        with self.stages("data"):
            positions_G = self.schedule.positions(step)
            ids_B = self.schedule.instances(positions_G[positions_G >= 0])
            (z_BD,) = augmentation.views([], self.config.seed, step, ids_B)
        lr = parts.learning_rate_at(self.config, self.schedule, self.total, step)
        with self.stages("rows"):
            loss = self.peer.step(torch.from_numpy(ids_B), z_BD, lr * self.config.optimizer.rows_lr_scale)
        return lr, loss, len(ids_B)

    def _line(self, step: int, losses: list[float], lr: float, images: int, seconds: float) -> dict[str, Any]:
        """A line of metrics.jsonl, in the form of engine/training/interval.py."""
        return {
            "step": step,
            "loss": float(np.mean(losses)),
            "lr": lr,
            "images_per_second": images / seconds,
            "seconds": self.stages.take(),
            "interval_seconds": seconds,
            "bytes": {"device": self.peer.bytes(), "host": 0, "disk": 0, "process_peak": peak_resident_bytes()},
            "prefetch_waits": {"steps": 0, "seconds": 0.0},
            "ranks": 1,
            "figures": [],
            "skipped_steps": 0,
            "elapsed_seconds": self.elapsed_seconds,
            "sent_bytes": {},
        }

    def _summarise(self, losses: list[float]) -> None:
        steps = len(losses)
        self.own.write_json(
            "summary.json",
            {
                "job": "peer",
                "peer": self.config.scale.peer,
                "status": "finished" if steps == self.end else "stopped",
                "instances": self.schedule.size,
                "steps": steps,
                "loss": float(np.mean(losses[-max(1, steps // 20) :])),
                "step_seconds": self.elapsed_seconds / steps,
                "peak_host_bytes": peak_resident_bytes(),
                "peak_device_bytes": self.peer.bytes(),
            },
        )
