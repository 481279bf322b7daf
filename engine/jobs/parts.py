"""From a config to the objects that it describes, each made of the sections that name it.

The rooms take what they need, one argument each, and know nothing of configs; here the keys become those arguments. deepspeed
and faiss are imported where they are used: they take long, and start threads, and the loader forks its workers before.
"""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from configs import schema
from configs.methods import Pic
from datasets.batch import Probe
from datasets.cached import CachedSource
from datasets.catalog import make_augmentation, make_probe, open_source
from datasets.grey import GreyAugment
from datasets.image_index import WrongIndex
from datasets.photos import PhotoAugment
from datasets.schedule import Schedule
from datasets.shown import shown
from datasets.source import Source
from engine.disk.files import Files
from engine.disk.manifest_body import check_run_state
from engine.jobs.sizes import capacities, host_places, is_full, slots_each, waiting_blocks
from engine.methods.lane_softmax import LaneSoftmax
from engine.methods.row_gradients import row_gradient
from engine.methods.softmax import Softmax
from engine.ranks.lanes import Lanes
from engine.ranks.ranks import Ranks
from engine.results.output import CHECKPOINTS, INDEX, UNREADABLE
from engine.rows.active_rows import ActiveRows, Start
from engine.rows.folding import Folding
from engine.rows.host_tier import HostTier
from engine.rows.implementations import implementations, names
from engine.rows.store import MemoryStore
from engine.rows.transitions import TransitionLog
from engine.training.learning_rate import learning_rate
from engine.training.reading import listed
from engine.trunk.network import Network, make_network

if TYPE_CHECKING:
    from engine.disk.manifest import Kept
    from engine.disk.write_behind import WriteBehind
    from engine.evaluation.evaluate import Protocol
    from engine.trunk.trunk import Trunk
    from engine.trunk.zero import PartitionedRows


def images_directory(config: schema.Config) -> Path | None:
    """Where the user's images lie; None where the source brings its own."""
    return Path(os.path.expanduser(config.data.root)) if config.data.root else None


def open_data(
    config: schema.Config, last: "Kept | None", grows: bool = True
) -> tuple[Source, GreyAugment | PhotoAugment, Schedule]:
    """Source, augmentation and schedule, checked against each other and against the run that they go on with.

    last    the checkpoint of that run. Images that were appended since then join the order from the next pass on
    grows   False: they are left out
    """
    data, wanted = config.data, config.schedule
    if last:
        check_run_state(last.body)
        schema.refuse_other_run(config, last.body["config"])
    history = last.body["segments"] if last else None
    size = sum(segment[0] for segment in history) if history else None
    source = _known_source(config, last, size) if last and size else _source(config)
    augmentation = make_augmentation(data.augment.model_dump(), data.image_size, source.channels)
    if len(source) < wanted.batch:
        raise ValueError(
            f"{len(source)} images do not fill one batch; set schedule.batch (with lanes and window) to at most that"
        )
    history, size = history or [[len(source), 0]], size or len(source)
    stripe = wanted.block * wanted.lanes
    window = wanted.window or -(-history[0][0] // stripe) * stripe  # a window does not grow with the images
    schedule = Schedule.from_history(
        history,
        seed=config.seed,
        window=window,
        stride=wanted.stride or window,
        batch=wanted.batch,
        block=wanted.block,
        lanes=wanted.lanes,
        reshuffle=wanted.reshuffle,
    )
    active = config.rows.active
    if active is not None and window < active < size:
        raise ValueError(
            f"method.active ({active}) is above schedule.window ({window}): rows would be kept that no window visits; "
            f"set method.active to at most {window}, or to null for all rows"
        )
    added = len(source) - size
    if last and grows and added:
        lanes = Lanes(schedule.lanes)
        before, schedule = capacities(config, schedule, lanes), schedule.grown(added, last.step)
        if is_full(config, schedule) or capacities(config, schedule, lanes) != before:
            raise ValueError(
                f"{added} images were added, but this run keeps all rows active, and their number cannot change; "
                "restore the images, or start over with --fresh and method.active below the number of images"
            )
        print(f"{added:,} images were added; they are visited from the next pass on")
    return source, augmentation, schedule


def _source(config: schema.Config, known: Path | None = None, known_count: int | None = None) -> Source:
    data = config.data
    return open_source(
        data.source,
        root=data.root,
        image_size=data.image_size,
        limit=data.limit,
        held_out=data.held_out,
        labels=data.labels,
        known=known,
        known_count=known_count,
        exclude=data.exclude,
        leave_out=Path(config.output),
    )


def _known_source(config: schema.Config, last: "Kept", size: int) -> Source:
    """The source in which the first `size` images are those of a checkpoint, by the index that numbers them or, where it is lost, without.

    Images that could not be read may have been repaired since: their file sizes then are in the checkpoint, and in unreadable.jsonl.
    ValueError where images changed, or where only the lost index could tell their order.
    """
    output = Path(config.output)
    kept = dict(last.body.get("unreadable", []))
    lists = [listed(output / UNREADABLE) | kept, kept]  # the file may say anything
    # A copy of checkpoints/ alone is enough to go on. Once a run has grown there are two; older runs have the second alone.
    places = [output / CHECKPOINTS / INDEX, output / INDEX] if config.data.source == "folder" else []
    indices = [place for place in places if place.exists()]
    missing = f"{shown(places[0])} is missing" if places and not indices else ""
    lost: WrongIndex | None = None
    compared = False
    for index in [*indices, None]:
        try:
            source = _source(config, index, size)
        except WrongIndex as error:
            lost = lost or error
            continue
        if len(source) >= size and any(source.fingerprint(size, were) == last.body["source"] for were in lists):
            if lost or missing:
                how = (
                    "it was not needed, as the images are in the order of their names"
                    if index is None
                    else f"{shown(index)} is whole"
                )
                print(f"{lost or missing}: {how}; it is made anew")
            return source
        compared = compared or index is not None
    if lost and not compared:
        raise lost
    if missing:
        raise ValueError(
            f"{missing}, which numbers the images, and in the order of their names they are not those of this run; "
            "restore that file (a copy is good), or the images as they were, or start over with --fresh"
        )
    raise ValueError(
        f"the images changed since {shown(config.output)} was started; restore them, or start over with --fresh. "
        "New images may be added, old ones must stay as they were"
    )


def cached(source: Source, schedule: Schedule, lanes: Lanes) -> CachedSource:
    """The source with the images of a rank's lanes in memory."""
    images = CachedSource(source)
    for block in lanes.chosen(range(-(-schedule.positions_end // schedule.block))).tolist():
        ids = schedule.instances(np.arange(block * schedule.block, (block + 1) * schedule.block))
        images.fill(ids[ids >= 0].tolist())
    print(f"{images.bytes / 2**20:,.0f} MiB of decoded images are kept in memory by each process")
    return images


def open_probe(config: schema.Config, source: Source, augmentation: GreyAugment | PhotoAugment) -> Probe | None:
    """How this run is evaluated; None where nothing is labelled."""
    data = config.data
    return make_probe(
        source,
        augmentation,
        root=data.root,
        image_size=data.image_size,
        held_out=data.held_out,
        gallery=config.evaluate.gallery,
    )


def protocol_of(config: schema.Config) -> "Protocol":
    from engine.evaluation.evaluate import Protocol

    asked = config.evaluate
    return Protocol(asked.k, asked.temperature, asked.features, asked.limit, asked.query_limit)


def learning_rate_at(config: schema.Config, schedule: Schedule, total: int, step: int) -> float:
    """The trunk's at a step of `total`."""
    wanted = config.optimizer
    return learning_rate(
        step,
        total=total,
        warmup=round(wanted.warmup_epochs * schedule.padded_size / schedule.batch),
        highest=wanted.lr,
        lowest=wanted.min_lr,
        warmup_factor=wanted.warmup_factor,
    )


def network_of(config: schema.Config) -> Network:
    backbone = config.backbone
    return make_network(backbone.name, backbone.layers, backbone.grid, backbone.hidden, config.method.dim, config.seed)


def make_trunk(config: schema.Config, network: torch.nn.Module, schedule: Schedule, ranks: Ranks) -> "Trunk":
    from engine.trunk.trunk import Trunk
    from engine.trunk.zero import ZeroEngine

    train = partial(
        ZeroEngine,
        weight_decay=config.optimizer.weight_decay,
        clip=config.optimizer.clip,
        config=config.deepspeed,
        **engine_settings(config, schedule, ranks),
    )
    return Trunk(network, ranks, train)


def partitioned_rows(config: schema.Config, schedule: Schedule, ranks: Ranks) -> "PartitionedRows":
    """The memory of the active rows where DeepSpeed holds it."""
    from engine.trunk.zero import PartitionedRows

    optimizer = config.optimizer
    return PartitionedRows(
        slots_each(config, schedule, ranks.size),
        config.method.dim,
        weight_decay=optimizer.decay_of_rows,
        clip=optimizer.rows_clip,
        **engine_settings(config, schedule, ranks),
    )


def engine_settings(config: schema.Config, schedule: Schedule, ranks: Ranks) -> dict[str, Any]:
    """What trunk and rows have in common under DeepSpeed."""
    return {
        "ranks": ranks.size,
        "places": schedule.batch // ranks.size,
        "micro_batches": config.schedule.micro_batches,
        "momentum": config.optimizer.momentum,
        "nesterov": config.optimizer.nesterov,
        "device": ranks.device,
    }


def make_softmax(config: schema.Config, rows: ActiveRows, held: "PartitionedRows | None", ranks: Ranks) -> Softmax:
    from engine.methods.zero3_softmax import Zero3Softmax

    assert isinstance(config.method, Pic)
    temperature = config.method.temperature
    if held:
        return Zero3Softmax(rows, held, ranks, temperature=temperature)
    gradient = row_gradient(rows, ranks, micro_batches=config.schedule.micro_batches, clip=config.optimizer.rows_clip)
    return LaneSoftmax(rows, ranks, gradient, temperature=temperature)


def make_disk(
    config: schema.Config, schedule: Schedule, files: Files, lanes: Lanes, threaded: bool = True
) -> "WriteBehind":
    """The store on disk, and the thread that writes to it."""
    from engine.disk.write_behind import WriteBehind
    from engine.disk.zarr_store import ZarrStore

    store = ZarrStore(
        files,
        block=schedule.block,
        dim=config.method.dim,
        positions=schedule.positions_end,
        dtype=np.float32,
        bfloat16=config.store.dtype == "bfloat16",
        lanes=lanes,
    )
    block_bytes = schedule.block * (8 * config.method.dim + 8)
    return WriteBehind(store, waiting_blocks(config, schedule, lanes.ranks) * block_bytes, threaded)


def make_rows(
    config: schema.Config,
    schedule: Schedule,
    device: torch.device,
    disk: "WriteBehind",
    kernels: dict[str, str],
    lanes: Lanes,
    held: "PartitionedRows | None" = None,
    reads_only: bool = False,
) -> ActiveRows:
    """Rows of some lanes, without content. reads_only: for looking at a checkpoint, without a thread that reads ahead.

    kernels   the implementation of each op; engine.rows.implementations.names
    held      who keeps the active rows, where it is not they themselves
    """
    optimizer, settings = config.optimizer, config.rows
    on_disk = reads_only or config.store.kind == "zarr"
    log = TransitionLog(optimizer.momentum, optimizer.decay_of_rows, optimizer.nesterov)
    host = HostTier(
        disk if on_disk else MemoryStore(),
        block=schedule.block,
        size=schedule.positions_end,
        dim=settings.dim,
        dtype=np.float32,
        places=host_places(config, schedule, lanes.ranks),
        readers=2 if on_disk and not reads_only else 0,
        folding=Folding(log) if config.store.fold else None,
        rewrite=config.store.dtype == "bfloat16",
        pinned=device.type == "cuda",
    )
    return ActiveRows(
        host,
        log,
        lanes=lanes,
        capacities=capacities(config, schedule, lanes),
        start=Start(config.seed, settings.init_norm, settings.init == "feature"),
        full=is_full(config, schedule) and settings.init == "random",
        norm_floor=settings.norm_floor,
        device=device,
        kernels=kernels,
        held_by=(held.w_SD, held.u_SD) if held else None,
    )


def rows_of(config: schema.Config, kept: "Kept", schedule: Schedule) -> ActiveRows:
    """The rows of a checkpoint, for reading."""
    from engine.training import checkpoint
    from engine.training.session import last_window

    lanes = Lanes(config.schedule.lanes)
    disk = make_disk(config, schedule, kept.files, lanes, threaded=False)
    disk.disk.restore([(kept.number, kept.entries(disk.disk))], kept.body["next_generation"])
    cpu = torch.device("cpu")
    # Looking at a checkpoint is not worth compiling for.
    kernels = names(implementations(cpu, torch.float32, config.method.dim, "aten"))
    rows = make_rows(config, schedule, cpu, disk, kernels, lanes, reads_only=True)
    checkpoint.load_rows(kept, rows, last_window(schedule, kept.step), kept.log()["eta"])
    return rows
