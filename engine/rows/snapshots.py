"""The rows as a reader wants them: every block as it is now, as it would be caught up, and checksums of each.

Nothing here changes the run: blocks are copied, active rows are laid over them, and catching up happens in the copy.
"""

from collections.abc import Callable, Iterator

import numpy as np

from engine.rows.active_rows import EMPTY, ActiveRows
from engine.rows.checks import CHECKED, by_block
from engine.rows.initial_rows import initial_rows
from engine.rows.store import NEVER_VISITED, Block, clear, empty_block, fill


class RowReader:
    """Blocks of a run between two steps. The active rows are copied once, here."""

    def __init__(self, rows: ActiveRows) -> None:
        self.rows = rows
        self.step = rows.log.steps
        self._w = rows.w_KD.cpu().numpy()
        self._u = None if rows.u_KD is None else rows.u_KD.cpu().numpy()
        occupied = np.flatnonzero(rows.position_K != EMPTY)
        order = occupied[np.argsort(rows.position_K[occupied])]
        self._slots, self._positions = order, rows.position_K[order]

    def blocks(self) -> list[int]:
        """Every block that is resident or stored, ascending."""
        return sorted({*self.rows.host.blocks(), *self.rows.host.store.blocks()})

    def block(self, number: int) -> Block:
        """The block as the schedule left it: an active row has last_step = the number of steps done."""
        host = self.rows.host
        rows = empty_block(host.block, host.weight.shape[1], host.weight.dtype, momentum=self._u is not None)
        weight, momentum, last_step = rows.weight, rows.momentum, rows.last_step
        if number in host:
            fill(rows, host.resident(number))
        elif host.store.holds(number):
            host.store.read_block(number, rows)
        else:
            clear(rows)
            return rows
        first, last = np.searchsorted(self._positions, [number * host.block, (number + 1) * host.block])
        slots, offsets = self._slots[first:last], self._positions[first:last] - number * host.block
        weight[offsets], last_step[offsets] = self._w[slots], self.step
        if momentum is not None and self._u is not None:
            momentum[offsets] = self._u[slots]
        return rows

    def caught_up(
        self, number: int, instances: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(w, u) of a block's rows as they are now, [C or fewer, D]; rows never visited included. u is None where rows have none.

        instances   the schedule's map from positions to instances. With rows that start at a feature, one never visited is NaN.
        """
        host, start = self.rows.host, self.rows.start
        positions = np.arange(number * host.block, min((number + 1) * host.block, host.size))
        rows = self.block(number)
        w, last_step = rows.weight[: len(positions)], rows.last_step[: len(positions)]
        u = None if rows.momentum is None else rows.momentum[: len(positions)]
        never = last_step == NEVER_VISITED
        if start.feature:
            w[never] = np.nan
        elif never.any():
            w[never] = initial_rows(start.seed, instances(positions[never]), w.shape[1], start.norm)
        return self.rows.caught_up(w, u, np.where(never, 0, last_step), never, self.step)

    def caught_up_blocks(
        self, instances: Callable[[np.ndarray], np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(instances of the block, caught-up w) for every block of the N positions, in the order of positions."""
        host = self.rows.host
        for number in range(-(-host.size // host.block)):
            ids = instances(np.arange(number * host.block, min((number + 1) * host.block, host.size)))
            filled = ids >= 0  # the order has gaps where instances were appended
            yield ids[filled], self.caught_up(number, instances)[0][filled]


def block_checks(reader: RowReader) -> np.ndarray:
    """The checksums of each visited block (engine/rows/checks.py), CHECKED [n], ascending. Reads nothing from a disk."""
    host = reader.rows.host
    stored = host.store.checks()
    away = stored[~np.isin(stored["block"], host.blocks())]
    return by_block(resident_checks(reader), away)


def resident_checks(reader: RowReader) -> np.ndarray:
    """The same of the blocks in the host tier, with the active rows laid over them."""
    resident = ((number, reader.block(number)) for number in reader.rows.host.blocks())
    visited = [(number, rows.checks()) for number, rows in resident if (rows.last_step != NEVER_VISITED).any()]
    return np.array(visited, CHECKED)
