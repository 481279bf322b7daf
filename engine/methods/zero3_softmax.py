"""The softmax over rows that DeepSpeed's ZeRO-3 partitions: rows travel, features stay.

The active rows of all ranks are one parameter [R S, D] of a DeepSpeed engine of their own: ZeRO keeps S whole rows of it on each rank,
with their momentum, gathers all of them for the softmax of this rank's samples, and reduces their gradient back into parts. Rows come
and go in this rank's part, by DeepSpeed's local accessors (engine/trunk/zero.py), so admission and eviction are those of lanes.

What that costs beside lanes: every rank gathers K D numbers and sends as many gradients in a step, holds all K rows and their whole
gradient while it does, and computes with all of them. It is what the paper's authors' peers do with a sharded head; it is here to be
compared with, and for clusters whose tools expect every weight to be DeepSpeed's. Rows are float32.
"""

import numpy as np
import torch

from engine.methods.row_gradients import SoftmaxInputs, is_finite, whole_gradient
from engine.methods.softmax import Samples, loss_and_features_gradient
from engine.ranks.ranks import Ranks
from engine.rows.active_rows import ActiveRows
from engine.trunk.zero import PartitionedRows
from kernels.sampled_softmax import combine, softmax_forward_negatives


class Zero3Softmax:
    """Implements engine.methods.softmax.Softmax. `partitioned` keeps the values of `rows`."""

    name = "zero3"
    why = "ZeRO-3 gathers the rows on every rank and reduces their gradient"
    rows_step = "deepspeed (SGD)"

    def __init__(
        self,
        rows: ActiveRows,
        partitioned: PartitionedRows,
        ranks: Ranks,
        *,
        temperature: float,
        decoupled: bool = False,
    ) -> None:
        self.rows, self.partitioned, self.ranks, self.temperature = rows, partitioned, ranks, temperature
        self.decoupled = decoupled

    def add(self, samples: Samples) -> tuple[float, torch.Tensor, bool]:
        rows, views = self.rows, len(samples.rows_grad_V)
        backend = rows.kernels["sampled_softmax"]
        rank, each, device = self.ranks.rank, len(self.partitioned.w_SD), rows.w_KD.device
        if self.partitioned.zero.is_new_step:  # rows were admitted since the last
            self.partitioned.publish()
        targets_B = np.where(samples.slots_B >= 0, samples.slots_B + rank * each, -1)
        targets_X = torch.from_numpy(np.tile(targets_B, views)).to(device)
        weight_B = samples.weight_RP[rank, samples.forward_RP[rank]]
        weight_X = torch.from_numpy(np.tile(weight_B, views)).to(rows.w_KD)
        rows_need_grad_X = torch.tensor(samples.rows_grad_V).repeat_interleave(len(targets_B)).to(device)
        mask_K = self._mask()
        loss, finite, dz_XD = 0.0, False, torch.empty(0)

        def gradient_of(rows_KD: torch.Tensor) -> torch.Tensor:
            nonlocal loss, finite, dz_XD
            forward = softmax_forward_negatives(
                samples.z_XD,
                rows_KD,
                targets_X,
                temperature=self.temperature,
                row_mask_K=mask_K,
                leave_own_out=self.decoupled,
                backend=backend,
            )
            lse_X = combine([(forward.max_B, forward.sumexp_B)])
            inputs = SoftmaxInputs(
                samples.z_XD,
                targets_X,
                lse_X,
                weight_X,
                mask_K,
                rows_need_grad_X,
                forward.shortest,
                self.temperature,
                self.decoupled,
            )
            loss, dz_XD = loss_and_features_gradient(forward, rows_KD, inputs)
            drows_KD = whole_gradient(rows_KD, inputs, backend)
            finite = bool(torch.isfinite(samples.z_XD).all() and torch.isfinite(dz_XD).all() and np.isfinite(loss))
            finite = finite and is_finite(drows_KD)
            return drows_KD

        # Handed over while the rows are here. Whether the step is applied is decided later; `discard` forgets it.
        self.partitioned.add(gradient_of)
        return loss, dz_XD, finite

    def apply(self, eta: float) -> None:
        applied = self.partitioned.zero.update(eta)
        assert applied, "ZeRO refused a step of the rows whose gradient was found finite"

    def discard(self) -> None:
        self.partitioned.zero.discard()

    def _mask(self) -> torch.Tensor:
        """bool [R S]: which slots of all ranks hold a row; a rank with fewer slots than others leaves the last of its part empty."""
        mask_S = torch.zeros(len(self.partitioned.w_SD), dtype=torch.uint8, device=self.rows.w_KD.device)
        mask_S[: self.rows.size] = 1 if (mask_K := self.rows.mask()) is None else mask_K
        return self.ranks.gather(mask_S, "mask of slots").bool()
