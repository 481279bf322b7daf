"""What a run will hold, by tier and item, before it holds it; printed by --dry-run and compared with what was measured.

    device   K rows: weight, momentum, and where it is written their gradient (4D bytes each); the trunk's weights, gradients and momentum
    host     the pool of blocks: window, blocks ahead, blocks behind that still have active rows or wait to be folded; blocks that
             wait to be written; the copy that a checkpoint is written from; what the loader has ready, decodes and keeps;
             what the evaluation looks at
    disk     every row that was visited, in as many versions as checkpoints differ in, and the checkpoints' own files

Only the disk, and a store in memory, depend on N. Left out: activations of the trunk, the block map (about 200 bytes a stored block), and
the Python process itself (libraries take a few hundred MB); peak_host_bytes in summary.json is the whole process.
"""

from dataclasses import dataclass

import numpy as np

from engine.evaluation.limits import EVALUATION_BATCH, RAW_SIDE, VOTE_BYTES

_FLOAT_BYTES, _INDEX_BYTES = 4, 8
# Of bytes of pixels, while an image is decoded. Photos: three of Pillow's images, which have 4 bytes a pixel, and two arrays of 3; grey
# images: two arrays and one of floats.
_WHILE_DECODED = 6
_KEPT_IMAGE_BYTES = 250  # beside the pixels, of an array that is kept


def host_places(
    *, window: int, stride: int, batch: int, block: int, size: int, full: bool, read_ahead: int, fold_steps: int
) -> int:
    """Blocks that the host tier is planned for: the window, those ahead, and as many behind as two slides leave with active rows.

    read_ahead   slides    fold_steps   steps that a block waits until it is folded, 0 without folding
    """
    every = -(-size // block)
    if full:
        return every
    # The order moves on by G S / W positions a step.
    waiting = -(-fold_steps * batch // window) * stride
    return min(-(-(window + (2 + read_ahead) * stride + waiting) // block), every)


@dataclass(frozen=True)
class ActiveSizes:
    """Of the active rows of a rank.

    active             K/R
    gathered           rows of all ranks that are gathered for the softmax, with their gradient; 0: rows stay where they are
    gradient_written   the rows' gradient is not spent where it is made (engine/methods/row_gradients.py)
    """

    active: int
    gathered: int
    gradient_written: bool


@dataclass(frozen=True)
class TierSizes:
    """Of what lies below the active rows of a rank.

    size, block, places   rows in all; of a block; blocks of the host tier
    in_memory             rows outside of it stay in host memory
    waiting_blocks        that may wait to be written
    stored_row_bytes      of a row on the disk
    changed_rows          visited between two checkpoints, at most
    """

    size: int
    block: int
    places: int
    in_memory: bool
    waiting_blocks: int
    stored_row_bytes: int
    changed_rows: int


def plan(
    *,
    dim: int,
    active: ActiveSizes | None,
    tiers: TierSizes | None,
    trunk_weights: int,
    views_bytes: int,
    batches_ready: int,
    keep: int,
) -> dict[str, dict[str, int]]:
    """Bytes by tier and item, of each rank: all counts are a rank's own.

    active, tiers   None: the method has no rows           trunk_weights   numbers in the trunk
    views_bytes     one batch of augmented images          batches_ready   that workers hold
    keep            checkpoints on disk
    """
    trunk_bytes = 2 * trunk_weights * _FLOAT_BYTES
    trunk_item = {"trunk (weights, gradients, momentum)": 3 * trunk_weights * _FLOAT_BYTES}
    # The trunk's and the active rows' files are put together in memory: the copy twice.
    copies, ready = 2 * trunk_bytes, {"batches ready": batches_ready * views_bytes}
    if not active or not tiers:
        return {
            "device": trunk_item,
            "host": {"copy that a checkpoint is written from": copies, **ready},
            "disk": {"trunk of each checkpoint": (keep + 1) * trunk_bytes},
        }
    row_bytes = 2 * dim * _FLOAT_BYTES + _INDEX_BYTES
    active_bytes = active.active * (2 * dim * _FLOAT_BYTES + 2 * _INDEX_BYTES)
    host_rows = tiers.places * tiers.block
    outside = {"blocks waiting to be written": tiers.waiting_blocks * tiers.block * row_bytes}
    if tiers.in_memory:
        outside = {"store of visited rows (memory)": tiers.size * row_bytes}
    versions = keep * min(tiers.changed_rows, tiers.size) * row_bytes
    return {
        "device": _active_items(active, dim) | trunk_item,
        "host": {
            "window, blocks ahead and behind": host_rows * (row_bytes + _INDEX_BYTES),
            "copy that a checkpoint is written from": host_rows * row_bytes + 2 * active_bytes + copies,
            **ready,
            **outside,
        },
        "disk": {
            "visited rows": tiers.size * tiers.stored_row_bytes,
            "their older versions, and those since the last checkpoint": versions,
            "active rows and trunk of each checkpoint": (keep + 1) * (active_bytes + trunk_bytes),
        },
    }


def _active_items(sizes: ActiveSizes, dim: int) -> dict[str, int]:
    """Bytes on the device."""
    row_bytes = dim * _FLOAT_BYTES
    items = {"active rows": sizes.active * row_bytes, "momentum of active rows": sizes.active * row_bytes}
    if sizes.gathered:
        # ZeRO-3 has two more copies of its part. Whole on every rank are the rows, their gradient, what autograd makes of the
        # two, and the bucket in which gradients are reduced; measured by tests/bench_ranks.py.
        items["rows and gradient while gathered"] = (5 * sizes.gathered + 2 * sizes.active) * row_bytes
    elif sizes.gradient_written:
        items["gradient of active rows"] = (
            2 * sizes.active * row_bytes
        )  # a micro-batch's part and the sum of those before it
    return items


def loader_items(*, processes: int, at_once: int, largest: int, cached: int, mean: float, how: str) -> dict[str, int]:
    """Bytes on the host, by item, of decoded images.

    processes   that decode                       at_once   images that each of them holds decoded
    largest     bytes of one image's pixels       mean      the same of the typical image
    cached      images kept in memory, or 0       how       in which way the two are known, for people
    """
    items = {f"images while they are decoded{how}": processes * at_once * largest * _WHILE_DECODED}
    if cached:
        items[f"decoded images that are kept{how}"] = round(cached * (mean + _KEPT_IMAGE_BYTES))
    return items


def evaluation_items(
    *, gallery: int, query_sets: int, queries: int, width: int, k: int, channels: int, side: int
) -> dict[str, int]:
    """Bytes on the host, by item, of an evaluation, on the rank that compares; a bound, as not all of it is there at the same time.

    gallery   images that are searched      query_sets, queries   sets, and images of the largest
    width     of the features               k                     neighbours that vote
    channels, side   of the images, pixels
    """
    raw = channels * min(side, RAW_SIDE) ** 2
    # While the singular values of a gallery are computed: itself, what is readable of it, and that twice in float64. Features of the
    # evaluation before are kept.
    rows_at_once = 6 * gallery + 2 * query_sets * queries
    items = {
        "evaluation: a batch of images": EVALUATION_BATCH * channels * side * side * _FLOAT_BYTES,
        "evaluation: features of gallery and queries": (rows_at_once + gallery + query_sets * queries)
        * width
        * _FLOAT_BYTES,
    }
    if query_sets:
        neighbours = min(k, gallery)
        items["evaluation: raw pixels of gallery and queries"] = rows_at_once * raw * _FLOAT_BYTES
        # Similarity, index and label of each neighbour.
        items["evaluation: neighbours and their votes"] = (
            queries * neighbours * (_FLOAT_BYTES + 2 * _INDEX_BYTES) + VOTE_BYTES
        )
    return items


def text(tiers: dict[str, dict[str, int]]) -> str:
    """A plan for people."""
    lines = []
    for tier, items in tiers.items():
        lines.append(f"{tier:7}{sum(items.values()) / 2**20:12,.1f} MiB")
        lines += [f"       {count / 2**20:12,.1f} MiB  {item}" for item, count in items.items()]
    return "\n".join(lines)


def predicted_shrink(*, gap_steps: float, eta: float, weight_decay: float, momentum: float) -> float:
    """By how much weight decay shortens a row that is away for `gap_steps`: exp(-gap * eta * lambda / (1 - m))."""
    return float(np.exp(-gap_steps * eta * weight_decay / (1 - momentum)))


def refuse_underflow(shrink: float) -> None:
    """ValueError where rows would come back shorter than a millionth: their gradient, which goes with 1/|w|, would explode."""
    if shrink < 1e-6:
        raise ValueError(
            f"between two visits weight decay would shorten a row by a factor of {shrink:.1e}, and its next gradient would explode;\n"
            "set optimizer.rows_weight_decay to 0 (the softmax does not see a row's length) or method.norm_floor above 0"
        )
