"""Not tests: the loss and its gradient at z with some of N rows as negatives; what they miss of those over all. Float64, torch alone.

    loss = ln(e_i + a sum over j of e_j) - z.w_i / tau,    e_j = exp(z.w_j / tau), over the J rows j that were drawn; never i, the own row

    a = 1                the softmax over the drawn rows as it is
    a = (N - 1) / J      the term "logQ": a row that was drawn stands for all that it was drawn from, so that the mean of the sum over
                         uniform draws from all rows is the sum over all rows

The loss takes the directions of z and w alone, so its gradient at z has no part along z.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


class Samples:
    """B features with the rows that they are compared with.

    z_BD          of unit length            w_ND        rows, of any length
    own_B         int64, the row of each feature
    """

    def __init__(self, z_BD: torch.Tensor, w_ND: torch.Tensor, own_B: np.ndarray, temperature: float) -> None:
        self.w_ND = torch.nn.functional.normalize(w_ND.double())
        self.z_BD, self.temperature, self.own_B = z_BD.double(), temperature, torch.from_numpy(own_B)
        logits_BN = self.z_BD @ self.w_ND.T / temperature
        self.highest_B = logits_BN.amax(1)
        self.own_logit_B = logits_BN.gather(1, self.own_B[:, None])[:, 0]
        # Exponentials of the others alone: the own row is in every sum once, whatever was drawn.
        self.e_BN = logits_BN.sub_(self.highest_B[:, None]).exp_()
        self.own_e_B = self.e_BN.gather(1, self.own_B[:, None])[:, 0]
        self.e_BN.scatter_(1, self.own_B[:, None], 0.0)

    def all(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss [B], dloss/dz [B, D]) over all N rows."""
        return self._loss_and_gradient(self.e_BN, self.w_ND, torch.ones(len(self.own_B), dtype=torch.float64))

    def some(self, drawn_K: np.ndarray, weighted: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The same over the rows `drawn_K`, distinct, own ones left out. weighted: with the term logQ of uniform draws from all N."""
        drawn = torch.from_numpy(drawn_K)
        others_B = len(drawn) - torch.isin(self.own_B, drawn).double()
        weight_B = (len(self.w_ND) - 1) / others_B if weighted else torch.ones_like(others_B)
        return self._loss_and_gradient(self.e_BN[:, drawn], self.w_ND[drawn], weight_B)

    def _loss_and_gradient(
        self, e_BK: torch.Tensor, w_KD: torch.Tensor, weight_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        own_BD = self.w_ND[self.own_B]
        sum_B = self.own_e_B + weight_B * e_BK.sum(1)
        loss_B = sum_B.log() + self.highest_B - self.own_logit_B
        mean_BD = (self.own_e_B[:, None] * own_BD + weight_B[:, None] * (e_BK @ w_KD)) / sum_B[:, None]
        gradient_BD = (mean_BD - own_BD) / self.temperature
        return loss_B, gradient_BD - self.z_BD * (self.z_BD * gradient_BD).sum(1, keepdim=True)


@dataclass(frozen=True)
class Errors:
    """Against all rows, in nats and in lengths of the gradient over all rows.

    loss_bias, loss_noise        of the batch's mean loss: mean error, and standard deviation over draws
    gradient_bias                length of (mean gradient over draws - true one), root of the mean square over samples
    gradient_noise               the same of (gradient - its mean over draws)
    gradient_length              of the mean gradient along the true one; 1 where it is not shortened
    """

    loss_bias: float
    loss_noise: float
    gradient_bias: float
    gradient_noise: float
    gradient_length: float


def errors(samples: Samples, draw: Callable[[], np.ndarray], weighted: bool, draws: int) -> Errors:
    """Over so many calls of `draw`, which gives rows; at least two. The bias is corrected for their number."""
    true_loss_B, true_BD = samples.all()
    loss_R, sum_BD, squares = [], torch.zeros_like(true_BD), 0.0
    for _ in range(draws):
        loss_B, gradient_BD = samples.some(draw(), weighted)
        loss_R.append(float((loss_B - true_loss_B).mean()))
        sum_BD += gradient_BD
        squares += float(gradient_BD.square().sum())
    mean_BD, length = sum_BD / draws, float(true_BD.square().sum())
    noise = max(0.0, squares / draws - float(mean_BD.square().sum())) * draws / (draws - 1)
    bias = max(0.0, float((mean_BD - true_BD).square().sum()) - noise / draws)
    return Errors(
        float(np.mean(loss_R)),
        float(np.std(loss_R, ddof=1)),
        (bias / length) ** 0.5,
        (noise / length) ** 0.5,
        float((mean_BD * true_BD).sum()) / length,
    )


def window_order(schedule, window: int) -> np.ndarray:
    """Every lane's positions of a window in the order of visit, int64 [L, W/L], -1 where a place is empty."""
    steps = range(window * schedule.steps_per_window, (window + 1) * schedule.steps_per_window)
    return np.concatenate([schedule.positions(step).reshape(schedule.lanes, -1) for step in steps], axis=1)


def recent(schedule, step: int, active: int, generator: np.random.Generator | None = None) -> np.ndarray:
    """The positions that are active in a step, its own visits included: those of each lane's last K/L distinct visits. int64, ascending.

    generator   None: as the run has them. Else each window is shuffled anew, but for the step's own places: another order of visits,
                with the same images in each window
    """
    window, place = divmod(step, schedule.steps_per_window)
    share = schedule.batch // schedule.lanes
    found: list[list[int]] = [[] for _ in range(schedule.lanes)]
    per_lane, now = active // schedule.lanes, slice(place * share, (place + 1) * share)
    for number in range(window, -1, -1):
        order = window_order(schedule, number)
        for lane, positions in enumerate(order):
            visits = positions
            if generator is not None and number == window:
                rest = generator.permutation(np.delete(positions, np.r_[now]))
                visits = np.insert(rest, np.full(share, now.start), positions[now])
            elif generator is not None:
                visits = generator.permutation(positions)
            visits = visits[: now.stop] if number == window else visits
            known = found[lane]
            # The latest first; each position once, which dict keeps in this order.
            fresh = dict.fromkeys([*known, *(int(one) for one in visits[::-1] if one >= 0)])
            found[lane] = list(fresh)[:per_lane]
        if all(len(known) == per_lane for known in found):
            break
    return np.sort(np.concatenate([np.array(known, np.int64) for known in found]))
