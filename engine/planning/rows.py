"""What the row table of a rank takes: active rows and their softmax on the device, the tiers below them on the host.

    device   K/R rows: weight and momentum, 4D bytes each (momentum where rows have one); a gradient where it is written and not spent where
             it is made
    host     three whole numbers of a slot, and a queue of visits; the pool of blocks; blocks that wait to be written; the block map

None of it depends on N, but a store in memory, the block map (24 bytes a stored block, and as much again when it is merged) and the
logs of all steps. A schedule that reads files keeps nothing else; its order of a window is two arrays of W numbers, and three while it
is made.

Left out: what Python's own objects take, a few hundred bytes for each block of the pool.
"""

from dataclasses import dataclass

from engine.planning import components as names
from engine.planning.components import DEVICE, HOST, TRAINING, Component, passing

FLOAT_BYTES, INDEX_BYTES = 4, 8
_MAP_BYTES = 24  # of a stored block: its number, its generation, three checksums
_GENERATION_BYTES = 14
_MAP_NEWS = 2**16  # blocks that are remembered in a dict until the map is merged
_NEWS_BYTES = 360  # of each of them: an entry of the dict, its numbers, its tuple of checksums
_LOG_BYTES = 8 + 16  # of a step: its loss, its learning rate; the arrays grow by doubling and by an eighth
_LEVEL_BYTES = 64 / 8  # of a step: products of 16 steps and more, each of four numbers of 16 bytes
_RECENT, _RECENT_BYTES = 4096, 64 + 32 + 16 + 8  # the latest steps; of each: products of 1, 2, 4 and 8 steps


@dataclass(frozen=True)
class ActiveSizes:
    """Of the active rows of a rank.

    active             K/R                       dim   D
    lane_slots         slots of a lane, K/L, and the places of a batch that it has
    lanes              of this rank
    gathered           rows of all ranks that are gathered for the softmax, with their gradient; 0: rows stay where they are
    has_momentum       whether a row has one beside its weight
    gradient_written   the rows' gradient is not spent where it is made (engine/methods/row_gradients.py)
    samples            of all ranks in a micro-batch: V G / A
    kernels            what computes the softmax: "cpu", "cuda" or "aten"
    """

    active: int
    dim: int
    lanes: int
    gathered: int
    has_momentum: bool
    gradient_written: bool
    micro_batches: int
    samples: int
    kernels: str


@dataclass(frozen=True)
class TierSizes:
    """Of what lies below the active rows of a rank; counts are this rank's own.

    block             C                                        places       blocks of the pool
    row               bytes of a row in memory that is not active
    in_memory         rows outside of the pool stay in host memory
    waiting           blocks that may wait to be written
    stored_blocks     on the disk, or in the store in memory, at the end of the run
    written_blocks    since the last checkpoint, at most: the block map remembers them apart
    window            W of all ranks: the order of a window is made whole on each
    steps             of the run
    """

    block: int
    row: int
    places: int
    in_memory: bool
    waiting: int
    stored_blocks: int
    written_blocks: int
    window: int
    steps: int


def host_places(
    *, window: int, stride: int, batch: int, block: int, size: int, full: bool, read_ahead: int, fold_steps: int
) -> int:
    """Blocks that the pool is planned for: the window, those ahead, and as many behind as two slides leave with active rows.

    read_ahead   slides    fold_steps   steps that a block waits until it is folded, 0 without folding
    """
    every = -(-size // block)
    if full:
        return every
    # The order moves on by G S / W positions a step.
    waiting = -(-fold_steps * batch // window) * stride
    return min(-(-(window + (2 + read_ahead) * stride + waiting) // block), every)


def row_bytes(dim: int, has_momentum: bool = True) -> int:
    """Of a row in memory that is not active: weight, momentum, last_step."""
    return (2 if has_momentum else 1) * dim * FLOAT_BYTES + INDEX_BYTES


def slot_bytes(dim: int, has_momentum: bool) -> int:
    """Of an active row in a checkpoint: weight, momentum, position, stamp."""
    return row_bytes(dim, has_momentum) + INDEX_BYTES


def active_components(sizes: ActiveSizes) -> list[Component]:
    """On the device, and what the host keeps of each slot."""
    weights = sizes.active * sizes.dim * FLOAT_BYTES
    momentum = weights if sizes.has_momentum else 0
    gathered = written = 0
    if sizes.gathered:
        # ZeRO-3 has two more copies of its part. Whole on every rank are the rows, their gradient, what autograd makes of the
        # two, and the bucket in which gradients are reduced; measured by tests/bench_ranks.py.
        gathered = (5 * sizes.gathered + 2 * sizes.active) * sizes.dim * FLOAT_BYTES
    elif sizes.gradient_written:
        # The sum, and while it is added to it a micro-batch's part.
        written = min(2, sizes.micro_batches) * weights
    queue = 2 * 2 * (2 * sizes.active + sizes.lanes) * INDEX_BYTES  # twice the room, slot and stamp
    return [
        Component(DEVICE, names.ACTIVE_ROWS, weights),
        Component(DEVICE, names.ROWS_MOMENTUM, momentum),
        passing(DEVICE, names.ROWS_GRADIENT, written, TRAINING, weights),
        Component(DEVICE, names.ROWS_GATHERED, gathered),
        passing(DEVICE, names.SOFTMAX, softmax_bytes(sizes), TRAINING),
        Component(HOST, names.SLOTS, 2 * sizes.active * INDEX_BYTES + queue),
    ]


def softmax_bytes(sizes: ActiveSizes) -> int:
    """What the softmax makes on the way, for X samples and T rows of a tile (kernels/sampled_softmax).

    The compiled op for CPUs keeps sums for each of up to 17 parts of the rows; the other two keep a tile of logits and tiles of rows.
    """
    samples, dim, rows = sizes.samples, sizes.dim, sizes.gathered or sizes.active
    # Of the samples: two copies as the op wants them; in float64 the negatives' sum and five more while their gradient is made.
    of_samples = samples * dim * (2 * FLOAT_BYTES + 6 * 8)
    if sizes.kernels == "cpu":
        parts = min(17, -(-rows // 1024))
        return of_samples + parts * samples * (dim * FLOAT_BYTES + 2 * 8 + FLOAT_BYTES)
    numbers = 2**25 if sizes.kernels == "cuda" else 2**21
    tile = min(rows, max(256, numbers // (samples + dim) // 64 * 64))
    return of_samples + (samples * tile + 3 * tile * dim) * FLOAT_BYTES + rows * 9


def tier_components(sizes: TierSizes) -> list[Component]:
    """On the host, of what is not active."""
    block_bytes = sizes.block * sizes.row
    place_bytes = sizes.block * (sizes.row + INDEX_BYTES)  # the pool knows the slot of each row
    waiting = 0 if sizes.in_memory else sizes.waiting * block_bytes
    store = sizes.stored_blocks * block_bytes if sizes.in_memory else 0
    news = min(sizes.written_blocks, _MAP_NEWS)
    recent = min(_RECENT, max(64, 1 << (sizes.steps - 1).bit_length()))  # the arrays grow by doubling
    on_disk = 2 * sizes.stored_blocks * _MAP_BYTES + news * _NEWS_BYTES + sizes.written_blocks // 64 * _GENERATION_BYTES
    return [
        Component(HOST, names.WINDOW, sizes.places * place_bytes),
        passing(HOST, names.WAITING, waiting, TRAINING),
        Component(HOST, names.STORE_IN_MEMORY, store),
        Component(HOST, names.BLOCK_MAP, on_disk),
        Component(HOST, names.ORDER, 3 * sizes.window * INDEX_BYTES),
        Component(HOST, names.LOG, round(sizes.steps * (_LOG_BYTES + _LEVEL_BYTES)) + recent * _RECENT_BYTES),
    ]


def snapshot_rows_bytes(active: ActiveSizes, tiers: TierSizes) -> tuple[int, int]:
    """(blocks that a checkpoint copies at most, arrays of the active rows) of a rank."""
    return tiers.places * tiers.block * tiers.row, active.active * slot_bytes(active.dim, active.has_momentum)
