"""The published linear probe: views of the images go through the trunk, which does not change, and one classifier is trained on them.

A view is a crop of random area and aspect, resized, and mirrored half of the time. SGD with momentum 0.9, one rate for the whole
batch that falls to zero by a cosine over all steps. Weights start normal with a deviation of 0.01, as the published codes have
it, biases at zero. Features are taken as the backbone gives them; so the right learning rate depends on their scale, 30 for
MoCo's networks, 0.1 for SimCLR's.

The trunk is in evaluation mode (engine/probing/frozen.py): one public code leaves it in training mode, where its statistics drift.

Each of R ranks sends its part of a batch through the network. Features travel, 4 B D bytes a step in all, and every rank takes
the same step of the same classifier: cheaper than sending its gradient, 4 D C bytes, unless there are few classes.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from datasets.batch import Batch
from engine.probing.frozen import FrozenTrunk
from engine.probing.heads import Heads, cosine
from engine.probing.kept import Kept
from engine.probing.tellers import Tell
from engine.ranks.ranks import Ranks

DEVIATION = 0.01


@dataclass(frozen=True)
class Course:
    """total: steps; epoch: those of one pass; lr: the highest learning rate; tell_every: steps between two that are told."""

    total: int
    epoch: int
    lr: float
    weight_decay: float
    tell_every: int


class Published:
    """
    trunk     of this rank
    labels_N  int64, the class of each image of the source
    kept      of rank 0; what a killed probe goes on from
    `first_step` is known when the object is made; `train` goes on from there.
    `unreadable`: the images of all ranks that could not be decoded, or of which a view had no finite features
    """

    def __init__(
        self, trunk: FrozenTrunk, heads: Heads, labels_N: np.ndarray, course: Course, kept: Kept, ranks: Ranks
    ) -> None:
        self._trunk, self.heads, self._course, self._kept, self._ranks = trunk, heads, course, kept, ranks
        self._labels_N = torch.from_numpy(labels_N)
        self.unreadable: set[int] = set()
        self._rate_1 = torch.ones(1, device=trunk.device)
        self.first_step, state = ranks.from_first(kept.load() or (0, {}))
        if state:
            heads.load(state)
            self.unreadable.update(state["unreadable"].tolist())

    def train(self, stream: Iterator[Batch], tell: Tell) -> None:
        """Take all steps that are left. stream: this rank's part of each batch, from `first_step` on. tell: hears loss, rate and speed.

        Raises ValueError where in a whole epoch no image can be decoded and has finite features.
        """
        course, losses, images, waited, since = self._course, [], 0, 0.0, time.perf_counter()
        nothing = 0  # steps in a row without an image
        for step in range(self.first_step, course.total):
            asked = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - asked
            lr = course.lr * cosine(step, course.total)
            loss, count = self.step(batch, lr)
            losses += [loss] if count else []
            nothing = 0 if count else nothing + 1
            if nothing == course.epoch:
                raise ValueError(
                    f"none of the images of {nothing} steps, a whole epoch, can be decoded and has finite features; "
                    "look at data.root and at the network"
                )
            images += count
            if (step + 1) % course.tell_every == 0 or step + 1 == course.total:
                seconds = time.perf_counter() - since
                mean = float(np.mean(losses)) if losses else float("nan")
                figures = {"loss": mean, "lr": lr, "images": images, "seconds": seconds, "waited": waited}
                tell(step + 1, figures)
                losses, images, waited, since = [], 0, 0.0, time.perf_counter()
            self._kept.save(step + 1, self._state, is_last=step + 1 == course.total)

    def _state(self) -> dict[str, torch.Tensor]:
        return {**self.heads.state(), "unreadable": torch.tensor(sorted(self.unreadable), dtype=torch.int64)}

    def step(self, batch: Batch, lr: float) -> tuple[float, int]:
        """(loss before the step, images of all ranks in it). Without an image nothing is done."""
        x_BD, labels_B = self._gathered(batch)
        if not len(x_BD):
            return float("nan"), 0
        loss_1 = self.heads.step(x_BD, labels_B, lr * self._rate_1, self._course.weight_decay)
        return float(loss_1[0]), len(x_BD)

    def _gathered(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and labels of all ranks' images, in the order of their places. A label of -2 - i says that image i is left out: it
        cannot be decoded, or has features that are no numbers, which would be in every weight from then on."""
        device, width = self._trunk.device, self.heads.weight_LDC.shape[1]
        filled_B = torch.from_numpy(batch.filled_G)
        x_BD = torch.zeros(len(filled_B), width, device=device)
        labels_B = torch.full((len(filled_B),), -1, dtype=torch.int64)
        labels_B[filled_B] = self._labels_N[torch.from_numpy(batch.ids_G[batch.filled_G])]
        for one in batch.unreadable:
            labels_B[one.place] = -2 - one.instance
        if batch.filled_G.any():
            x_BD[filled_B.to(device)] = self._trunk(batch.views[0][filled_B])
            wild_B = ~x_BD.isfinite().all(dim=1).cpu()
            labels_B[wild_B] = -2 - torch.from_numpy(batch.ids_G)[wild_B]
        x_GD = self._ranks.gather(x_BD, "features of a probe")
        labels_G = self._ranks.gather(labels_B.to(device), "labels of a probe")
        self.unreadable.update((-2 - labels_G[labels_G < -1]).tolist())
        there_G = labels_G >= 0
        return x_GD[there_G], labels_G[there_G]
