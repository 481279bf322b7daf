"""SimCLR (Chen et al., ICML 2020): each view finds the other view of its image among all other views of the batch.

    NT-Xent    loss_a = -log( exp(s_ab) / sum over c != a of exp(s_ac) ),      s_ac = z_a.z_c / tau,  b: the other view of a's image
    DCL        loss_a = -log( exp(s_ab) / sum over c != a, b of exp(s_ac) )    (Yeh et al., ECCV 2022: the positive is no negative)

The loss of a step is the mean over both views of all images of all ranks. (The published code adds the means of the two sides: twice
this.) Both ends of a pair get their gradient. With p_ac the share of c in a's sum and w_a the weight of a's loss:

    dz_a = 1/tau sum over c of (w_a p_ac + w_c p_ca) z_c  -  1/tau (w_a + w_b) z_b

All features travel to every rank, and then one number of each sample, the log-sum-exp of its logits. So each rank computes with the
logits of its own samples alone, [2 P, 2 G], and no gradient travels. Empty places take no part: they weigh nothing and are nobody's
negative.
"""

import math
from typing import NamedTuple, Protocol

import numpy as np
import torch

from engine.methods.method import Components, Figure, Given, Method, MicroBatch
from engine.methods.row_gradients import is_finite
from engine.methods.travel import Travel

_COMPONENT = "agreement"


class Settings(Protocol):
    """What is read here of the settings (configs/methods.py)."""

    @property
    def temperature(self) -> float: ...
    @property
    def loss(self) -> str: ...


class Samples(NamedTuple):
    """The samples of all ranks, both views, and which are this rank's. X: all, the two views one after the other. M: this rank's.

    z_XD      features of unit length
    weight_X  float64, what each loss weighs; 0: an empty place
    mine_M    int64, where this rank's samples are among them
    """

    z_XD: torch.Tensor
    weight_X: torch.Tensor
    mine_M: torch.Tensor


class Contrast:
    """The logits of this rank's samples, [M, X], and what is computed of them. dcl: the positive is left out of the sum."""

    def __init__(self, samples: Samples, *, temperature: float, dcl: bool) -> None:
        self.samples, self.temperature, self.dcl = samples, temperature, dcl
        z_XD, mine_M = samples.z_XD, samples.mine_M
        partner_X = torch.arange(len(z_XD), device=z_XD.device).roll(len(z_XD) // 2)
        self.partner_M = partner_X[mine_M]
        # float64 from here on: a share of e^-20 is to keep its digits beside a log-sum-exp of 10.
        logits_MX = (z_XD[mine_M] @ z_XD.T).double() / temperature
        self.positive_M = logits_MX.gather(1, self.partner_M[:, None])[:, 0]
        is_empty_X = samples.weight_X == 0
        logits_MX.masked_fill_(is_empty_X | is_empty_X[mine_M, None], -math.inf)
        logits_MX.scatter_(1, mine_M[:, None], -math.inf)
        self.logits_MX = logits_MX
        self.finds_M = logits_MX.argmax(1) == self.partner_M
        if dcl:
            logits_MX.scatter_(1, self.partner_M[:, None], -math.inf)

    def lse(self) -> torch.Tensor:
        """The log-sum-exp of each of this rank's samples, float64 [M]; -inf where nothing is left to be told from."""
        return torch.logsumexp(self.logits_MX, 1)

    def loss_and_gradient(self, lse_X: torch.Tensor) -> tuple[float, torch.Tensor]:
        """(weighted loss of this rank's samples, the gradient of all ranks' loss at them [M, D]). lse_X: of all samples."""
        z_XD, weight_X, mine_M = self.samples
        lse_M, partner_M = lse_X[mine_M], self.partner_M
        # A sample with nothing to be told from has no loss: DCL of a single image.
        weight_X = torch.where(lse_X == -math.inf, 0.0, weight_X)
        weight_M = weight_X[mine_M]
        has_M = weight_M > 0
        loss_M = torch.where(has_M, (lse_M - self.positive_M) * weight_M, 0.0)

        def share(logits: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
            return torch.exp(logits - lse.masked_fill(lse == -math.inf, math.inf))

        # What takes no part has a logit of -inf, and so no share.
        toward_MX = share(self.logits_MX, lse_M[:, None]) * weight_M[:, None]
        toward_MX += share(self.logits_MX, lse_X[None, :]) * weight_X
        pair_M = torch.zeros_like(weight_M)
        for weight, lse in ((weight_M, lse_M), (weight_X[partner_M], lse_X[partner_M])):
            # p - 1 without cancellation, where the positive is among the sum.
            own = -torch.ones_like(lse) if self.dcl else torch.expm1(self.positive_M - lse)
            pair_M += torch.where(weight > 0, weight * own, 0.0)
        toward_MX.scatter_(1, partner_M[:, None], pair_M[:, None])
        return float(loss_M.sum()), toward_MX.to(z_XD.dtype) @ z_XD / self.temperature


class SimClr(Method):
    """
    agreement, found   of the last applied step: the mean cosine of the two views of an image, and the share of views whose
                       nearest other view is that of their own image
    """

    def __init__(self, given: Given, *, temperature: float, dcl: bool) -> None:
        super().__init__()
        self.ranks, self.lanes, self.batch = given.ranks, given.lanes, given.schedule.batch
        self.temperature, self.dcl = temperature, dcl
        self.agreement = self.found = 0.0
        self._seen = (0.0, 0.0)

    def chance_loss(self) -> float:
        """ln of the samples in the sum."""
        return math.log(max(2 * self.batch - (2 if self.dcl else 1), 1))

    def add(self, micro: MicroBatch) -> tuple[float, torch.Tensor, bool]:
        travel = Travel(self.ranks, self.lanes.in_batch_order(micro.forward_RP.size), micro.forward_RP, 2)
        z_XD = travel.gather(micro.z_XD)
        ranks_RP = np.broadcast_to(np.arange(self.ranks.size)[:, None], micro.forward_RP.shape)
        mine_M = torch.from_numpy(np.flatnonzero(travel.of_places(ranks_RP) == self.ranks.rank)).to(z_XD.device)
        weight_X = torch.from_numpy(travel.of_places(micro.weight_RP)).to(z_XD.device)
        contrast = Contrast(Samples(z_XD, weight_X, mine_M), temperature=self.temperature, dcl=self.dcl)
        told_M2 = torch.stack([contrast.lse(), contrast.finds_M.double()], 1)
        lse_X, finds_X = travel.gather(told_M2).unbind(1)
        loss, dz_MD = contrast.loss_and_gradient(lse_X)
        filled_X = weight_X > 0
        cosine_X = (z_XD * z_XD.roll(len(z_XD) // 2, 0)).sum(1)
        count = max(int(filled_X.sum()), 1)
        self._seen = float(cosine_X[filled_X].sum()) / count, float(finds_X[filled_X].sum()) / count
        return loss, dz_MD, math.isfinite(loss) and is_finite(micro.z_XD) and is_finite(dz_MD)

    def apply(self, lr: float) -> None:
        self.agreement, self.found = self._seen

    def discard(self) -> None:
        self._seen = (0.0, 0.0)

    def shared(self) -> Components:
        return {_COMPONENT: {"last": torch.tensor([self.agreement, self.found], dtype=torch.float64)}}

    def load_shared(self, components: Components) -> None:
        self.agreement, self.found = components[_COMPONENT]["last"].tolist()

    def figures(self, at_end: bool = False) -> dict[str, Figure]:
        return {
            "view_agreement": Figure(self.agreement, "largest"),
            "own_view_found": Figure(self.found, "largest"),
        }


def make(settings: Settings, given: Given) -> SimClr:
    """The method of a run; see configs/methods.py and Given."""
    return SimClr(given, temperature=settings.temperature, dcl=settings.loss == "dcl")
