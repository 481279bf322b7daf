"""The numbers that follow from a config, its schedule and the number of ranks: K, steps, slots, places, blocks, bytes.

Whatever is sized by them (engine/jobs/row_table.py), and the plan that --dry-run prints, asks here, so that both say the same.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from configs import schema
from datasets.batch import Probe, UnreadableImage
from datasets.loader import batches_held
from datasets.schedule import Schedule
from datasets.source import Source
from engine.jobs import memory_plan
from engine.methods.row_gradients import why_written
from engine.ranks.lanes import Lanes
from engine.rows.folding import steps_to_fold

if TYPE_CHECKING:
    from engine.trunk.network import Network

_SAMPLED_IMAGES = 8  # images of a folder, to estimate how large the others are once they are decoded


def active_rows_of(config: schema.Config, schedule: Schedule) -> int:
    """K, clamped to N."""
    return min(config.rows.active or schedule.size, schedule.size)


def is_full(config: schema.Config, schedule: Schedule) -> bool:
    return active_rows_of(config, schedule) == schedule.size


def total_steps(config: schema.Config, schedule: Schedule) -> int:
    """Steps in which `epochs` times N images are seen (empty places of a ragged end are not images)."""
    return max(1, round(config.epochs * schedule.padded_size / schedule.batch))


def host_places(config: schema.Config, schedule: Schedule, ranks: int) -> int:
    """Blocks that the host tier of each rank is planned for."""
    optimizer = config.optimizer
    places = memory_plan.host_places(
        window=schedule.window,
        stride=schedule.stride,
        batch=schedule.batch,
        block=schedule.block,
        size=schedule.positions_end,
        full=is_full(config, schedule),
        read_ahead=config.store.read_ahead if config.store.kind == "zarr" else 0,
        fold_steps=steps_to_fold(optimizer.momentum, optimizer.decay_of_rows) if config.store.fold else 0,
    )
    return -(-places // ranks)


def waiting_blocks(config: schema.Config, schedule: Schedule, ranks: int) -> int:
    """Blocks of each rank that may wait to be written."""
    return max(1, (config.store.write_behind or 2 * schedule.stride // schedule.block) // ranks)


def stored_row_bytes(config: schema.Config) -> int:
    """Of a row on the disk that has left the window."""
    float_bytes = 2 if config.store.dtype == "bfloat16" else 4
    return (1 if config.store.fold else 2) * config.method.dim * float_bytes + 8


def capacities(config: schema.Config, schedule: Schedule, lanes: Lanes) -> list[int]:
    """Active rows of each of a rank's lanes."""
    share = schedule.size if is_full(config, schedule) else active_rows_of(config, schedule) // schedule.lanes
    return [min(share, schedule.lane_size(lane)) for lane in lanes.numbers]


def slots_each(config: schema.Config, schedule: Schedule, ranks: int) -> int:
    """Active rows of the rank that has most of them; lanes of a ragged order differ."""
    return max(sum(capacities(config, schedule, Lanes(schedule.lanes, rank, ranks))) for rank in range(ranks))


def check_shrink(config: schema.Config, schedule: Schedule, total: int) -> None:
    """Refuse a config in which rows would come back from a gap with nothing left of them."""
    optimizer = config.optimizer
    if not config.method.has_rows:
        return
    if config.rows.norm_floor == 0 and not is_full(config, schedule):
        # Stripes change places within half a pass.
        gap_passes = 1.5 if schedule.reshuffle else 1.0
        memory_plan.refuse_underflow(
            memory_plan.predicted_shrink(
                gap_steps=min(gap_passes * schedule.steps_per_pass, total),
                eta=optimizer.lr * optimizer.rows_lr_scale,
                weight_decay=optimizer.decay_of_rows,
                momentum=optimizer.momentum,
            )
        )


def image_bytes(source: Source) -> tuple[int, float, str]:
    """(largest, mean, how that is known) of the bytes of decoded images; those of grey sources are all of one size.

    Of a folder a few files are decoded: sizes on the disk say little, and nothing else is known before.
    """
    if source.channels == 1:
        size = source.image(0).nbytes
        return size, float(size), ""
    sizes = []
    for instance in np.linspace(0, len(source) - 1, min(_SAMPLED_IMAGES, len(source))).round().astype(int):
        try:
            sizes.append(source.image(int(instance)).nbytes)
        except UnreadableImage:
            continue
    if not sizes:
        return 0, 0.0, " (unknown: none of those looked at could be read)"
    return max(sizes), float(np.mean(sizes)), f" (estimated from {len(sizes)} of them)"


def loader_bytes(config: schema.Config, schedule: Schedule, source: Source, ranks: int) -> dict[str, int]:
    """What each rank holds of decoded images, by item."""
    largest, mean, how = image_bytes(source)
    return memory_plan.loader_items(
        processes=max(1, config.data.workers),
        # Views of photos are made one image after the other, those of grey images all at once.
        at_once=schedule.batch // ranks if config.data.augment.kind == "grey" else 1,
        largest=largest,
        cached=-(-len(source) // ranks) if config.data.cache else 0,
        mean=mean,
        how=how,
    )


def evaluation_bytes(config: schema.Config, source: Source, network: "Network", probe: Probe | None) -> dict[str, int]:
    """What the evaluation holds at most, by item. probe: what is asked; None: only features of a sample of the images."""
    asked = config.evaluate
    first = network.head[0]
    assert isinstance(first, torch.nn.Linear)
    return memory_plan.evaluation_items(
        gallery=min(asked.limit, probe.gallery.count if probe else min(2000, len(source))),
        query_sets=len(probe.queries) if probe else 0,
        queries=max((min(asked.query_limit, images.count) for images in probe.queries), default=0) if probe else 0,
        width=first.in_features if asked.features == "backbone" else config.method.dim,
        k=asked.k,
        channels=source.channels,
        side=config.data.image_size,
    )


def planned_bytes(
    config: schema.Config,
    schedule: Schedule,
    source: Source,
    network: "Network | None",
    sides: list[int],
    ranks: int,
    probe: Probe | None,
    pinned: bool = False,
) -> dict[str, dict[str, int]]:
    """Bytes by tier and item. Device and host are one rank's, the disk is that of all ranks, as in metrics.jsonl.

    network  None where features are given: then images are neither decoded nor evaluated
    sides    of the views     probe    what the evaluation asks     pinned    batches are put into page-locked memory, for a GPU
    """
    method = config.method
    rows = _row_sizes(config, schedule, len(source), ranks) if method.has_rows else (None, None)
    trunk_weights = sum(parameter.numel() for parameter in network.parameters()) if network else 0
    places = schedule.batch // ranks
    view_numbers = [source.channels * side * side if network else method.dim for side in sides]
    tiers = memory_plan.plan(
        dim=method.dim,
        active=rows[0],
        tiers=rows[1],
        trunk_weights=trunk_weights,
        views_bytes=4 * sum(view_numbers) * places,
        batches_ready=batches_held(config.data.workers, pinned),
        keep=config.checkpoint.keep,
    )
    if network:
        tiers["host"] |= loader_bytes(config, schedule, source, ranks) | evaluation_bytes(
            config, source, network, probe
        )
    tiers["disk"] = {item: count * ranks for item, count in tiers["disk"].items()}
    for tier, items in method.planned_bytes(schedule.batch, places, trunk_weights).items():
        tiers[tier] |= items
    return tiers


def _row_sizes(
    config: schema.Config, schedule: Schedule, size: int, ranks: int
) -> tuple[memory_plan.ActiveSizes, memory_plan.TierSizes]:
    """Of the row table of each rank. size: N."""
    active = memory_plan.ActiveSizes(
        active=slots_each(config, schedule, ranks),
        gathered=active_rows_of(config, schedule) if config.rows.sharding == "zero3" else 0,
        gradient_written=why_written(config.schedule.micro_batches, config.optimizer.rows_clip) is not None,
    )
    tiers = memory_plan.TierSizes(
        size=-(-size // ranks),
        block=schedule.block,
        places=host_places(config, schedule, ranks),
        in_memory=config.store.kind == "memory",
        waiting_blocks=waiting_blocks(config, schedule, ranks),
        stored_row_bytes=stored_row_bytes(config),
        changed_rows=(config.checkpoint.every_steps * schedule.batch + schedule.window) // ranks,
    )
    return active, tiers
