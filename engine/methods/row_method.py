"""What every method does that keeps a row for each image, whatever it makes of the rows: the row table behind the protocol of methods.

    prepare    at a window's first step its blocks come in, those behind it leave, and the next ones are begun to be read
    admitted   at a step's first micro-batch the rows of its images become active
    by_lane    slots and blocks, for checkpoints; the log has the learning rates that rows have seen, NaN where a step was skipped

A method derives from this and adds its loss and what becomes of the rows (engine/methods/pic.py, engine/methods/instdisc.py).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from datasets.batch import Batch
from engine.disk.body import RowSizes
from engine.disk.restored_rows import last_window, load_rows
from engine.disk.saved_checkpoint import SavedCheckpoint
from engine.methods.method import ActiveVectors, Figure, LaneState, Method, MicroBatch, Schedule
from engine.ranks.ranks import Ranks
from engine.rows.active_rows import EMPTY
from engine.rows.row_table import RowTable
from engine.rows.snapshots import RowReader, block_checks


class RowMethod(Method):
    """
    table         the rows, without content: `start` or `load_by_lane` gives it to them
    schedule      for the blocks of each window
    """

    def __init__(self, table: RowTable, ranks: Ranks, schedule: Schedule) -> None:
        super().__init__()
        self.table, self.ranks, self.schedule = table, ranks, schedule
        self.rows = table.rows
        self._batch: Batch | None = None
        self._slots_P: np.ndarray | None = None  # of the step's places, once their rows were admitted
        self._reads_ahead = False

    def chance_loss(self) -> float:
        """ln K."""
        return float(np.log(sum(self.ranks.share(self.rows.size))))

    def active_now(self) -> int:
        return int(sum(self.rows.used))

    def start(self) -> None:
        rows = self.rows
        if rows.full:
            rows.host.slide(rows.lanes.chosen(range(-(-rows.host.size // rows.host.block))), step=0)
            rows.fill(self.schedule.instances)

    def prepare(self, step: int) -> None:
        window, first = divmod(step, self.schedule.steps_per_window)
        rows = self.rows
        if first == 0:
            with self.stages("slide"):
                rows.host.slide(rows.lanes.chosen(self.schedule.window_blocks(window)), step)
        if first == 0 or not self._reads_ahead:
            slides = range(window + 1, window + 1 + self.table.read_ahead)
            ahead = [self.schedule.window_blocks(one) for one in slides]
            rows.host.read_ahead(rows.lanes.chosen(np.concatenate(ahead)))
            self._reads_ahead = True

    def begin(self, batch: Batch, filled_RP: np.ndarray) -> None:
        self._batch, self._slots_P = batch, None

    def admitted(self, z_XD: torch.Tensor, micro: MicroBatch) -> np.ndarray:
        """The slots of a micro-batch's places, int64 [B], -1 where one is empty; the step's rows are admitted with its first one.

        z_XD   the micro-batch's features in the rows' dtype
        """
        if self._slots_P is None:  # once an optimizer step
            with self.stages("admit"):
                self._slots_P = self._admit(z_XD, micro.places_B)
        return self._slots_P[micro.places_B]

    def end_step(self, eta: float | None) -> None:
        """Every step ends here, applied or not. eta: the learning rate that rows have seen; None: the step was skipped."""
        self.rows.log.append(eta)
        self._batch = self._slots_P = None

    def by_lane(self) -> LaneState:
        rows, host = self.rows, self.rows.host
        has_momentum = host.momentum is not None
        sizes = RowSizes(host.block, host.weight.shape[1], host.size, host.weight.dtype.name, has_momentum)
        return LaneState(sizes, self._blocks_to_save(), {**rows.state(), "resident": np.array(host.blocks(), np.int64)})

    def load_by_lane(self, checkpoint: SavedCheckpoint, log: dict[str, np.ndarray]) -> None:
        load_rows(checkpoint, self.rows, last_window(self.schedule, checkpoint.step), log["eta"])

    def log(self, first: int) -> dict[str, np.ndarray]:
        """The learning rates of the rows, NaN where a step was skipped."""
        return {"eta": self.rows.log.etas(first)}

    def block_checks(self) -> np.ndarray:
        return block_checks(RowReader(self.rows))

    def figures(self, at_end: bool = False) -> dict[str, Figure]:
        rows, host, store = self.rows, self.rows.host, self.rows.host.store
        visits = {"visited": Figure(rows.visited), "readmitted": Figure(rows.readmitted)}
        if at_end:
            return {"active": Figure(rows.size), "store_bytes": Figure(store.bytes), **visits}
        work = {
            "blocks_read": Figure(host.blocks_read),
            "block_read_seconds": Figure(host.read_seconds),
            "blocks_written": Figure(store.blocks_written),
            "block_write_seconds": Figure(store.write_seconds),
            "blocks_stored": Figure(store.blocks_stored),
        }
        return {**work, "active": Figure(self.active_now()), **visits}

    def active_vectors(self) -> ActiveVectors:
        """The active rows. Those of the full PIC that no step has visited yet are of nobody."""
        rows = self.rows
        ids_K = np.full(rows.size, -1, dtype=np.int64)
        visited_K = rows.stamp_K != EMPTY
        ids_K[visited_K] = self.schedule.instances(rows.position_K[visited_K])
        return ActiveVectors("row", ids_K, rows.w_KD, rows.mask())

    def take_waited_seconds(self) -> float:
        waited, self.rows.host.waited_seconds = self.rows.host.waited_seconds, 0.0
        return waited

    def _admit(self, z_XD: torch.Tensor, places_B: np.ndarray) -> np.ndarray:
        """The slot of each of this rank's places, int64 [P]; z_XD: of the first micro-batch."""
        batch = self._batch
        assert batch is not None
        first_view_PD = None
        if self.rows.start.feature:
            first_view_PD = z_XD.new_zeros(len(batch.filled_G), z_XD.shape[1])
            first_view_PD[torch.from_numpy(places_B)] = z_XD[: len(places_B)]
        return self.rows.admit(batch.step, batch.positions_G, batch.ids_G, first_view_PD)

    def _blocks_to_save(self) -> Iterator[tuple[int, Any]]:
        """Blocks of the host tier go to its store; from a store in memory, what the disk lacks goes on."""
        store = self.rows.host.store
        for block, block_rows in self.rows.host.take_unsaved():
            store.write_for_checkpoint(block, block_rows)
        yield from store.unsaved()
