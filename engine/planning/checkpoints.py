"""What checkpoints take: memory while one is made, and the disk; and what rows and checkpoints read and write in a step.

While a checkpoint is made there are, one after the other,

    blocks + A + T      copies of the blocks that the disk lacks, of the active rows (A) and of the trunk with its optimizer (T)
    A + 2T + F          the blocks are on the disk; the files of the trunk and of its optimizer are put together, of which the larger
                        one (F) is copied once more. Those of rows and tables are written from the arrays themselves

On the disk are, for each kept checkpoint, A + T and the tables of blocks and steps; every visited row once; and as many older
versions of rows as checkpoints name. Between two checkpoints the rows change that are in the pool at one time of it:
its own, and a stride's more for each slide.

A row on the disk that has left the window has the bytes that `store.dtype` and `store.fold` say; what a checkpoint writes of the pool
is whole and exact, so rows of the pool are counted with 8D + 8 bytes, or 4D + 8 where they have no momentum.
"""

from dataclasses import dataclass

from engine.planning import components as names
from engine.planning.components import CHECKPOINT, DISK, HOST, SMALL_BYTES, Component

_CRC_BYTES = 3 * 4  # of a block
_BLOCK_ENTRY_BYTES = 24  # in the table of blocks
_STEP_ENTRY_BYTES = 16  # loss and learning rate


@dataclass(frozen=True)
class CheckpointSizes:
    """Of all ranks together, in bytes but for the counts.

    trunk          weights, buffers and what the optimizer keeps
    active         of the active rows: w, u, position, stamp
    pool_blocks    that the pools of all ranks hold        stored_blocks   at the end of the run
    block          C                                       rows            bytes of a row of the pool, and of one that has left it
    changed_blocks between two checkpoints                 older_blocks    versions of blocks beside the newest, at most
    steps, keep    of the run; checkpoints
    """

    trunk: int
    active: int
    pool_blocks: int
    stored_blocks: int
    changed_blocks: int
    older_blocks: int
    block: int
    rows: tuple[int, int]
    steps: int
    keep: int


def disk_components(sizes: CheckpointSizes) -> list[Component]:
    """Of all ranks together, at the most: just before a checkpoint replaces the oldest."""
    exact = min(sizes.pool_blocks, sizes.stored_blocks)
    stored = sizes.stored_blocks - exact
    exact_block, stored_block = (sizes.block * row + _CRC_BYTES for row in sizes.rows)
    older_exact = min(sizes.older_blocks, sizes.keep * exact)
    return [
        Component(DISK, names.STORED_ROWS, exact * exact_block + stored * stored_block),
        Component(
            DISK, names.OLDER_ROWS, older_exact * exact_block + (sizes.older_blocks - older_exact) * stored_block
        ),
        Component(DISK, names.CHECKPOINT_FILES, sizes.keep * checkpoint_bytes(sizes)),
    ]


def checkpoint_bytes(sizes: CheckpointSizes) -> int:
    """Of the files of one checkpoint, without its blocks."""
    return sizes.trunk + sizes.active + table_bytes(sizes)


def table_bytes(sizes: CheckpointSizes) -> int:
    """Of the tables of blocks and steps."""
    return sizes.stored_blocks * _BLOCK_ENTRY_BYTES + sizes.steps * _STEP_ENTRY_BYTES


def snapshot_component(*, trunk: int, optimizer: int, active: int, blocks: int, tables: int) -> Component:
    """Host memory of rank 0, which writes the trunk; of the others no more.

    trunk    weights, buffers, optimizer             optimizer   of them, what the optimizer keeps, which has a file of its own
    blocks   of the pool, at most                   active      weights and momentum of a rank's active rows, and their slots
    tables   of blocks and steps
    """
    file = max(trunk // 2, optimizer)  # the larger of the two
    # Of each moment (bytes, bytes of a piece); 0: small pieces.
    begin = [(blocks, 0), (active, active // 2), (trunk, 0)]
    # The tensors of a file of the trunk are copied once, and then put together.
    files = [(active, active // 2), (trunk, 0), (trunk, trunk // 2), (file, 0), (tables, tables)]
    moments = (begin, files)
    small, large = (
        max(sum(count for count, piece in moment if (piece < SMALL_BYTES) == is_small) for moment in moments)
        for is_small in (True, False)
    )
    most = max(sum(count for count, _ in moment) for moment in moments)
    return Component(HOST, names.SNAPSHOT, most, (CHECKPOINT,), small=small, large=large)


@dataclass(frozen=True)
class Traffic:
    """Bytes a step that the disk of all ranks reads and writes, on average."""

    read: float
    written: float


def traffic(
    sizes: CheckpointSizes, *, slides_a_step: float, slide_blocks: float, every_steps: int, reads: bool
) -> Traffic:
    """Blocks come and go with each slide; a checkpoint writes the pool and its files. reads: False in a first pass."""
    moved = slides_a_step * slide_blocks * (sizes.block * sizes.rows[1] + _CRC_BYTES)
    pool = sizes.pool_blocks * (sizes.block * sizes.rows[0] + _CRC_BYTES)
    return Traffic(moved if reads else 0.0, moved + (pool + checkpoint_bytes(sizes)) / every_steps)
