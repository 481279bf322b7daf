"""PIC (Cao et al., NeurIPS 2020): every image is a class of its own, with a row of weights in a cosine softmax.

    loss = -log( exp(z.w_i / tau) / sum over the active rows of exp(z.w_j / tau) ),    z and w of unit length

or, with `method.loss` "dcl" (decoupled, Yeh et al., ECCV 2022), the same over the other active rows: w_i is not in the sum.

The rows are those of the row table (engine/rows): a step admits the rows of its images, takes the softmax over all active rows, and
makes one step of SGD for them. Rows that are not active are where dense SGD would have put them as soon as they are admitted. There
are two ways to share the active rows out among ranks, and a run takes one of them (`method.sharding`):

    lanes    engine/methods/lane_softmax.py: features travel, rows stay. Bytes on the wire do not depend on K
    zero3    engine/methods/zero3_softmax.py: the rows are a parameter that DeepSpeed partitions. O(K D) bytes a step
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from datasets.batch import Batch
from engine.disk.body import RowSizes
from engine.disk.manifest import SavedCheckpoint
from engine.disk.restored_rows import last_window, load_rows
from engine.methods.lane_softmax import LaneSoftmax
from engine.methods.method import Figure, Given, LaneState, Method, MicroBatch, Schedule
from engine.methods.row_gradients import row_gradient
from engine.methods.softmax import Samples, Softmax
from engine.ranks.ranks import Ranks
from engine.rows.row_table import RowTable
from engine.rows.snapshots import RowReader, block_checks


class Settings(Protocol):
    """What is read here of the settings (configs/methods.py)."""

    @property
    def temperature(self) -> float: ...
    @property
    def loss(self) -> str: ...


class Pic(Method):
    """
    table         the rows, without content: `start` or `load_by_lane` gives it to them
    softmax       over the active rows of all ranks
    schedule      for the blocks of each window
    rows_grad_V   of each view, False: its loss sends no gradient into rows
    """

    def __init__(
        self,
        table: RowTable,
        softmax: Softmax,
        ranks: Ranks,
        schedule: Schedule,
        *,
        rows_grad_V: list[bool],
    ) -> None:
        super().__init__()
        self.table, self.softmax, self.ranks, self.schedule = table, softmax, ranks, schedule
        self.rows = table.rows
        self.rows_grad_V = rows_grad_V
        self.words = [softmax.why]
        self.backends = {**self.rows.kernels, "row_update": softmax.rows_step}
        self.about = {"sharding": softmax.name}
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

    def add(self, micro: MicroBatch) -> tuple[float, torch.Tensor, bool]:
        z_XD = micro.z_XD.to(self.rows.w_KD.dtype)
        if self._slots_P is None:  # once an optimizer step
            with self.stages("admit"):
                self._slots_P = self._admit(z_XD, micro.places_B)
        samples = Samples(z_XD, self._slots_P[micro.places_B], micro.forward_RP, micro.weight_RP, self.rows_grad_V)
        return self.softmax.add(samples)

    def apply(self, lr: float) -> None:
        eta = lr * self.table.lr_scale
        self.softmax.apply(eta)
        self._end_step(eta)

    def discard(self) -> None:
        self.softmax.discard()
        self._end_step(None)

    def by_lane(self) -> LaneState:
        rows, host = self.rows, self.rows.host
        sizes = RowSizes(host.block, host.weight.shape[1], host.size, host.weight.dtype.name)
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

    def _end_step(self, eta: float | None) -> None:
        self.rows.log.append(eta)
        self._batch = self._slots_P = None

    def _blocks_to_save(self) -> Iterator[tuple[int, Any]]:
        """Blocks of the host tier go to its store; from a store in memory, what the disk lacks goes on."""
        store = self.rows.host.store
        for block, block_rows in self.rows.host.take_unsaved():
            store.write_for_checkpoint(block, block_rows)
        yield from store.unsaved()


def make(settings: Settings, given: Given) -> Pic:
    """The method of a run; see configs/methods.py and Given."""
    table, ranks = given.table(), given.ranks
    decoupled = settings.loss == "dcl"
    softmax: Softmax
    if table.partitioned:
        from engine.methods.zero3_softmax import Zero3Softmax  # deepspeed comes with it

        softmax = Zero3Softmax(
            table.rows, table.partitioned, ranks, temperature=settings.temperature, decoupled=decoupled
        )
    else:
        gradient = row_gradient(table.rows, ranks, micro_batches=given.micro_batches, clip=table.clip)
        softmax = LaneSoftmax(table.rows, ranks, gradient, temperature=settings.temperature, decoupled=decoupled)
    return Pic(table, softmax, ranks, given.schedule, rows_grad_V=given.rows_grad_V)
