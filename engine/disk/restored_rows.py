"""The rows of a checkpoint, put back into fresh ones, and the blocks that it has."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from engine.disk.saved_checkpoint import SavedCheckpoint
from engine.ranks.lanes import ALL_LANES, Lanes
from engine.rows.active_rows import EMPTY, ActiveRows
from engine.rows.damaged import Damaged
from engine.rows.store import Block, MemoryStore, empty_block


class Windows(Protocol):
    """What is asked of the schedule."""

    @property
    def steps_per_window(self) -> int: ...
    def window_blocks(self, window: int) -> np.ndarray: ...


def last_window(schedule: Windows, step: int) -> np.ndarray:
    """The blocks of the window that the last of `step` steps was in."""
    return schedule.window_blocks(max(step - 1, 0) // schedule.steps_per_window)


def load_rows(checkpoint: SavedCheckpoint, rows: ActiveRows, window: np.ndarray, eta_T: np.ndarray) -> None:
    """Put fresh rows where the checkpoint left them; their store holds its blocks already, or is in memory and takes them.

    window   the blocks of the window that the last step was in
    eta_T    the learning rates so far, NaN where a step was skipped: the checkpoint's log

    Raises Damaged where the checkpoint has rows of other sizes than `rows`, or more active ones than these have slots.
    """
    rows.log.extend(eta_T)
    parts = checkpoint.active(rows.lanes)
    _require_room(checkpoint, rows, [part["position"] for part in parts])
    if isinstance(rows.host.store, MemoryStore):
        for block, content in stored_blocks(checkpoint, rows.lanes):
            rows.host.store.load(block, content)
    resident = np.sort(np.concatenate([part["resident"] for part in parts]))
    rows.host.load(rows.lanes.chosen(resident).tolist(), rows.lanes.chosen(window).tolist())
    for saved_part, part in zip(checkpoint.parts(rows.lanes), parts, strict=True):
        # Its counters go to the one rank that has the first of its lanes.
        rows.load(part, counts=rows.lanes.has(saved_part.rank))


def _require_room(checkpoint: SavedCheckpoint, rows: ActiveRows, positions: list[np.ndarray]) -> None:
    saved_sizes, host = checkpoint.row_sizes(), rows.host
    sizes = {"block": host.block, "dim": host.weight.shape[1], "dtype": host.weight.dtype.name}
    sizes["momentum"] = host.momentum is not None
    for name, size in sizes.items():
        if getattr(saved_sizes, name) != size:
            raise Damaged(
                f"its manifest has rows of {name} {getattr(saved_sizes, name)}, and this run of {name} {size}"
            )
    occupied = np.concatenate([part[part != EMPTY] for part in positions])
    if len(occupied) and occupied.max() >= host.size:
        raise Damaged(f"it has an active row at position {occupied.max():,}, and this run {host.size:,} positions")
    if len(np.unique(occupied)) < len(occupied):
        raise Damaged("two of its files have the same active row")
    per_lane = np.bincount(occupied // host.block % rows.lanes.count, minlength=rows.lanes.count)[rows.lanes.numbers]
    if (per_lane > rows.capacities).any():
        raise Damaged(
            f"it has {per_lane.max():,} active rows of one lane, and this run at most {max(rows.capacities):,}"
        )


def stored_blocks(checkpoint: SavedCheckpoint, lanes: Lanes = ALL_LANES) -> Iterator[tuple[int, Block]]:
    """Every block of a checkpoint that belongs to the lanes, ascending."""
    store, sizes = checkpoint.store(), checkpoint.row_sizes()
    for block, entry in sorted(checkpoint.entries(store, lanes).items()):
        out = empty_block(sizes.block, sizes.dim, np.dtype(sizes.dtype), sizes.momentum)
        store.read_entry(block, entry, out)
        yield block, Block(out.weight, None, out.last_step) if (out.last_step < 0).all() else out
