"""One run from wherever it stands to its end: resume, train, evaluate, and leave the output directory as promised.

All ranks go through it together. Rank 0 writes what people read, while the others wait for it. The training itself
is engine/training/pretrain.py; this is what goes on around it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from typing import Protocol as TypingProtocol

import numpy as np
import torch

from datasets.batch import Batch, ImageSet, Probe
from engine.evaluation.evaluate import Embed, Evaluation, Protocol, Stopped, evaluate, raw_pixels, record
from engine.evaluation.examples import embedding_sample, neighbour_rows
from engine.methods.softmax import Softmax
from engine.ranks.ranks import Ranks
from engine.results.exports import export_backbone
from engine.results.output import UNREADABLE, Output, json_text
from engine.results.progress import Progress, progress
from engine.results.report import report_of
from engine.rows.active_rows import ActiveRows
from engine.rows.snapshots import RowReader, block_hashes, digest
from engine.training import checkpoint
from engine.training.checkpoint import Checkpoints
from engine.training.pretrain import NonFiniteLoss, Rhythm, Totals, mean_of_finite, train
from engine.training.reading import Reading, TooMuchUnread
from engine.training.stop_signal import StopSignal
from engine.trunk.network import Network, backbone_of, embed
from engine.trunk.trunk import Trunk

_LAST_SHARE = 0.05  # of the steps: what the summary's loss is the mean of


class Schedule(TypingProtocol):
    """What a run asks of datasets' schedule."""

    @property
    def steps_per_window(self) -> int: ...
    @property
    def steps_per_pass(self) -> float: ...
    def window_blocks(self, window: int) -> np.ndarray: ...
    def instances(self, positions_B: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Settings:
    """Keys of the config that a run needs, under the names they have there."""

    job: str
    method: str
    instances: int
    seed: int
    log_every: int
    checkpoint_every: int
    on_unreadable: str
    read_ahead: int
    evaluate_every: int | None
    protocol: Protocol
    tensorboard: bool
    micro_batches: int
    rows_lr_scale: float
    backbone: str


def run(
    *,
    trunk: Trunk,
    rows: ActiveRows,
    softmax: Softmax,
    ranks: Ranks,
    batches: Iterator[Batch],
    schedule: Schedule,
    learning_rate: Callable[[int], float],
    end: int,
    total: int,
    checkpoints: Checkpoints,
    output: Output,
    state: dict[str, Any],
    planned: dict[str, dict[str, int]],
    probe: Probe | None,
    sample: ImageSet,
    rows_grad_V: list[bool],
    stop: StopSignal,
    reading: Reading,
    settings: Settings,
) -> int:
    """Train up to step `end` of `total`; returns the exit code: 0 done or stopped on request, 1 the loss was lost, or too many images.

    checkpoints   restored: the run goes on after the newest of them
    state         what each checkpoint is to keep for launch.py: the config, and what the images were
    """
    started = time.time()
    totals = Totals()
    if kept := checkpoints.newest:
        checkpoint.load_trunk(kept, trunk, ranks)
        was = kept.body.state
        if was.loss_scale:
            scale, good_steps = was.loss_scale
            trunk.loss_scale = scale, good_steps
        log = ranks.from_first(kept.log() if ranks.is_first else None)
        checkpoint.load_rows(kept, rows, last_window(schedule, kept.step), log["eta"])
        totals = Totals.restored(was.totals or {}, log["loss"])
        reading.take_up(was, totals.images)
    else:
        if ranks.is_first:
            for name in (
                "metrics.jsonl",
                "evaluations.jsonl",
                UNREADABLE,
            ):  # of a run that was killed before its first checkpoint
                output.remove(name)
        if rows.full:
            rows.host.slide(rows.lanes.chosen(range(-(-rows.host.size // rows.host.block))), step=0)
            rows.fill(schedule.instances)
    active = sum(ranks.share(rows.size))
    chance_loss = float(np.log(active))
    print(softmax.why)
    backends = {**rows.kernels, "row_update": softmax.rows_step}
    raw: dict[str, float | None] | None = None  # what pixels alone give, once it was measured
    latest: list[Evaluation] = []

    def save() -> None:
        kept = {
            **state,
            "totals": totals.kept(),
            "loss_scale": trunk.loss_scale,
            **reading.kept(),
        }
        checkpoints.save(rows, trunk.state(), totals.losses, kept)

    def last_good() -> str | None:
        checkpoints.finish()
        return checkpoints.newest.name if checkpoints.newest else None

    def take_waited_seconds() -> float:
        waited = 0.0
        for waiting in (rows.host, checkpoints.disk, checkpoints):
            waited += waiting.waited_seconds
            waiting.waited_seconds = 0.0
        return waited

    def look() -> None:
        with suppress(Stopped):
            evaluate_now(partial(stop.agreed_in_words, ranks))

    def evaluate_now(stopped: Callable[[], object]) -> None:
        nonlocal raw
        gallery, queries = (probe.gallery, probe.queries) if probe else (sample, [])
        if raw is None:
            pixels = evaluate(raw_pixels, gallery, queries, settings.protocol, ranks, stopped) if probe else None
            raw = pixels.figures if pixels else {}
        features = embedder(trunk.for_evaluation(), settings.protocol.features)
        result = evaluate(features, gallery, queries, settings.protocol, ranks, stopped)
        if result:
            latest[:] = [result]
            line = record(result, probe, raw, settings.protocol)
            with output.lines("evaluations.jsonl") as file:
                file.write(json_text({"step": rows.log.steps, "elapsed_seconds": totals.step_seconds, **line}) + "\n")
            shown.note(describe(f"after step {rows.log.steps}", line))
        ranks.wait()

    status = "finished"
    shown = progress(
        total_steps=end,
        first_step=rows.log.steps,
        chance_loss=chance_loss,
        planned_bytes={tier: sum(items.values()) for tier, items in planned.items()},
    )
    if settings.tensorboard and ranks.is_first:
        shown = tensorboard_beside(shown, output)
    with shown, output.lines("metrics.jsonl") if ranks.is_first else nullcontext() as metrics:
        try:
            train(
                batches,
                trunk,
                rows,
                softmax,
                ranks,
                totals,
                steps_per_window=schedule.steps_per_window,
                window_blocks=schedule.window_blocks,
                learning_rate=learning_rate,
                rows_lr_scale=settings.rows_lr_scale,
                micro_batches=settings.micro_batches,
                rows_grad_V=rows_grad_V,
                rhythm=Rhythm(
                    end, settings.log_every, settings.checkpoint_every, settings.evaluate_every, settings.read_ahead
                ),
                metrics=metrics,
                backends=backends,
                checkpoint=save,
                last_good=last_good,
                disk_bytes=lambda: checkpoints.bytes,
                take_waited_seconds=take_waited_seconds,
                evaluate=look,
                progress=shown,
                stop=stop,
                seed=settings.seed,
                reading=reading,
                stop_at_unreadable=settings.on_unreadable == "stop",
            )
            checkpoints.finish()
        except (NonFiniteLoss, TooMuchUnread) as error:
            status = f"stopped: {error}"
        stopped_by = stop.agreed(ranks)
        if status == "finished" and not stopped_by:
            look()
            stopped_by = stop.agreed(ranks)
        if stopped_by and status == "finished":
            status = f"stopped by {stopped_by}"
            newest = (
                f"checkpoint written after step {checkpoints.newest.step}" if checkpoints.newest else "no checkpoint"
            )
            shown.note(f"{stopped_by}: {newest}; the same command goes on from there")

    backbone = backbone_of(trunk.weights())
    hashes = ranks.share(block_hashes(RowReader(rows)))
    counted = ranks.share(
        {"visited": rows.visited, "readmitted": rows.readmitted, "store_bytes": rows.host.store.bytes}
    )
    failed = status.startswith("stopped: ")
    if not ranks.is_first:
        return 1 if failed else 0
    export_backbone(output.enter("backbone.safetensors"), backbone, settings.backbone)
    steps = rows.log.steps
    summary = {
        "job": settings.job,
        "method": settings.method,
        "status": status,
        "instances": settings.instances,
        "ranks": ranks.size,
        "visited": sum(own["visited"] for own in counted),
        "readmitted": sum(own["readmitted"] for own in counted),
        "passes": steps / schedule.steps_per_pass,
        "steps": steps,
        "steps_of_schedule": total,
        "skipped_steps": totals.skipped_steps,
        "unreadable_images": reading.count,
        "loss": mean_of_finite(totals.losses[-max(1, round(_LAST_SHARE * steps)) :]),
        "chance_loss": chance_loss,
        "active": active,
        "knn_top1": latest[0].figures.get("knn_top1") if latest else None,
        "rankme": latest[0].rankme if latest else None,
        "images_per_second": totals.images / max(totals.step_seconds, 1e-9),
        "step_seconds": totals.step_seconds / max(steps, 1),
        "trunk_seconds": totals.trunk_seconds / max(steps, 1),
        "session_seconds": time.time() - started,
        "peak_host_bytes": totals.peak_host_bytes,
        "peak_device_bytes": totals.peak_device_bytes,
        "store_bytes": sum(own["store_bytes"] for own in counted),
        "sharding": softmax.name,
        "backends": backends,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "digest": digest(backbone, {block: one for own in hashes for block, one in own.items()}),
    }
    output.write_json("summary.json", summary)
    neighbours = neighbour_rows(probe, latest[0]) if probe and latest else []
    embeddings = embedding_sample(probe, sample, latest[0]) if latest else None
    report = output.write_text("report.html", report_of(output.path, neighbours, embeddings))
    if reading.count:
        print(f"{reading.count:,} images could not be read; they are listed in {output.path / UNREADABLE}")
    print(f"{status.splitlines()[0]} after {steps:,} of {total:,} steps; report: {report}")
    if failed:
        print(status)
    return 1 if failed else 0


def last_window(schedule: Schedule, step: int) -> np.ndarray:
    """The blocks of the window that the last of `step` steps was in."""
    return schedule.window_blocks(max(step - 1, 0) // schedule.steps_per_window)


def embedder(network: torch.nn.Module, features: str) -> Embed:
    """images -> unit-length features of the network."""
    return lambda images: embed(cast(Network, network), images, features)


def describe(what: str, line: dict[str, Any]) -> str:
    """An evaluation for people: every figure beside raw pixels and chance, and the protocol it was made by."""
    if not line["figures"]:
        return f"{what}:{_rankme_text(line)[1:]}"
    lines = [f"{what}: kNN, right answers (raw pixels; chance {line['chance']:.2%})"]
    for name, share in line["figures"].items():
        pixels = line["raw_pixels"].get(name)
        lines.append(f"  {name:40} {_text(share, '6.1%')}  ({_text(pixels, '.1%')})")
    return "\n".join([*lines, f"  {line['protocol']}", _rankme_text(line)])


def _rankme_text(line: dict[str, Any]) -> str:
    return f"  RankMe {_text(line['rankme'], '.1f')} of {line['rankme_dim']}"


def _text(figure: float | None, format: str) -> str:
    """A figure, or that there is none: nothing could be read of what it is about."""
    return "none" if figure is None else f"{figure:{format}}"


def tensorboard_beside(shown: Progress, output: Output) -> Progress:
    """Let every line that is shown also go to TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    directory = output.enter("tensorboard")
    directory.mkdir(exist_ok=True)
    before = set(directory.iterdir())
    writer = SummaryWriter(str(directory))
    for path in set(directory.iterdir()) - before:
        output.take(f"tensorboard/{path.name}")
    show = shown.update

    def update(line: dict[str, Any]) -> None:
        for key in ("loss", "lr", "images_per_second", "active", "visited", "readmitted"):
            if line[key] is not None:
                writer.add_scalar(key, line[key], line["step"])
        writer.flush()
        show(line)

    shown.update = update  # type: ignore[method-assign, assignment]
    return shown
