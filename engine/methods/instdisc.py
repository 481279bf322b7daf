"""Instance discrimination with a memory bank (Wu, Xiong, Yu, Lin, CVPR 2018), in its softmax form.

    loss = -log( exp(z.v_i / tau) / sum over the active rows of exp(z.v_j / tau) )       the gradient goes to z alone
    v_i <- normalise(mu v_i + (1 - mu) z_i)                                             after the step, for the visited images

The bank of vectors v, one an image, is the row table (engine/rows), whose rows have no momentum here. Nothing moves the vector of an image
that is not visited: so the catch-up of a row that comes back is the identity. A vector starts uniform in +-1/sqrt(D/3), of length
about 1, and has length 1 from its first visit on; the softmax takes its direction. With `method.init` "feature" it starts at the feature
of its first visit instead, as PIC's rows may: a first visit then pulls the feature nowhere, where a random vector pulls it to a place
that says nothing of the image.

The negatives of a step are the active rows, and all its samples have the same: those of the K images that were visited last. Published are
K random ones for each sample, which would gather 8.6 GB a step with 256 samples and K = 65,536. With `method.active` at N or more
they are the whole bank, as published without sampling.

Each image has one view, as published. The average takes one feature: more views would be more samples for the network, and nothing for
the bank. The vectors of a step are moved together and only if it is applied, so a skipped step leaves all as it was, and the micro-batches
of a step see the same bank. A vector moves on the rank that its lane belongs to, where its image's feature is: nothing travels.

Left out: the NCE form of the loss, whose every logit is a choice between data and noise; it needs another op, and is the weaker of the two.
"""

from typing import Protocol

import numpy as np
import torch
from torch.nn.functional import normalize

from engine.methods.lane_softmax import LaneSoftmax
from engine.methods.method import Given, MicroBatch, Schedule
from engine.methods.row_gradients import NoGradient
from engine.methods.row_method import RowMethod
from engine.methods.softmax import Samples
from engine.ranks.ranks import Ranks
from engine.rows.row_table import RowTable


class Settings(Protocol):
    """What is read here of the settings (configs/methods.py)."""

    @property
    def temperature(self) -> float: ...
    @property
    def bank_momentum(self) -> float: ...


class InstDisc(RowMethod):
    """
    table           the bank, without content; its rows have no momentum
    bank_momentum   mu
    """

    def __init__(
        self, table: RowTable, ranks: Ranks, schedule: Schedule, *, temperature: float, bank_momentum: float
    ) -> None:
        super().__init__(table, ranks, schedule)
        assert self.rows.u_KD is None
        self.softmax = LaneSoftmax(self.rows, ranks, NoGradient(), temperature=temperature)
        self.bank_momentum = bank_momentum
        self.words = [self.softmax.why]
        self.backends = dict(self.rows.kernels)
        self._visits: list[tuple[np.ndarray, torch.Tensor]] = []  # of this step: slots, and features [B, D]

    def add(self, micro: MicroBatch) -> tuple[float, torch.Tensor, bool]:
        z_BD = micro.z_XD.to(self.rows.w_KD.dtype)
        slots_B = self.admitted(z_BD, micro)
        assert len(z_BD) == len(slots_B), "the bank takes one view of an image"
        self._visits.append((slots_B, z_BD))
        return self.softmax.add(Samples(z_BD, slots_B, micro.forward_RP, micro.weight_RP, [False]))

    def apply(self, lr: float) -> None:
        self.softmax.apply(lr)
        for slots_B, z_BD in self._visits:
            self._move(slots_B, z_BD)
        self._visits.clear()
        self.end_step(lr)

    def discard(self) -> None:
        self.softmax.discard()
        self._visits.clear()
        self.end_step(None)

    def _move(self, slots_B: np.ndarray, z_BD: torch.Tensor) -> None:
        """One visit of each of these rows; slots are distinct, and -1 where a place is empty. Computed in float64: B D numbers are few."""
        filled_B = torch.from_numpy(slots_B >= 0).to(z_BD.device)
        slots = torch.from_numpy(slots_B).to(z_BD.device)[filled_B]
        v_BD, z_BD = self.rows.w_KD[slots].double(), z_BD[filled_B].double()
        moved_BD = normalize(self.bank_momentum * v_BD + (1 - self.bank_momentum) * z_BD)
        self.rows.w_KD[slots] = moved_BD.to(self.rows.w_KD)


def make(settings: Settings, given: Given) -> InstDisc:
    """The method of a run; see configs/methods.py and Given."""
    return InstDisc(
        given.table(),
        given.ranks,
        given.schedule,
        temperature=settings.temperature,
        bank_momentum=settings.bank_momentum,
    )
