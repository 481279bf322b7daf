"""The training loop: ask for a batch, slide the window, take a step, and now and then log, evaluate, keep.

The loop knows the step number and nothing else about the past; all state is in the trunk and the rows. All ranks go through it
together; what they decide, they decide alike. A signal to stop that any of them got is obeyed by all between two steps.
"""

import resource
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn, TextIO

import numpy as np
import torch

from datasets.batch import Batch, NoBatch
from engine.methods.softmax import Softmax
from engine.ranks.ranks import Ranks
from engine.results.output import json_text
from engine.results.progress import Progress
from engine.rows.active_rows import ActiveRows
from engine.training.reading import NO_BATCH, UNREADABLE, Reading, TooMuchUnread
from engine.training.stages import Stages
from engine.training.step import places_of, places_of_all, train_step
from engine.training.stop_signal import StopSignal
from engine.trunk.trunk import Trunk

_SKIPS_THAT_STOP = 3
_REFUSED_THAT_STOP = 50  # a loss scaler halves its scale each time


class NonFiniteLoss(Exception):
    """The loss was not finite several steps in a row."""


@dataclass
class Totals:
    """What a run has added up so far; kept in checkpoints, so that a resumed run tells the whole."""

    images: int = 0
    skipped_steps: int = 0
    skips_in_a_row: int = 0
    refused_in_a_row: int = 0
    step_seconds: float = 0.0  # in steps, waiting for images included; evaluations and checkpoints are not
    trunk_seconds: float = 0.0
    peak_host_bytes: int = 0
    peak_device_bytes: int = 0
    losses: array = field(
        default_factory=lambda: array("d")
    )  # of every step, nan where it was skipped; kept with the log

    def hopeless(self) -> str | None:
        """Why it is no use to go on; None where it is."""
        if self.skips_in_a_row >= _SKIPS_THAT_STOP:
            return f"the loss was not finite in {_SKIPS_THAT_STOP} steps in a row"
        if self.refused_in_a_row >= _REFUSED_THAT_STOP:
            return f"the gradient was not finite: DeepSpeed refused {_REFUSED_THAT_STOP} steps in a row"
        return None

    @classmethod
    def restored(cls, kept: dict[str, Any], losses: Iterable[float]) -> "Totals":
        """What `kept` gave, also in an earlier version, which counted visits to images that could not be read."""
        names = {one.name for one in fields(cls)} - {"losses"}
        return cls(**{name: kept[name] for name in names & kept.keys()}, losses=array("d", losses))

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


def train(
    batches: Iterator[Batch],
    trunk: Trunk,
    rows: ActiveRows,
    softmax: Softmax,
    ranks: Ranks,
    totals: Totals,
    *,
    steps_per_window: int,
    window_blocks: Callable[[int], np.ndarray],
    learning_rate: Callable[[int], float],
    rows_lr_scale: float,
    micro_batches: int,
    rows_grad_V: list[bool],
    rhythm: Rhythm,
    metrics: TextIO | None,
    backends: dict[str, str],
    checkpoint: Callable[[], None],
    last_good: Callable[[], str | None],
    disk_bytes: Callable[[], int],
    take_waited_seconds: Callable[[], float],
    evaluate: Callable[[], None],
    progress: Progress,
    stop: StopSignal,
    seed: int,
    reading: Reading,
    stop_at_unreadable: bool,
) -> None:
    """Train from step `rows.log.steps` up to `rhythm.end`, or until `stop` asks, or until the loss stays non-finite.

    batches               of the steps from here on, in order: this rank's part of them
    metrics               takes the lines of metrics.jsonl; None: another rank writes them
    window_blocks         window number -> its blocks
    checkpoint            begins one; called every `checkpoint_every` steps, when stopped, and at the end
    last_good             the name of the newest checkpoint that is there
    evaluate              ends early where a stop is asked for
    disk_bytes            what checkpoints and stored rows occupy
    take_waited_seconds   for how long the disk was waited for since the last call
    seed                  of torch's generator, together with the step
    stop_at_unreadable    the first image that cannot be read ends the run, before its step
    Raises NonFiniteLoss after three skipped steps in a row, and TooMuchUnread; no checkpoint is written then. Raises ValueError
    where an image that cannot be read ends the run; then there is a checkpoint of the steps before.
    """
    stages = Stages()
    waits = {"steps": 0, "seconds": 0.0}
    last_line = time.perf_counter()
    images_at_line = totals.images
    first_step = rows.log.steps
    images_at_checkpoint = totals.images
    sent_bytes = Counter(ranks.sent_bytes)

    def tell_unreadable() -> None:
        for line in reading.tell(ranks):
            progress.note(line)

    def good() -> str:
        kept = last_good()
        return f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet"

    def end_at_unreadable(step: int) -> NoReturn:
        known = len(reading.known)
        reading.tell(ranks)
        if step and (totals.images > images_at_checkpoint or len(reading.known) > known):
            checkpoint()
        raise ValueError(
            f"cannot read {reading.first_names()}; the run stops before step {step}, {good()}.\n"
            "Repair the file, or set data.on_unreadable to skip, and start the same command again"
        )

    for step in range(rows.log.steps, rhythm.end):
        start = time.perf_counter()
        with stages("data"):
            try:
                batch: Batch | None = next(batches)
            except NoBatch:  # which the others hear from its places
                batch = None
        places_P = np.full(reading.places, NO_BATCH, np.uint8) if batch is None else places_of(batch)
        places_RP = places_of_all(places_P, ranks)
        if batch is None or (places_RP == NO_BATCH).any():
            break
        assert batch.step == step, (batch.step, step)
        reason = reading.add(step, places_RP, batch.unreadable)
        if stop_at_unreadable and (places_RP == UNREADABLE).any():
            end_at_unreadable(step)
        if reason:
            tell_unreadable()
            raise TooMuchUnread(f"{reason}; the first: {reading.first_names()}, up to step {step}; {good()}")
        window = step // steps_per_window
        if step % steps_per_window == 0:
            with stages("slide"):
                rows.host.slide(rows.lanes.chosen(window_blocks(window)), step)
        if step % steps_per_window == 0 or step == first_step:
            ahead = [window_blocks(window + 1 + slides) for slides in range(rhythm.read_ahead)]
            rows.host.read_ahead(rows.lanes.chosen(np.concatenate(ahead)))
        # Backbones with dropout draw from torch's generator; a resumed run must draw the same, another rank something else.
        torch.manual_seed((seed * 1_000_003 + step + ranks.rank * 998_244_353) % 2**63)
        lr = learning_rate(step)
        result = train_step(
            batch,
            trunk,
            rows,
            softmax,
            ranks,
            lr=lr,
            rows_lr=lr * rows_lr_scale,
            micro_batches=micro_batches,
            rows_grad_V=rows_grad_V,
            stages=stages,
            places_RP=places_RP,
        )
        totals.images += result.filled
        totals.skipped_steps += not result.applied
        totals.skips_in_a_row = 0 if result.finite else totals.skips_in_a_row + 1
        refused = result.finite and result.filled > 0
        totals.refused_in_a_row = 0 if result.applied else totals.refused_in_a_row + refused
        totals.losses.append(result.loss)
        totals.step_seconds += time.perf_counter() - start
        waited = take_waited_seconds()
        waits["steps"] += waited > 0
        waits["seconds"] += waited

        done = step + 1
        stopped_by = stop.agreed(ranks)
        if done % rhythm.log_every == 0 or done == rhythm.end or stopped_by:
            now = time.perf_counter()
            seconds = stages.take()
            totals.trunk_seconds += seconds.get("trunk_forward", 0.0) + seconds.get("trunk_backward", 0.0)
            tell_unreadable()
            told = ranks.share(own_figures(rows, measured_bytes(rows, trunk, disk_bytes()), waits))
            waits = {"steps": 0, "seconds": 0.0}
            images = totals.images - images_at_line
            line = metrics_line(done, totals, lr, seconds, now - last_line, images, backends, told)
            line["loss"] = mean_of_finite(totals.losses[-rhythm.log_every :])
            line["sent_bytes"] = dict(ranks.sent_bytes - sent_bytes)
            sent_bytes = Counter(ranks.sent_bytes)
            if metrics:
                metrics.write(json_text(line) + "\n")
                metrics.flush()
            progress.update(line)
            last_line, images_at_line = now, totals.images
        if reason := totals.hopeless():
            raise NonFiniteLoss(
                f"{reason}, up to step {step}; {good()}.\n"
                "Lower optimizer.lr, set optimizer.clip, or use bfloat16 in deepspeed.torch_autocast"
            )
        sound = done != rhythm.end and totals.skips_in_a_row == 0
        # Where nothing was read since the last one, another would only push a good one out.
        due = sound and done % rhythm.checkpoint_every == 0 and totals.images > images_at_checkpoint
        if stopped_by or due:
            tell_unreadable()
            checkpoint()
            images_at_checkpoint = totals.images
        if stopped_by:
            return
        if sound and rhythm.evaluate_every and done % rhythm.evaluate_every == 0:
            evaluate()
            if stop.agreed(ranks):
                break
    if first_step < rows.log.steps and (rows.log.steps == rhythm.end or totals.images > images_at_checkpoint):
        tell_unreadable()
        checkpoint()


def own_figures(rows: ActiveRows, tiers: dict[str, int], waits: dict[str, float]) -> dict[str, Any]:
    """What a line of metrics.jsonl needs of each rank."""
    return {
        "bytes": tiers,
        "process_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "waits": waits,
        "blocks_read": rows.host.blocks_read,
        "active": int(sum(rows.used)),
        "visited": rows.visited,
        "readmitted": rows.readmitted,
    }


def metrics_line(
    done: int,
    totals: Totals,
    lr: float,
    seconds: dict[str, float],
    interval_seconds: float,
    images: int,
    backends: dict[str, str],
    told: list[dict[str, Any]],
) -> dict[str, Any]:
    """One line of metrics.jsonl, without the loss and the bytes sent.

    told   own_figures of every rank: rows, blocks and the disk are added up; memory and waits are those of the rank with most
    """

    def total(name: str) -> int:
        return sum(own[name] for own in told)

    tiers = {tier: max(own["bytes"][tier] for own in told) for tier in ("device", "host")}
    tiers["disk"] = sum(own["bytes"]["disk"] for own in told)
    process_peak = max(own["process_peak"] for own in told)
    waits = max((own["waits"] for own in told), key=lambda waits: waits["seconds"])
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
        "blocks_read": total("blocks_read"),
        "backends": backends,
        "ranks": len(told),
        "active": total("active"),
        "visited": total("visited"),
        "readmitted": total("readmitted"),
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
