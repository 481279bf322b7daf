"""Samples travel to all ranks, and their gradients back."""

import numpy as np
import torch

from engine.ranks.ranks import Ranks


class Travel:
    """The way of one micro-batch's samples to all ranks and of their gradients back.

    order_Q    where each place of the micro-batch, in the order of lanes, is when the ranks' parts stand one after the other
    forward_RP bool, the places that go through the network, of each rank
    views      V

    What travels has the same size on every rank: P places a view, zeros where a place does not take part. With R = 2, P = 2, V = 1,
    one lane each, and rank 1's second place empty: rank 0 sends [a, b], rank 1 sends [c, 0], and both compute with [a, b, c].
    """

    def __init__(self, ranks: Ranks, order_Q: np.ndarray, forward_RP: np.ndarray, views: int) -> None:
        self.ranks, self.forward_RP, self.views = ranks, forward_RP, views
        self._places_B = order_Q[forward_RP.reshape(-1)[order_Q]]  # places that take part, as r P + p
        places = forward_RP.shape[1]
        rank_B, place_B = np.divmod(self._places_B, places)
        # As r V P + v P + p: where a sample is in what was gathered.
        index_VB = (rank_B * views * places + place_B) + np.arange(views)[:, None] * places
        self._index_X = torch.from_numpy(index_VB.reshape(-1))
        mine_P = forward_RP[ranks.rank]
        self._mine_X = torch.from_numpy(np.flatnonzero(np.tile(mine_P, views)))

    def gather(self, z_XD: torch.Tensor) -> torch.Tensor:
        """This rank's features -> those of all ranks, views one after the other, places in the order of the batch."""
        if self.ranks.size == 1:
            return z_XD
        padded_XD = z_XD.new_zeros(self.views * self.forward_RP.shape[1], z_XD.shape[1])
        padded_XD[self._mine_X.to(z_XD.device)] = z_XD
        return self.ranks.gather(padded_XD, "features")[self._index_X.to(z_XD.device)]

    def give_back(self, dz_XD: torch.Tensor) -> torch.Tensor:
        """What this rank's rows make of every sample's gradient -> the whole gradient of this rank's samples."""
        if self.ranks.size == 1:
            return dz_XD
        padded_XD = dz_XD.new_zeros(self.views * self.forward_RP.size, dz_XD.shape[1])
        padded_XD[self._index_X.to(dz_XD.device)] = dz_XD
        return self.ranks.scatter_sum(padded_XD, "features' gradient")[self._mine_X.to(dz_XD.device)]

    def targets(self, slots_B: np.ndarray) -> np.ndarray:
        """The slots of this rank's places that take part -> a target for every sample, -1 where the row lives elsewhere; int64 [X]."""
        slots_RP = np.full(self.forward_RP.shape, -1, dtype=np.int64)
        slots_RP[self.ranks.rank, self.forward_RP[self.ranks.rank]] = slots_B
        return self.of_places(slots_RP)

    def of_places(self, values_RP: np.ndarray) -> np.ndarray:
        """A value for every place -> one for every sample, [X]."""
        return np.tile(values_RP.reshape(-1)[self._places_B], self.views)
