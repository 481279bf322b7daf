"""PartialFC's mathematics (An et al., CVPR 2022): a step's own rows and random others, K together, out of N in memory.

The softmax runs over the sampled rows alone; it is not corrected for the sampling, as published. Rows and momentum of N rows are in memory.
A row that is not sampled stands still: neither its momentum nor its decay goes on, so a row that comes back is where it was left (stale
beside dense SGD), and its old momentum is applied as if no step had passed. The sample is drawn as published, by a random number for
each of N rows and the K largest of them, which costs O(N).

Left out: the margin, since PIC has none, and sharding over ranks.
"""

import torch

from engine.scaling.peers.peer import Peer, PeerTask, drawn_rows, softmax_loss


class PartialFC(Peer):
    def __init__(self, task: PeerTask) -> None:
        self.task = task
        self.rows_ND = drawn_rows(task)
        self.momentum_ND = torch.zeros_like(self.rows_ND)
        self.generator = torch.Generator().manual_seed(task.seed)

    def sample(self, ids_B: torch.Tensor) -> torch.Tensor:
        """K rows, int64, ascending; those of the batch are among them."""
        chance_N = torch.rand(self.task.size, generator=self.generator)
        chance_N[ids_B] = 2.0
        count = min(max(self.task.active, len(ids_B)), self.task.size)
        return torch.topk(chance_N, count, sorted=False).indices.sort().values

    def step(self, ids_B: torch.Tensor, z_BD: torch.Tensor, lr: float) -> float:
        task, index_K = self.task, self.sample(ids_B)
        w_KD = self.rows_ND[index_K].requires_grad_()
        loss = softmax_loss(z_BD, w_KD, torch.searchsorted(index_K, ids_B), task.temperature)
        (gradient_KD,) = torch.autograd.grad(loss, w_KD)
        gradient_KD += task.weight_decay * w_KD.detach()
        u_KD = task.momentum * self.momentum_ND[index_K] + gradient_KD
        step_KD = gradient_KD + task.momentum * u_KD if task.nesterov else u_KD
        self.momentum_ND[index_K] = u_KD
        self.rows_ND[index_K] = w_KD.detach() - lr * step_KD
        return loss.item()

    def bytes(self) -> int:
        """Rows and momentum."""
        return 2 * self.rows_ND.nbytes


make = PartialFC
