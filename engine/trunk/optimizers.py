"""What steps the weights of a module: SGD, LARS or AdamW; and under which names a checkpoint has what they keep.

    SGD      g <- g + lambda w;  u <- m u + g;  w <- w - lr u             torch.optim.SGD
    LARS     the same with a rate of its own for every tensor            engine/trunk/lars.py
    AdamW    two moments of g and the number of steps for every weight    torch.optim.AdamW

State is kept by weight, whatever DeepSpeed makes of the weights: a tensor of the weight's shape for each of `Rule.kept`, and the number
of its steps where the rule counts them. The momentum of SGD and LARS has the weight's own name, other kinds stand before it:
`backbone.conv1.weight`, `exp_avg/backbone.conv1.weight`, `step/backbone.conv1.weight`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from engine.trunk.lars import MOMENTUM, Lars

STEP = "step"  # torch's name for the number of steps, a float32 of no axis


class Rule(ABC):
    """A rule by which weights are stepped. The learning rate comes with each step.

    counts_steps     whether each weight has the number of its steps
    needs_whole      whether a rank must hold whole tensors, which ZeRO's stages 1 to 3 cut up
    """

    counts_steps: ClassVar[bool] = False
    needs_whole: ClassVar[bool] = False

    @property
    @abstractmethod
    def kept(self) -> tuple[str, ...]:
        """Names, in torch's optimizer, of the tensors that each weight has beside itself."""

    @abstractmethod
    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer, with a learning rate of 1 for the moment."""


@dataclass(frozen=True)
class Sgd(Rule):
    """torch.optim.SGD; without momentum it keeps nothing."""

    momentum: float
    weight_decay: float
    nesterov: bool = False

    @property
    def kept(self) -> tuple[str, ...]:
        return (MOMENTUM,) if self.momentum > 0 else ()

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters, lr=1.0, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )


@dataclass(frozen=True)
class LarsRule(Rule):
    """engine.trunk.lars.Lars."""

    needs_whole: ClassVar[bool] = True

    momentum: float
    weight_decay: float
    trust: float

    @property
    def kept(self) -> tuple[str, ...]:
        return (MOMENTUM,)

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return Lars(parameters, lr=1.0, momentum=self.momentum, weight_decay=self.weight_decay, trust=self.trust)


@dataclass(frozen=True)
class AdamW(Rule):
    """torch.optim.AdamW: decay is apart from the gradient, of every weight."""

    counts_steps: ClassVar[bool] = True

    betas: tuple[float, float]
    eps: float
    weight_decay: float

    @property
    def kept(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1.0, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)


def state_name(kind: str, weight: str) -> str:
    """Of a tensor in a checkpoint: `kind` as in Rule.kept or STEP, and the name of its weight."""
    return weight if kind == MOMENTUM else f"{kind}/{weight}"


def kind_and_weight(name: str) -> tuple[str, str]:
    """What `state_name` made a name of."""
    kind, slash, weight = name.rpartition("/")
    return (kind, weight) if slash else (MOMENTUM, name)


def misfit(model: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> str | None:
    """The first name in `state` that fits no weight of `model`, or that is not there while others of its kind are; None: all is well."""
    weights: dict[str, set[str]] = {}
    for name, tensor in state.items():
        kind, weight = kind_and_weight(name)
        if weight not in model or tensor.shape != (() if kind == STEP else model[weight].shape):
            return name
        weights.setdefault(kind, set()).add(weight)
    every = set().union(*weights.values())
    return next((state_name(kind, min(every - those)) for kind, those in weights.items() if every - those), None)
