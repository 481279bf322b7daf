"""FBGEMM's table in host memory (fbgemm-gpu-cpu), with its fused SGD, over recent negatives.

All N rows are in memory. A lookup of K rows is one bag a row; the backward pass applies SGD to those rows at once, so no gradient is
written. Left out, as in engine/scaling/peers/embedding.py: momentum and weight decay, which its CPU optimizers do not have for SGD; rows
that are not in a step stand still. Its table on SSD needs a GPU and is not this.
"""

import warnings

import torch

from engine.scaling.peers.peer import Peer, PeerTask, drawn_rows, softmax_loss
from engine.scaling.peers.recent import Recent


class FbgemmRows(Peer):
    def __init__(self, task: PeerTask) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of each optimizer that the CPU build lacks
            from fbgemm_gpu.split_embedding_configs import EmbOptimType
            from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
            from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
                ComputeDevice,
                SplitTableBatchedEmbeddingBagsCodegen,
            )

        self.table = SplitTableBatchedEmbeddingBagsCodegen(
            [(task.size, task.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            optimizer=EmbOptimType.EXACT_SGD,
            learning_rate=1.0,
        )
        (self.rows_ND,) = self.table.split_embedding_weights()
        self.rows_ND.copy_(drawn_rows(task))
        self.temperature, self.recent = task.temperature, Recent(task.active)

    def step(self, ids_B: torch.Tensor, z_BD: torch.Tensor, lr: float) -> float:
        self.table.set_learning_rate(lr)
        ids_K = self.recent.visit(ids_B)
        w_KD = self.table(ids_K, torch.arange(len(ids_K) + 1))
        loss = softmax_loss(z_BD, w_KD, torch.arange(len(ids_B)), self.temperature)
        loss.backward()
        return loss.item()

    def bytes(self) -> int:
        return self.rows_ND.nbytes


make = FbgemmRows
