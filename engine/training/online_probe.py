"""A linear classifier on the backbone's features while they are trained: what labels could be told from them, at no pass of its own.

    x = (h - mean) / deviation           h: the features that a step makes anyway, detached; running statistics of all ranks
    loss = cross entropy of W x + b      mean over the labelled samples of the step, all views and ranks; one step of SGD

Each sample is classified before it is learned from, so `probe_top1` is of samples that W has not seen in this view. It lags behind what a
classifier would reach on features that stand still (the linear evaluation), and it sees augmented views: it is for comparing moments of a
run, not methods.

Nothing of the run depends on it. It starts at zeros and draws nothing; it takes its features from a hook before the head, and no gradient
goes back. Its state is a component of checkpoints beside those of the method, and not in the digest. The rate is 1 / width, which no width
makes unstable: features of unit variance have a squared length of `width`. A step that is not applied to the trunk is none here either.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from datasets.batch import Batch
from engine.methods.method import forward_places
from engine.ranks.ranks import Ranks
from engine.training.step import Dealing

COMPONENT = "online_probe"
_MOMENTUM, _STATISTICS_MOMENTUM, _LEAST_VARIANCE = 0.9, 0.1, 1e-6


class OnlineProbe:
    """
    labels_N   int64, below 0: unknown
    width      of the features
    ranks      the ranks of the run; W is the same on all of them
    """

    def __init__(self, labels_N: np.ndarray, width: int, ranks: Ranks) -> None:
        self.ranks, self.rate = ranks, 1 / width
        self.classes = np.unique(labels_N[labels_N >= 0])
        assert len(self.classes) > 1
        self._class_N = np.where(labels_N >= 0, np.searchsorted(self.classes, labels_N), -1).astype(np.int32)
        device = ranks.device
        self.weight_CF = torch.zeros(len(self.classes), width + 1, device=device)  # the last column is b
        self.velocity_CF = torch.zeros_like(self.weight_CF)
        self.statistics_2W = torch.stack([torch.zeros(width), torch.ones(width)]).to(device)  # mean, variance
        self.steps = 0
        self._features: list[torch.Tensor] = []
        self._counted = torch.zeros(3, dtype=torch.float64)  # samples, right ones, sum of the losses

    def watch(self, head: nn.Module) -> None:
        """Take what goes into the head in training from here on."""

        def take(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if module.training and torch.is_grad_enabled():
                self._features.append(inputs[0].detach())

        head.register_forward_pre_hook(take)

    @torch.no_grad()
    def step(self, batch: Batch, filled_RP: np.ndarray, dealing: Dealing, applied: bool) -> None:
        """After the trunk's step: learn from its features. All ranks call it together.

        filled_RP   bool, which places of all ranks have an image      applied   whether the trunk made the step
        """
        features, self._features = self._features, []
        if not applied or not features:
            return
        classes_X = self._classes(batch, filled_RP, dealing)
        h_XW = torch.cat(features).float()
        known_X = torch.from_numpy(classes_X >= 0).to(h_XW.device)
        h_BW, target_B = h_XW[known_X], torch.from_numpy(classes_X[classes_X >= 0]).to(h_XW.device, torch.int64)
        sums_3W = torch.stack([h_BW.sum(0), h_BW.square().sum(0), torch.full_like(self.statistics_2W[0], len(h_BW))])
        sum_W, square_W, count_W = self.ranks.sum(sums_3W, COMPONENT)
        count = int(count_W[0])
        if not count:
            return
        mean_W = sum_W / count
        of_step_2W = torch.stack([mean_W, (square_W / count - mean_W.square()).clamp_min(0)])
        self.statistics_2W = of_step_2W if not self.steps else self.statistics_2W.lerp(of_step_2W, _STATISTICS_MOMENTUM)
        mean_W, variance_W = self.statistics_2W
        x_BF = torch.cat([(h_BW - mean_W) / (variance_W + _LEAST_VARIANCE).sqrt(), h_BW.new_ones(len(h_BW), 1)], 1)
        logits_BC = x_BF @ self.weight_CF.T
        slope_BC = torch.softmax(logits_BC, 1)
        slope_BC[torch.arange(len(target_B), device=target_B.device), target_B] -= 1
        gradient_CF = self.ranks.sum(slope_BC.T @ x_BF / count, COMPONENT)
        self._count(logits_BC, target_B)
        self.velocity_CF.mul_(_MOMENTUM).add_(gradient_CF)
        self.weight_CF.sub_(self.rate * self.velocity_CF)
        self.steps += 1

    def _classes(self, batch: Batch, filled_RP: np.ndarray, dealing: Dealing) -> np.ndarray:
        """The class of each of this rank's samples, in the order of their features, -1: unknown, int32 [X]."""
        classes_P = np.where(batch.ids_G >= 0, self._class_N[batch.ids_G], -1)
        parts: Sequence[np.ndarray] = [
            np.tile(classes_P[places[forward_places(filled_RP[:, places])[self.ranks.rank]]], len(dealing.views))
            for places in dealing.places(filled_RP.shape[1])
        ]
        return np.concatenate(parts)

    def _count(self, logits_BC: torch.Tensor, target_B: torch.Tensor) -> None:
        # Where nothing was learned yet all classes are alike; then none of them is an answer.
        right = int((logits_BC.argmax(1) == target_B).sum()) if self.steps else 0
        loss = float(cross_entropy(logits_BC, target_B, reduction="sum")) if len(target_B) else 0.0
        self._counted += torch.tensor([len(target_B), right, loss], dtype=torch.float64)

    def take_figures(self) -> dict[str, float | None]:
        """Of all ranks since the last call: probe_top1, a share, and probe_loss, in nats. All ranks call it together."""
        parts = self.ranks.share(self._counted.tolist())
        self._counted = torch.zeros(3, dtype=torch.float64)
        count, right, loss = (sum(part[place] for part in parts) for place in range(3))
        return {
            "probe_top1": right / count if count else None,
            "probe_loss": loss / count if count else None,
        }

    @property
    def bytes(self) -> int:
        """On the device."""
        return self.weight_CF.nbytes + self.velocity_CF.nbytes

    def state(self) -> dict[str, torch.Tensor]:
        """Copies on the host."""
        return {
            "classes": torch.from_numpy(self.classes.copy()),
            "weight": self.weight_CF.to("cpu", copy=True),
            "velocity": self.velocity_CF.to("cpu", copy=True),
            "statistics": self.statistics_2W.to("cpu", copy=True),
            "steps": torch.tensor([self.steps]),
        }

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what `state` gave; where the labels are others by now it begins anew, and that is said."""
        if not np.array_equal(state["classes"].numpy(), self.classes) or state["weight"].shape != self.weight_CF.shape:
            print("the labels are others than those of the checkpoint: the online probe begins anew")
            return
        self.weight_CF.copy_(state["weight"])
        self.velocity_CF.copy_(state["velocity"])
        self.statistics_2W = state["statistics"].to(self.weight_CF)
        self.steps = int(state["steps"])
