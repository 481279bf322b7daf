"""PIC (Cao et al., NeurIPS 2020): every image is a class of its own, with a row of weights in a cosine softmax.

    loss = -log( exp(z.w_i / tau) / sum over the active rows of exp(z.w_j / tau) ),    z and w of unit length

or, with `method.loss` "dcl" (decoupled, Yeh et al., ECCV 2022), the same over the other active rows: w_i is not in the sum.

The rows are those of the row table (engine/rows): a step admits the rows of its images, takes the softmax over all active rows, and
makes one step of SGD for them. Rows that are not active are where dense SGD would have put them as soon as they are admitted. There
are two ways to share the active rows out among ranks, and a run takes one of them (`method.sharding`):

    lanes    engine/methods/lane_softmax.py: features travel, rows stay. Bytes on the wire do not depend on K
    zero3    engine/methods/zero3_softmax.py: the rows are a parameter that DeepSpeed partitions. O(K D) bytes a step
"""

from typing import Protocol

import torch

from engine.methods.lane_softmax import LaneSoftmax
from engine.methods.method import Given, MicroBatch, Schedule
from engine.methods.row_gradients import row_gradient
from engine.methods.row_method import RowMethod
from engine.methods.softmax import Samples, Softmax
from engine.ranks.ranks import Ranks
from engine.rows.row_table import RowTable


class Settings(Protocol):
    """What is read here of the settings (configs/methods.py)."""

    @property
    def temperature(self) -> float: ...
    @property
    def loss(self) -> str: ...


class Pic(RowMethod):
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
        super().__init__(table, ranks, schedule)
        self.softmax, self.rows_grad_V = softmax, rows_grad_V
        self.words = [softmax.why]
        self.backends = {**self.rows.kernels, "row_update": softmax.rows_step}
        self.about = {"sharding": softmax.name}

    def add(self, micro: MicroBatch) -> tuple[float, torch.Tensor, bool]:
        z_XD = micro.z_XD.to(self.rows.w_KD.dtype)
        slots_B = self.admitted(z_XD, micro)
        return self.softmax.add(Samples(z_XD, slots_B, micro.forward_RP, micro.weight_RP, self.rows_grad_V))

    def apply(self, lr: float) -> None:
        eta = lr * self.table.lr_scale
        self.softmax.apply(eta)
        self.end_step(eta)

    def discard(self) -> None:
        self.softmax.discard()
        self.end_step(None)


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
