"""MoCo (He et al., CVPR 2020; v2: Chen et al., 2020): a query finds its key, made by a momentum network, among the keys of a queue.

    loss = -log( exp(q.k / tau) / (exp(q.k / tau) + sum over the queue of exp(q.k_j / tau)) ),    q = f(view 0),  k = f_k(view 1)

A step:

    begin      k of all places by the momentum network, in groups that are drawn anew (engine/methods/momentum_network.py)
    add        loss and gradient of a micro-batch's queries; an instance's own older key is no negative (queue_softmax.py, queue.py)
    apply      the momentum network follows the trunk; the keys of all ranks enter the queue
    discard    the momentum network's batch statistics are as they were

v1 and v2 differ in the head, the temperature and the views, which are settings. Queue, pointer, numbers of instances and momentum
network are in every checkpoint. Every rank has all of them: the queue's keys travel once, to all ranks, after the step.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from datasets.batch import Batch
from engine.methods.method import ActiveVectors, Components, Figure, Given, Method, MicroBatch
from engine.methods.momentum_network import MomentumNetwork, dealt_places
from engine.methods.queue import NOBODY, Queue
from engine.methods.queue_softmax import Negatives, queue_loss
from engine.methods.row_gradients import is_finite
from kernels.sampled_softmax import backend

_QUEUE, _NETWORK = "queue", "momentum_network"


class Settings(Protocol):
    """What is read here of the settings (configs/methods.py)."""

    @property
    def temperature(self) -> float: ...
    @property
    def queue(self) -> int: ...
    @property
    def key_momentum(self) -> float: ...
    @property
    def dim(self) -> int: ...
    @property
    def kernels(self) -> str: ...


@dataclass
class _Begun:
    """What a step has before its first micro-batch.

    keys_PD   of this rank's places
    own_P     where in the queue their own older keys are, -1: nowhere
    mask_K    without further keys of the batch's instances; None: there are none
    ids_G     the instances of all ranks, in the order of the batch, -1: empty
    found     how many of these have an older key in the queue
    """

    keys_PD: torch.Tensor
    own_P: np.ndarray
    mask_K: torch.Tensor | None
    ids_G: np.ndarray
    found: int


class MoCo(Method):
    """queries, found: of all ranks and applied steps, how many there were, and how many had an own older key in the queue."""

    def __init__(
        self, given: Given, queue: Queue, network: MomentumNetwork, *, temperature: float, kernel: str
    ) -> None:
        super().__init__()
        self.given, self.ranks, self.queue, self.network = given, given.ranks, queue, network
        self.temperature = temperature
        self.backends = {"sampled_softmax": kernel}
        self.queries = self.found = 0
        self._order_G = given.lanes.in_batch_order(given.schedule.batch)
        self._begun: _Begun | None = None

    def chance_loss(self) -> float:
        """ln (K + 1)."""
        return math.log(len(self.queue.keys_KD) + 1)

    def begin(self, batch: Batch, filled_RP: np.ndarray) -> None:
        given, ranks = self.given, self.ranks
        with self.stages("keys"):
            places_RAQ = dealt_places(given.seed, batch.step, given.lanes, filled_RP.shape[1], given.micro_batches)
            keys_PD = self.network.keys(batch.views[1], filled_RP, places_RAQ)
            ids_P = torch.from_numpy(np.where(filled_RP[ranks.rank], batch.ids_G, NOBODY)).to(ranks.device)
            ids_RP = ranks.gather(ids_P, "numbers of instances").cpu().numpy()
            own_RP, further = self.queue.own(ids_RP)
            mask_K = None
            if further:
                mask_K = torch.ones(len(self.queue.keys_KD), dtype=torch.bool, device=ranks.device)
                mask_K[further] = False
            own_P = own_RP.reshape(ranks.size, -1)[ranks.rank]
            found = int((own_RP >= 0).sum())
            self._begun = _Begun(keys_PD.to(self.queue.keys_KD.dtype), own_P, mask_K, ids_RP[self._order_G], found)

    def add(self, micro: MicroBatch) -> tuple[float, torch.Tensor, bool]:
        begun, queue_KD, rank = self._begun, self.queue.keys_KD, self.ranks.rank
        assert begun
        places = torch.from_numpy(micro.places_B).to(queue_KD.device)
        weight_B = torch.from_numpy(micro.weight_RP[rank, micro.forward_RP[rank]]).to(queue_KD.device)
        own_B = torch.from_numpy(begun.own_P[micro.places_B]).to(queue_KD.device)
        loss, dz_BD = queue_loss(
            micro.z_XD.to(queue_KD.dtype),
            begun.keys_PD[places],
            Negatives(queue_KD, own_B, begun.mask_K),
            weight_B,
            temperature=self.temperature,
            backend=self.backends["sampled_softmax"],
        )
        return loss, dz_BD, math.isfinite(loss) and is_finite(micro.z_XD) and is_finite(dz_BD)

    def apply(self, lr: float) -> None:
        begun = self._begun
        assert begun
        self.network.apply()
        keys_GD = self.ranks.gather(begun.keys_PD, "keys")[torch.from_numpy(self._order_G).to(begun.keys_PD.device)]
        self.queue.push(keys_GD, begun.ids_G)
        self.queries += int((begun.ids_G != NOBODY).sum())
        self.found += begun.found
        self._begun = None

    def discard(self) -> None:
        self.network.discard()
        self._begun = None

    def shared(self) -> Components:
        counts = {"queries": torch.tensor([self.queries]), "found": torch.tensor([self.found])}
        return {_QUEUE: {**self.queue.state(), **counts}, _NETWORK: self.network.state()}

    def load_shared(self, components: Components) -> None:
        queue = components[_QUEUE]
        self.queue.load(queue)
        self.queries, self.found = int(queue["queries"]), int(queue["found"])
        self.network.load(components[_NETWORK])

    def figures(self, at_end: bool = False) -> dict[str, Figure]:
        """own_keys_masked: the share of queries whose own older key was in the queue, and was left out."""
        return {"own_keys_masked": Figure(self.found / max(self.queries, 1), "same")}

    def active_vectors(self) -> ActiveVectors:
        """The queue's keys. Random ones, of its beginning, are of nobody."""
        queue, has = self.queue, slice(None if self.ranks.is_first else 0)
        return ActiveVectors("key", queue.ids_K[has], queue.keys_KD[has], None)

    def bytes(self) -> dict[str, int]:
        return {"device": self.network.bytes + self.queue.bytes, "host": self.queue.ids_K.nbytes}


def make(settings: Settings, given: Given) -> MoCo:
    """The method of a run; see configs/methods.py and Given. Compiles the softmax where it never was compiled here."""
    ranks = given.ranks
    network = MomentumNetwork(given.trunk, given.network(), ranks, momentum=settings.key_momentum)
    choice = backend(ranks.device, features=settings.dim, wanted=settings.kernels)
    queue = Queue(settings.queue, settings.dim, given.seed, ranks.device)
    method = MoCo(given, queue, network, temperature=settings.temperature, kernel=choice.name)
    method.words = [f"sampled_softmax runs on {choice.name} ({choice.why})"]
    ranks.wait()  # compiling took each its own time, and from here on there are time limits
    return method
