"""A rival of the engine on the same features: what it is given, and what is asked of it in a step.

A peer is one file with a function `make(task) -> Peer`; engine/jobs/peer.py feeds it. All of them compute the softmax of

    logits = z . w / (|z| |w| tau)

over the rows that they choose, and differ in those rows and in how rows are updated; each file says which of its results are exact, stale
or left out. None of them knows a disk: what does not fit into memory does not run.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from engine.rows.initial_rows import initial_rows

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class PeerTask:
    """
    size, active, dim   N, K, D
    temperature         tau
    momentum, nesterov, weight_decay   of SGD, for rows
    seed, init_norm     of first rows
    """

    size: int
    active: int
    dim: int
    temperature: float
    momentum: float
    nesterov: bool
    weight_decay: float
    seed: int
    init_norm: float


class Peer(ABC):
    """Holds rows and trains them; one thread of control, on the CPU."""

    @abstractmethod
    def step(self, ids_B: torch.Tensor, z_BD: torch.Tensor, lr: float) -> float:
        """Train on a batch: its instances (int64, each once) and their features (float32, of unit length).

        Returns the loss before the update.
        """

    @abstractmethod
    def bytes(self) -> int:
        """Of the tensors that stay from step to step."""


def keyed_rows(task: PeerTask) -> torch.Tensor:
    """float32 [N, D]: the rows that the engine starts with. A million take about 6 seconds at D = 128 and 0.8 at D = 32."""
    rows_ND = torch.empty(task.size, task.dim)
    for first in range(0, task.size, _ROWS_AT_ONCE):
        ids = np.arange(first, min(first + _ROWS_AT_ONCE, task.size))
        rows_ND[first : first + len(ids)] = torch.from_numpy(initial_rows(task.seed, ids, task.dim, task.init_norm))
    return rows_ND


def drawn_rows(task: PeerTask) -> torch.Tensor:
    """float32 [N, D]: numbers of the same distribution, drawn one after the other, which is quick for many rows."""
    reach = task.init_norm * (3.0 / task.dim) ** 0.5
    generator = torch.Generator().manual_seed(task.seed)
    return torch.empty(task.size, task.dim).uniform_(-reach, reach, generator=generator)


def softmax_loss(z_BD: torch.Tensor, w_KD: torch.Tensor, target_B: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean loss over the batch, with its graph. target_B: the row of w_KD that each image should find."""
    logits_BK = F.normalize(z_BD) @ F.normalize(w_KD).T / temperature
    return F.cross_entropy(logits_BK, target_B)
