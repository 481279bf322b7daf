"""The training loop: ask for a batch, slide the window, take a step, and now and then log, evaluate, keep.

The loop knows the step number and nothing else about the past; all state is in the trunk and the rows. A signal to stop
is obeyed between two steps.
"""

import json
import resource
import signal
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.batch import Batch
from engine.active_rows import ActiveRows
from engine.progress import Progress
from engine.row_gradients import RowGradient
from engine.stages import Stages
from engine.step import train_step
from engine.trunk import Trunk

_SKIPS_THAT_STOP = 3


class NonFiniteLoss(Exception):
    """The loss was not finite several steps in a row."""


@dataclass
class Totals:
    """What a run has added up so far; kept in checkpoints, so that a resumed run tells the whole."""

    images: int = 0
    skipped_steps: int = 0
    skips_in_a_row: int = 0
    unreadable_images: int = 0
    step_seconds: float = 0.0  # in steps, waiting for images included; evaluations and checkpoints are not
    trunk_seconds: float = 0.0
    peak_host_bytes: int = 0
    peak_device_bytes: int = 0
    losses: array = field(
        default_factory=lambda: array("d")
    )  # of every step, nan where it was skipped; kept with the log

    def kept(self) -> dict[str, Any]:
        """What a checkpoint's manifest keeps of it."""
        return {name: value for name, value in vars(self).items() if name != "losses"}


@dataclass(frozen=True)
class Rhythm:
    """When things happen, in steps: `end` is where this run stops, and the others count from step 0.

    read_ahead: how many slides of the window ahead blocks are read.
    """

    end: int
    log_every: int
    checkpoint_every: int
    evaluate_every: int | None
    read_ahead: int


class StopSignal:
    """SIGINT and SIGTERM ask the loop to end after the step it is in; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        self.name = signal.Signals(number).name
        signal.signal(number, self._before[number])


def train(
    batches: Iterator[Batch],
    trunk: Trunk,
    rows: ActiveRows,
    totals: Totals,
    *,
    steps_per_window: int,
    window_blocks: Callable[[int], np.ndarray],
    learning_rate: Callable[[int], float],
    rows_lr_scale: float,
    temperature: float,
    micro_batches: int,
    rows_grad_V: list[bool],
    row_gradient: RowGradient,
    rhythm: Rhythm,
    metrics_path: Path,
    backends: dict[str, str],
    checkpoint: Callable[[], None],
    last_good: Callable[[], str | None],
    disk_bytes: Callable[[], int],
    take_waited_seconds: Callable[[], float],
    evaluate: Callable[[], None],
    progress: Progress,
    stop: StopSignal,
    seed: int,
) -> None:
    """Train from step `rows.log.steps` up to `rhythm.end`, or until `stop` asks, or until the loss stays non-finite.

    batches               of the steps from here on, in order
    window_blocks         window number -> its blocks
    checkpoint            begins one; called every `checkpoint_every` steps, when stopped, and at the end
    last_good             the name of the newest checkpoint that is there
    disk_bytes            what checkpoints and stored rows occupy
    take_waited_seconds   for how long the disk was waited for since the last call
    seed                  of torch's generator, together with the step
    Raises NonFiniteLoss after three skipped steps in a row; no checkpoint is written then.
    """
    stages = Stages()
    waits = {"steps": 0, "seconds": 0.0}
    last_line = time.perf_counter()
    images_at_line = totals.images
    first_step = rows.log.steps
    torn = metrics_path.stat().st_size and not metrics_path.read_bytes().endswith(b"\n")
    with open(metrics_path, "a", encoding="utf-8") as metrics:
        if torn:  # the run was killed while it wrote a line
            metrics.write("\n")
        for step in range(rows.log.steps, rhythm.end):
            start = time.perf_counter()
            with stages("data"):
                batch = next(batches)
            assert batch.step == step, (batch.step, step)
            window = step // steps_per_window
            if step % steps_per_window == 0:
                with stages("slide"):
                    rows.host.slide(window_blocks(window), step)
            if step % steps_per_window == 0 or step == first_step:
                ahead = [window_blocks(window + 1 + slides) for slides in range(rhythm.read_ahead)]
                rows.host.read_ahead(np.concatenate(ahead))
            # Backbones with dropout draw from torch's generator; a resumed run must draw the same.
            torch.manual_seed((seed * 1_000_003 + step) % 2**63)
            lr = learning_rate(step)
            result = train_step(
                batch,
                trunk,
                rows,
                lr=lr,
                rows_lr=lr * rows_lr_scale,
                temperature=temperature,
                micro_batches=micro_batches,
                rows_grad_V=rows_grad_V,
                row_gradient=row_gradient,
                stages=stages,
            )
            totals.images += result.filled
            totals.skipped_steps += not result.applied
            totals.skips_in_a_row = 0 if result.finite else totals.skips_in_a_row + 1
            totals.losses.append(result.loss)
            for name in batch.unreadable:
                totals.unreadable_images += 1
                progress.note(f"cannot read {name}; its place in step {step} stays empty")
            totals.step_seconds += time.perf_counter() - start
            waited = take_waited_seconds()
            waits["steps"] += waited > 0
            waits["seconds"] += waited

            done = step + 1
            if done % rhythm.log_every == 0 or done == rhythm.end or stop.name:
                now = time.perf_counter()
                seconds = stages.take()
                totals.trunk_seconds += seconds.get("trunk_forward", 0.0) + seconds.get("trunk_backward", 0.0)
                tiers = measured_bytes(rows, trunk, disk_bytes())
                images = totals.images - images_at_line
                line = metrics_line(done, totals, rows, lr, seconds, now - last_line, images, backends, tiers, waits)
                waits = {"steps": 0, "seconds": 0.0}
                line["loss"] = mean_of_finite(totals.losses[-rhythm.log_every :])
                metrics.write(json.dumps(line) + "\n")
                metrics.flush()
                progress.update(line)
                last_line, images_at_line = now, totals.images
            if totals.skips_in_a_row >= _SKIPS_THAT_STOP:
                kept = last_good()
                good = f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet"
                raise NonFiniteLoss(
                    f"the loss was not finite in {_SKIPS_THAT_STOP} steps in a row, up to step {step}; {good}.\n"
                    "Lower optimizer.lr, set optimizer.clip, or use bfloat16 in deepspeed.torch_autocast"
                )
            sound = done != rhythm.end and totals.skips_in_a_row == 0
            due = sound and done % rhythm.checkpoint_every == 0
            if stop.name or due:
                checkpoint()
            if stop.name:
                return
            if sound and rhythm.evaluate_every and done % rhythm.evaluate_every == 0:
                evaluate()
    if first_step < rows.log.steps == rhythm.end:
        checkpoint()


def metrics_line(
    done: int,
    totals: Totals,
    rows: ActiveRows,
    lr: float,
    seconds: dict[str, float],
    interval_seconds: float,
    images: int,
    backends: dict[str, str],
    tiers: dict[str, int],
    waits: dict[str, float],
) -> dict[str, Any]:
    """One line of metrics.jsonl, without the loss."""
    process_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    totals.peak_host_bytes = max(totals.peak_host_bytes, process_peak)
    totals.peak_device_bytes = max(totals.peak_device_bytes, tiers["device"])
    return {
        "step": done,
        "loss": None,
        "lr": lr,
        "images_per_second": images / interval_seconds,
        "seconds": seconds,
        "interval_seconds": interval_seconds,
        "bytes": {**tiers, "process_peak": process_peak},
        "prefetch_waits": waits,
        "blocks_read": rows.host.blocks_read,
        "backends": backends,
        "active": int(sum(rows.used)),
        "visited": rows.visited,
        "readmitted": rows.readmitted,
        "skipped_steps": totals.skipped_steps,
        "elapsed_seconds": totals.step_seconds,
    }


def measured_bytes(rows: ActiveRows, trunk: Trunk, disk_bytes: int) -> dict[str, int]:
    """Bytes by tier. On a GPU the device's are the allocator's peak; on a CPU the rows, their gradient and the trunk, by count."""
    if rows.w_KD.device.type == "cuda":
        device = torch.cuda.max_memory_allocated()
    else:
        weights = sum(parameter.nbytes for parameter in trunk.network.parameters())
        device = rows.bytes + rows.w_KD.nbytes + 3 * weights
    return {"device": device, "host": rows.host.bytes + rows.host.store.host_bytes, "disk": disk_bytes}


def mean_of_finite(losses: Iterable[float]) -> float | None:
    """The mean of the losses that are finite; None where none is."""
    finite = [loss for loss in losses if np.isfinite(loss)]
    return float(np.mean(finite)) if finite else None
