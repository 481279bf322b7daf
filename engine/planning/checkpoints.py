"""What checkpoints take: memory while one is made, and the disk; and what rows and checkpoints read and write in a step.

While a checkpoint is made there are, one after the other,

    blocks + A + T               copies of the blocks that the disk lacks, of the active rows (A) and of the trunk with its momentum (T)
    2A + 2T + T/2 + map          blocks are on the disk; the files of all that is left lie in memory, the largest of the trunk's two
                                 once more while it is put together

On the disk are, for each kept checkpoint, A + T and the tables of blocks and steps; every visited row once; and as many older
versions of rows as checkpoints name. Between two checkpoints the rows change that are in the pool at one time of it:
its own, and a stride's more for each slide.

A row on the disk that has left the window has the bytes that `store.dtype` and `store.fold` say; what a checkpoint writes of the pool
is whole and exact, so rows of the pool are counted with 8D + 8 bytes.
"""

from dataclasses import dataclass

from engine.planning import components as names
from engine.planning.components import CHECKPOINT, DISK, HOST, Component

_CRC_BYTES = 3 * 4  # of a block
_BLOCK_ENTRY_BYTES = 24  # in the table of blocks
_STEP_ENTRY_BYTES = 16  # loss and learning rate


@dataclass(frozen=True)
class CheckpointSizes:
    """Of all ranks together, in bytes but for the counts.

    trunk          weights, buffers and momentum
    active         of the active rows: w, u, position, stamp
    pool_blocks    that the pools of all ranks hold        stored_blocks   at the end of the run
    block          C                                       exact_row, stored_row   bytes of a row, of the pool and of what has left
    changed_blocks between two checkpoints                 steps           of the run
    keep           checkpoints
    rewritten      whether blocks that change between two checkpoints were stored before: False in a run's first pass
    """

    trunk: int
    active: int
    pool_blocks: int
    stored_blocks: int
    changed_blocks: int
    block: int
    exact_row: int
    stored_row: int
    steps: int
    keep: int
    rewritten: bool


def disk_components(sizes: CheckpointSizes) -> list[Component]:
    """Of all ranks together, at the most: just before a checkpoint replaces the oldest."""
    exact = min(sizes.pool_blocks, sizes.stored_blocks)
    stored = sizes.stored_blocks - exact
    exact_block, stored_block = (sizes.block * row + _CRC_BYTES for row in (sizes.exact_row, sizes.stored_row))
    old = sizes.changed_blocks if sizes.rewritten else exact
    older = sizes.keep * min(old, sizes.stored_blocks)
    older_exact = min(older, sizes.keep * exact)
    return [
        Component(DISK, names.STORED_ROWS, exact * exact_block + stored * stored_block),
        Component(DISK, names.OLDER_ROWS, older_exact * exact_block + (older - older_exact) * stored_block),
        Component(DISK, names.CHECKPOINT_FILES, sizes.keep * checkpoint_bytes(sizes)),
    ]


def checkpoint_bytes(sizes: CheckpointSizes) -> int:
    """Of the files of one checkpoint, without its blocks."""
    return sizes.trunk + sizes.active + sizes.stored_blocks * _BLOCK_ENTRY_BYTES + sizes.steps * _STEP_ENTRY_BYTES


def snapshot_component(
    *, trunk: int, active: int, blocks: int, table_blocks: int, steps: int, is_first: bool = True
) -> Component:
    """Host memory of the rank that writes most, in bytes: rank 0, which writes the trunk.

    trunk   weights, buffers and momentum; every rank makes the copy      active, blocks   of this rank
    """
    tables = table_blocks * _BLOCK_ENTRY_BYTES + steps * _STEP_ENTRY_BYTES
    begin = blocks + active + trunk
    end = 2 * active + (2 * trunk + trunk // 2 if is_first else trunk) + 2 * tables
    return Component(HOST, names.SNAPSHOT, max(begin, end), (CHECKPOINT,))


@dataclass(frozen=True)
class Traffic:
    """Bytes a step that the disk of all ranks reads and writes, on average."""

    read: float
    written: float


def traffic(
    sizes: CheckpointSizes, *, slides_a_step: float, slide_blocks: float, every_steps: int, reads: bool
) -> Traffic:
    """Blocks come and go with each slide; a checkpoint writes the pool and its files. reads: False in a first pass."""
    moved = slides_a_step * slide_blocks * (sizes.block * sizes.stored_row + _CRC_BYTES)
    pool = sizes.pool_blocks * (sizes.block * sizes.exact_row + _CRC_BYTES)
    return Traffic(moved if reads else 0.0, moved + (pool + checkpoint_bytes(sizes)) / every_steps)
