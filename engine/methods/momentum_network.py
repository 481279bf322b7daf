"""The momentum network of MoCo: a copy of the trunk's network whose weights follow the trunk's, and which is never trained.

    theta_k <- m theta_k + (1 - m) theta_q        after each step that is applied, with the trunk's weights after it

The published order moves it at the beginning of a step, before the keys are made, by the trunk's weights of that moment. Those are the
weights after the last applied step, and at step 0 both are the same: so the keys are the published ones, a step that is skipped needs
no way back for weights, and no second copy of them is kept. Batch statistics follow the keys' own batches; `discard` brings them back.

Keys are made in as many groups as the step has micro-batches, each normalised by its own statistics, and which image is in which group
is drawn anew in each step. The trunk's groups are not, so a query and its key were normalised among different images; otherwise the
statistics that both share would tell which key is whose. The places of each lane are dealt out by a key of (seed, step, lane): no
image travels, and the groups are the same for every number of ranks. With one group all statistics are over the whole batch, and
nothing is drawn. (The publication shuffles the batch over GPUs instead; there a group is what one GPU has.)
"""

from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from engine.methods.method import forward_places
from engine.ranks.lanes import Lanes
from engine.ranks.ranks import Ranks
from engine.trunk.batch_norm import synchronised

_STREAM = 0x6B657973  # of all that a seed draws here, this is for the groups of keys


def dealt_places(seed: int, step: int, lanes: Lanes, places: int, groups: int) -> np.ndarray:
    """Which places of each rank are in each group of keys, int64 [R, groups, places / groups]; every lane gives each group its share.

    places   of a rank's part of the batch, which has one lane after the other
    """
    share = places // len(lanes)
    places_RAQ = np.empty((lanes.ranks, groups, places // groups), dtype=np.int64)
    for rank in range(lanes.ranks):
        order_LP = np.arange(places).reshape(len(lanes), share)
        if groups > 1:
            numbers = Lanes(lanes.count, rank, lanes.ranks).numbers
            order_LP = np.stack(
                [
                    first_P[_drawn_order(seed, step, lane, share)]
                    for lane, first_P in zip(numbers, order_LP, strict=True)
                ]
            )
        places_RAQ[rank] = order_LP.reshape(len(lanes), groups, -1).swapaxes(0, 1).reshape(groups, -1)
    return places_RAQ


def _drawn_order(seed: int, step: int, lane: int, count: int) -> np.ndarray:
    """A permutation of range(count), the same on every machine: bits of a generator are fixed, numpy's own permutations are not."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, step, lane, _STREAM])).random_raw(count)
    return np.argsort(bits, kind="stable")


class Followed(Protocol):
    """What is asked of the trunk, of which every rank has all weights."""

    @property
    def network(self) -> nn.Module: ...
    def autocast(self) -> AbstractContextManager[None]: ...


class MomentumNetwork:
    """
    trunk      what is followed
    network    as the trunk's before any training; it becomes this object's
    momentum   m
    """

    def __init__(self, trunk: Followed, network: nn.Module, ranks: Ranks, *, momentum: float) -> None:
        self.trunk, self.ranks = trunk, ranks
        self.network = synchronised(network.to(ranks.device), ranks).requires_grad_(False).train()
        followed = dict(trunk.network.named_parameters())
        named = list(self.network.named_parameters())
        assert followed.keys() == {name for name, _ in named}
        self._weights = [weight for _, weight in named]
        self._followed = [followed[name] for name, _ in named]
        self._follow = get_ema_multi_avg_fn(momentum)
        self._buffers = list(self.network.buffers())
        self._buffers_before: list[torch.Tensor] | None = None

    def keys(self, view: torch.Tensor, filled_RP: np.ndarray, places_RAQ: np.ndarray) -> torch.Tensor:
        """Keys of this rank's places, float32 [P, D] on the device, zeros where a place did not go through the network.

        view         of all of them, [P, channels, height, width] on the host
        filled_RP    bool, which places of all ranks have an image
        places_RAQ   what `dealt_places` gave
        """
        rank, device = self.ranks.rank, self.ranks.device
        self._buffers_before = [buffer.clone() for buffer in self._buffers]
        keys_PD: torch.Tensor | None = None
        for places_RQ in places_RAQ.swapaxes(0, 1):
            forward_RQ = forward_places(np.take_along_axis(filled_RP, places_RQ, axis=1))
            chosen = torch.from_numpy(places_RQ[rank][forward_RQ[rank]])
            is_whole = np.array_equal(chosen, np.arange(len(view)))
            images = view if is_whole else view[chosen]
            with torch.no_grad(), self.trunk.autocast():
                keys_BD = self.network([images.to(device, non_blocking=True)])
            if keys_PD is None:
                keys_PD = keys_BD.new_zeros(len(view), keys_BD.shape[1])
            keys_PD[chosen.to(device)] = keys_BD
        assert keys_PD is not None
        return keys_PD

    @torch.no_grad()
    def apply(self) -> None:
        """The trunk has made a step: follow it."""
        self._follow(self._weights, self._followed, 0)
        self._buffers_before = None

    def discard(self) -> None:
        """Bring the batch statistics back to where they were before the last `keys`."""
        if self._buffers_before is not None:
            for buffer, before in zip(self._buffers, self._buffers_before, strict=True):
                buffer.copy_(before)
        self._buffers_before = None

    def state(self) -> dict[str, torch.Tensor]:
        """Weights and statistics, copies on the host."""
        return {name: one.detach().to("cpu", copy=True) for name, one in self.network.state_dict().items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what `state` gave."""
        self.network.load_state_dict(state)

    @property
    def bytes(self) -> int:
        """On the device."""
        return sum(one.nbytes for one in (*self._weights, *self._buffers))
