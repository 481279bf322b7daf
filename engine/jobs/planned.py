"""The plan of a run: what its config, its order of visits and its images say, handed to engine/planning, which does the arithmetic.

`Facts` are what does not depend on the sizes that `plan.fit` looks for, so that a plan for other sizes costs a millisecond.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from configs import schema
from datasets.batch import Probe
from datasets.loader import batches_held
from datasets.schedule import Schedule
from datasets.source import Source
from engine.evaluation.limits import EVALUATION_BATCH
from engine.jobs import parts, sizes
from engine.methods.row_gradients import why_written
from engine.planning import components as names
from engine.planning.activations import Activations, without_memory
from engine.planning.checkpoints import (
    CheckpointSizes,
    Traffic,
    disk_components,
    snapshot_component,
    table_bytes,
    traffic,
)
from engine.planning.components import DEVICE, EVALUATION, TRAINING, Component, Plan, extra_components, plan_of
from engine.planning.evaluation import EvaluationSizes, evaluation_components
from engine.planning.loading import LoaderSizes, loader_components
from engine.planning.rows import (
    ActiveSizes,
    TierSizes,
    active_components,
    slot_bytes,
    snapshot_rows_bytes,
    tier_components,
)
from engine.planning.trunk import TrunkSizes, optimizer_state_bytes, trunk_components, trunk_state_bytes


class ImageFacts(NamedTuple):
    """Channels; bytes of the largest and of the typical image once it is decoded, of the typical one encoded, and how that is known."""

    channels: int
    largest: int
    mean: float
    encoded: float
    how: str


class LookedAt(NamedTuple):
    """Images of an evaluation: that are searched, that ask in each set, and of which two random views are compared."""

    gallery: int
    queries: tuple[int, ...]
    views: int


@dataclass(frozen=True)
class Facts:
    """Of a run, whatever its sizes are.

    images            what is known of them
    looked_at         images of the evaluation
    probe             numbers of the online probe's weights; 0: there is none
    network           numbers of weights, numbers of buffers, width of the features; None where features are given
    activations       counts what the network makes on the way; None where features are given
    ranks, ranks_here R; those of one machine
    device            "cpu" or "cuda"
    kernels           what computes the softmax: "cpu", "cuda" or "aten"
    libraries_bytes   measured (engine/planning/resident.py); 0: not
    all_visited       the disk is planned for all rows, however few steps the run has
    """

    images: ImageFacts
    looked_at: LookedAt
    probe: int
    network: tuple[int, int, int] | None
    activations: Activations | None
    ranks: int
    ranks_here: int
    device: str
    kernels: str
    libraries_bytes: int
    all_visited: bool = False


def facts_of(
    config: schema.Config,
    source: Source,
    probe: Probe | None,
    *,
    ranks: int,
    ranks_here: int,
    device: str,
    libraries_bytes: int,
) -> Facts:
    """Images are looked at, and the network is made without memory."""
    asked = config.evaluate
    given = config.backbone.is_given
    network = activations = None
    make = partial(parts.network_of, config)
    if not given:
        network = _numbers(make, asked.features, config.method.dim)
        activations = Activations(make, ranks, device == "cuda", _autocast(config.deepspeed))
    # Where a compiler is missing the run takes ATen, which takes more; a plan is not worth compiling for.
    kernels = "aten" if config.method.has_rows and config.rows.kernels == "aten" else device
    return Facts(
        images=ImageFacts(source.channels, *((0, 0.0, 0.0, "") if given else sizes.image_bytes(source))),
        looked_at=LookedAt(
            gallery=min(asked.limit, probe.gallery.count if probe else min(2000, len(source))),
            queries=tuple(min(asked.query_limit, images.count) for images in probe.queries) if probe else (),
            views=0 if given else sizes.viewed_images(config, len(source)),
        ),
        probe=_probe_numbers(config, source, make) if config.evaluate.online_probe else 0,
        network=network,
        activations=activations,
        ranks=ranks,
        ranks_here=ranks_here,
        device=device,
        kernels=kernels,
        libraries_bytes=libraries_bytes,
    )


def planned(config: schema.Config, schedule: Schedule, facts: Facts) -> Plan:
    """config: with a number for each size."""
    trunk = _trunk_sizes(config, facts)
    parts_of_run = trunk_components(trunk) if trunk else []
    parts_of_run += _network_components(config, schedule, facts)
    kept = checkpoint_sizes(config, schedule, facts)
    rows = row_sizes(config, schedule, facts) if config.method.has_rows else None
    blocks = arrays = 0
    if rows:
        parts_of_run += active_components(rows[0]) + tier_components(rows[1])
        blocks, arrays = snapshot_rows_bytes(*rows)
        blocks = blocks if kept.stored_blocks else 0
    parts_of_run.append(
        snapshot_component(
            trunk=kept.trunk,
            optimizer=optimizer_state_bytes(trunk) if trunk else 0,
            active=arrays,
            blocks=blocks,
            tables=table_bytes(kept) // facts.ranks,
        )
    )
    parts_of_run += loader_components(_loader_sizes(config, schedule, facts)) + disk_components(kept)
    if facts.network:
        parts_of_run += evaluation_components(_evaluation_sizes(config, facts, kept.steps))
    if facts.probe:  # and their momentum
        parts_of_run.append(Component(DEVICE, names.ONLINE_PROBE, 2 * 4 * facts.probe))
    weights = facts.network[0] if facts.network else 0
    places = schedule.batch // facts.ranks
    parts_of_run += extra_components(config.method.planned_bytes(schedule.batch, places, weights))
    return plan_of(
        parts_of_run,
        libraries_bytes=facts.libraries_bytes,
        ranks=facts.ranks,
        ranks_here=facts.ranks_here,
        device_is_host=facts.device == "cpu",
    )


def disk_traffic(config: schema.Config, schedule: Schedule, facts: Facts) -> Traffic:
    """What the rows and checkpoints of all ranks read and write in a step."""
    moves = config.method.has_rows and not sizes.is_full(config, schedule) and config.store.kind == "zarr"
    return traffic(
        checkpoint_sizes(config, schedule, facts),
        slides_a_step=schedule.batch / schedule.window if moves else 0.0,
        slide_blocks=schedule.stride / schedule.block,
        every_steps=config.checkpoint.every_steps,
        reads=sizes.end_of(config, schedule) > schedule.steps_per_pass,
    )


def row_sizes(config: schema.Config, schedule: Schedule, facts: Facts) -> tuple[ActiveSizes, TierSizes]:
    """Of the row table of each rank."""
    ranks = facts.ranks
    views = len(config.method.trunk_views(list(config.data.sides)))
    active = ActiveSizes(
        active=sizes.slots_each(config, schedule, ranks),
        dim=config.method.dim,
        lanes=schedule.lanes // ranks,
        gathered=sizes.active_rows_of(config, schedule) if config.rows.sharding == "zero3" else 0,
        has_momentum=config.rows.rows_have_momentum,
        gradient_written=config.rows.rows_have_momentum
        and why_written(config.schedule.micro_batches, config.optimizer.rows_clip) is not None,
        micro_batches=config.schedule.micro_batches,
        samples=views * schedule.batch // config.schedule.micro_batches,
        kernels=facts.kernels,
    )
    kept = checkpoint_sizes(config, schedule, facts)
    tiers = TierSizes(
        block=schedule.block,
        row=sizes.row_bytes(config),
        places=sizes.host_places(config, schedule, ranks),
        in_memory=config.store.kind == "memory",
        waiting=sizes.waiting_blocks(config, schedule, ranks),
        stored_blocks=-(-kept.stored_blocks // ranks),
        written_blocks=-(-kept.changed_blocks // ranks),
        window=schedule.window,
        steps=kept.steps,
    )
    return active, tiers


def checkpoint_sizes(config: schema.Config, schedule: Schedule, facts: Facts) -> CheckpointSizes:
    """Of all ranks together."""
    trunk, steps = _trunk_sizes(config, facts), sizes.end_of(config, schedule)
    every_steps, keep = config.checkpoint.every_steps, config.checkpoint.keep
    pool = stored = changed = active = older = 0
    if config.method.has_rows:
        rows = sizes.active_rows_of(config, schedule)
        active = rows * slot_bytes(config.method.dim, config.rows.rows_have_momentum)
        # A row is in its block once it was evicted; before, it is in a slot alone.
        evicting = 0 if sizes.is_full(config, schedule) else max(0, steps - rows // schedule.batch)
        every = -(-schedule.positions_end // schedule.block) if evicting else 0
        pool = min(every, sizes.host_places(config, schedule, facts.ranks) * facts.ranks)
        window, slide = schedule.window // schedule.block, schedule.stride // schedule.block
        visited = window + (-(-steps * schedule.batch // schedule.window) - 1) * slide
        stored = every if facts.all_visited else min(every, visited)
        slides = -(-min(steps, every_steps) * schedule.batch // schedule.window)
        changed = min(every, pool + slides * slide)
        checkpoints = keep if facts.all_visited else min(keep, max(0, -(-evicting // every_steps) - 1))
        # In a first pass nothing is written again but what a checkpoint wrote of the pool.
        rewritten = facts.all_visited or steps > schedule.steps_per_pass
        older = checkpoints * min(stored, changed if rewritten else pool)
    return CheckpointSizes(
        trunk=(trunk_state_bytes(trunk) if trunk else 0)
        + config.method.shared_bytes(trunk.weights if trunk else 0)
        + 2 * 4 * facts.probe,
        active=active,
        pool_blocks=min(pool, stored),
        stored_blocks=stored,
        changed_blocks=changed,
        older_blocks=older,
        block=schedule.block,
        rows=(sizes.row_bytes(config), sizes.stored_row_bytes(config)) if config.method.has_rows else (0, 0),
        steps=steps,
        keep=keep,
    )


def zero_stage(config: schema.Config) -> int:
    """0 where it is none of ZeRO's, which DeepSpeed refuses."""
    stage = _zero(config).get("stage", 0)
    return stage if stage in (0, 1, 2, 3) else 0


def _zero(config: schema.Config) -> dict[str, Any]:
    block = config.deepspeed.get("zero_optimization")
    return block if isinstance(block, dict) else {}


def _trunk_sizes(config: schema.Config, facts: Facts) -> TrunkSizes | None:
    if not facts.network:
        return None
    return TrunkSizes(
        weights=facts.network[0],
        buffers=facts.network[1],
        stage=zero_stage(config),
        ranks=facts.ranks,
        bucket=_whole(_zero(config).get("reduce_bucket_size")),
        kept=len(parts.trunk_rule(config).kept),
    )


def _network_components(config: schema.Config, schedule: Schedule, facts: Facts) -> list[Component]:
    """What the network makes on the way."""
    if not facts.activations:
        return []
    sides = config.data.sides
    chosen = [sides[view] for view in config.method.trunk_views(list(sides))]
    places = schedule.batch // facts.ranks // config.schedule.micro_batches
    counted = facts.activations
    steps = counted.training(places, facts.images.channels, chosen)
    views = min(facts.looked_at.views, 1) * sides[0]  # of the first of them, where there are any
    images = min(EVALUATION_BATCH, max([facts.looked_at.gallery, *facts.looked_at.queries, 2 * facts.looked_at.views]))
    looks = counted.evaluation(images, facts.images.channels, max(config.data.image_size, views))
    return [
        Component(DEVICE, names.ACTIVATIONS, steps.all, TRAINING, small=steps.small, large=steps.large),
        Component(DEVICE, names.EVALUATED, looks.all, (EVALUATION,), small=looks.small, large=looks.large),
    ]


def _loader_sizes(config: schema.Config, schedule: Schedule, facts: Facts) -> LoaderSizes:
    images = facts.images
    places = schedule.batch // facts.ranks
    sides = config.data.sides
    # Pictures are uint8, and features float32.
    view_bytes = [facts.images.channels * side * side if facts.network else 4 * config.method.dim for side in sides]
    return LoaderSizes(
        views=sum(view_bytes) * places,
        held=batches_held(config.data.workers, facts.device == "cuda"),
        workers=config.data.workers,
        # Views of photos are made one image after the other, those of grey images all at once.
        at_once=places if config.data.augment.kind == "grey" else 1,
        largest=images.largest,
        mean=images.mean if config.data.cache_of == "decoded" else images.encoded,
        cached=_cached_images(config, schedule, facts),
        most_cached=None if config.data.cache_gib is None else round(config.data.cache_gib * 2**30),
        how=images.how,
        decodes=facts.network is not None,
    )


def _cached_images(config: schema.Config, schedule: Schedule, facts: Facts) -> int:
    shares = {"none": 0, "part": -(-schedule.size // facts.ranks), "full": schedule.size}
    return shares[config.data.cache]


def _evaluation_sizes(config: schema.Config, facts: Facts, steps: int) -> EvaluationSizes:
    assert facts.network
    return EvaluationSizes(
        gallery=facts.looked_at.gallery,
        queries=facts.looked_at.queries,
        width=facts.network[2],
        k=max(config.evaluate.k, *config.evaluate.more_k, 1),
        channels=facts.images.channels,
        side=config.data.image_size,
        repeated=config.evaluate.every_steps is not None and config.evaluate.every_steps < steps,
        views=facts.looked_at.views,
        on_gpu=facts.device == "cuda",
        both=facts.network[2] + (config.method.dim if config.evaluate.features == "backbone" else 0),
    )


def _numbers(make: Callable[[], nn.Module], features: str, dim: int) -> tuple[int, int, int]:
    """(numbers of the weights, numbers of the buffers, width of the features that are evaluated)."""
    with without_memory(needs_devices=False):
        network: Any = make()
    width = network.head[0].in_features if features == "backbone" else dim
    weights = sum(one.numel() for one in network.parameters())
    return weights, sum(one.numel() for one in network.buffers()), width


def _autocast(deepspeed: dict[str, Any]) -> torch.dtype | None:
    """The type of DeepSpeed's torch_autocast; None where it is off. What DeepSpeed refuses is refused when it is made."""
    block = deepspeed.get("torch_autocast")
    if not isinstance(block, dict) or not block.get("enabled"):
        return None
    return torch.float16 if block.get("dtype") in ("fp16", "float16") else torch.bfloat16


def _probe_numbers(config: schema.Config, source: Source, make: Callable[[], nn.Module]) -> int:
    """Weights of the online probe."""
    labels_N = parts.probe_labels(config, source)
    assert labels_N is not None
    return len(np.unique(labels_N[labels_N >= 0])) * (_numbers(make, "backbone", 0)[2] + 1)


def _whole(value: Any) -> int | None:
    try:
        return None if value is None else int(float(value))
    except (TypeError, ValueError):
        return None
