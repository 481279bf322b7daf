"""The numbers that follow from a config, its schedule and the number of ranks: K, steps, slots, places, blocks, bytes.

Whatever is sized by them (engine/jobs/row_table.py), and the plan (engine/jobs/planned.py), asks here, so that both say the same.
"""

import numpy as np

from configs import schema
from datasets.batch import UnreadableImage
from datasets.schedule import Schedule
from datasets.source import Source
from engine.planning import rows
from engine.ranks.lanes import Lanes
from engine.rows.folding import steps_to_fold
from engine.rows.shrink import predicted_shrink, refuse_underflow

_SAMPLED_IMAGES = 8  # images of a folder, to estimate how large the others are once they are decoded


def active_rows_of(config: schema.Config, schedule: Schedule) -> int:
    """K, clamped to N."""
    return min(config.rows.active or schedule.size, schedule.size)


def is_full(config: schema.Config, schedule: Schedule) -> bool:
    return active_rows_of(config, schedule) == schedule.size


def total_steps(config: schema.Config, schedule: Schedule) -> int:
    """Steps in which `epochs` times N images are seen (empty places of a ragged end are not images)."""
    return max(1, steps_of(config.epochs, schedule))


def steps_of(epochs: float, schedule: Schedule) -> int:
    """Steps in which so many times N images are seen."""
    return round(epochs * schedule.padded_size / schedule.batch)


def highest_rate(config: schema.Config) -> float:
    """The trunk's highest learning rate: lr, which may be that of another batch."""
    optimizer, batch = config.optimizer, config.schedule.batch
    return optimizer.lr if optimizer.lr_batch is None else optimizer.lr * batch / optimizer.lr_batch


def end_of(config: schema.Config, schedule: Schedule) -> int:
    """Steps of the run: all, or as far as `steps` asks."""
    total = total_steps(config, schedule)
    return min(config.steps or total, total)


def host_places(config: schema.Config, schedule: Schedule, ranks: int) -> int:
    """Blocks that the host tier of each rank is planned for."""
    optimizer = config.optimizer
    places = rows.host_places(
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


def row_bytes(config: schema.Config) -> int:
    """Of a row in memory that is not active."""
    return rows.row_bytes(config.rows.dim, config.rows.rows_have_momentum)


def stored_row_bytes(config: schema.Config) -> int:
    """Of a row on the disk that has left the window."""
    float_bytes = 2 if config.store.dtype == "bfloat16" else 4
    vectors = 1 if config.store.fold or not config.rows.rows_have_momentum else 2
    return vectors * config.rows.dim * float_bytes + 8


def capacities(config: schema.Config, schedule: Schedule, lanes: Lanes) -> list[int]:
    """Active rows of each of a rank's lanes."""
    share = schedule.size if is_full(config, schedule) else active_rows_of(config, schedule) // schedule.lanes
    return [min(share, schedule.lane_size(lane)) for lane in lanes.numbers]


def slots_each(config: schema.Config, schedule: Schedule, ranks: int) -> int:
    """Active rows of the rank that has most of them; lanes of a ragged order differ."""
    return max(sum(capacities(config, schedule, Lanes(schedule.lanes, rank, ranks))) for rank in range(ranks))


def viewed_images(config: schema.Config, count: int) -> int:
    """Images of which an evaluation compares two random views, of so many that there are."""
    return min(config.evaluate.views, config.evaluate.limit, count)


def check_shrink(config: schema.Config, schedule: Schedule, total: int) -> None:
    """Refuse a config in which rows would come back from a gap with nothing left of them."""
    optimizer = config.optimizer
    if not config.method.has_rows or not config.rows.rows_have_momentum:
        return  # nothing moves a row without momentum while it is away
    if config.rows.norm_floor == 0 and not is_full(config, schedule):
        # Stripes change places within half a pass.
        gap_passes = 1.5 if schedule.reshuffle else 1.0
        refuse_underflow(
            predicted_shrink(
                gap_steps=min(gap_passes * schedule.steps_per_pass, total),
                eta=highest_rate(config) * optimizer.rows_lr_scale,
                weight_decay=optimizer.decay_of_rows,
                momentum=optimizer.momentum,
            )
        )


def image_bytes(source: Source) -> tuple[int, float, float, str]:
    """(largest, mean, mean of the encoded ones, how that is known) of the bytes of decoded images; grey ones are all of one size.

    Of a folder a few files are decoded: sizes on the disk say little, and nothing else is known before.
    """
    if source.channels == 1:
        size = source.image(0).nbytes
        return size, float(size), 0.0, ""
    sizes, encoded = [], []
    for instance in np.linspace(0, len(source) - 1, min(_SAMPLED_IMAGES, len(source))).round().astype(int):
        try:
            sizes.append(source.image(int(instance)).nbytes)
            encoded.append(source.file_bytes(int(instance)))
        except UnreadableImage:
            continue
    if not sizes:
        return 0, 0.0, 0.0, " (unknown: none of those looked at could be read)"
    return max(sizes), float(np.mean(sizes)), float(np.mean(encoded)), f" (estimated from {len(sizes)} of them)"
