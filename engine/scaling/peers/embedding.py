"""torch.nn.Embedding with sparse gradients over recent negatives: all N rows in memory, K of them in a step.

The rows of a step are those of the engine in kind: the batch's own and those that were visited last (over all lanes together, and fewer
than K until K were visited). What is left out:

    sgd            no momentum and no weight decay: torch's SGD refuses decay of sparse gradients, and would keep a momentum that grows
    sparse_adam    Adam of the rows of the step alone, at torch's own rate of 0.001; the moments of other rows stand still (lazy,
                   which is inexact), and take 2 N D numbers more

So neither is the trajectory of dense SGD. They are what a user would write first.
"""

import torch

from engine.scaling.peers.peer import Peer, PeerTask, drawn_rows, softmax_loss
from engine.scaling.peers.recent import Recent


class SparseRows(Peer):
    """An embedding that an optimizer for sparse gradients trains; `numbers` of state for each number of a row."""

    numbers = 1

    def __init__(self, task: PeerTask) -> None:
        self.rows = torch.nn.Embedding.from_pretrained(drawn_rows(task), freeze=False, sparse=True)
        self.temperature, self.recent = task.temperature, Recent(task.active)
        self.optimizer = self.make_optimizer(list(self.rows.parameters()))

    def make_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0)

    def set_rate(self, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr

    def step(self, ids_B: torch.Tensor, z_BD: torch.Tensor, lr: float) -> float:
        w_KD = self.rows(self.recent.visit(ids_B))
        loss = softmax_loss(z_BD, w_KD, torch.arange(len(ids_B)), self.temperature)
        self.optimizer.zero_grad()
        loss.backward()
        self.set_rate(lr)
        self.optimizer.step()
        return loss.item()

    def bytes(self) -> int:
        return self.numbers * self.rows.weight.nbytes


class SparseAdamRows(SparseRows):
    numbers = 3

    def make_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SparseAdam(parameters)

    def set_rate(self, lr: float) -> None:
        """Adam has its own."""


make_sgd = SparseRows
make_sparse_adam = SparseAdamRows
