"""PIC as published: all N rows in memory, all of them in every softmax, dense SGD with momentum over all of them.

Exact: it is the full softmax, and the trajectory of rows that the engine equals with method.active null, up to rounding. Its cost is what
the engine avoids: O(B N) logits with their gradients, and rows, gradient, momentum and normalised copy of N rows, in every step.
"""

import torch

from engine.scaling.peers.peer import Peer, PeerTask, keyed_rows, softmax_loss


class PicDense(Peer):
    def __init__(self, task: PeerTask) -> None:
        self.rows_ND = torch.nn.Parameter(keyed_rows(task))
        self.temperature = task.temperature
        self.sgd = torch.optim.SGD(
            [self.rows_ND],
            lr=1.0,
            momentum=task.momentum,
            weight_decay=task.weight_decay,
            nesterov=task.nesterov,
        )

    def step(self, ids_B: torch.Tensor, z_BD: torch.Tensor, lr: float) -> float:
        loss = softmax_loss(z_BD, self.rows_ND, ids_B, self.temperature)
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.param_groups[0]["lr"] = lr
        self.sgd.step()
        return loss.item()

    def bytes(self) -> int:
        """Rows, gradient, momentum."""
        return 3 * self.rows_ND.nbytes


make = PicDense
