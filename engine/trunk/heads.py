"""Heads: from a backbone's features h [B, width] to what is made z of length 1, [B, dim]. They are thrown away after the training.

    "linear"    Linear                                        MoCo v1
    "mlp"       Linear-ReLU-Linear                            PIC, MoCo v2; all of PIC's published scripts but that of MoCo v1
    "mlp_bn2"   Linear-BN-ReLU-Linear-BN                      SimCLR's own code
    "mlp_bn3"   Linear-BN-ReLU-Linear-BN-ReLU-Linear-BN       the same, one layer deeper

Where batch normalisation follows, a Linear has no bias: the statistics would take it off again. The last normalisation scales and does
not shift.
"""

from collections.abc import Callable
from itertools import pairwise

from torch import nn


def make_head(kind: str, width: int, hidden: int, dim: int) -> nn.Sequential:
    """A head of this kind; its first module is the Linear that takes h. hidden: width of the hidden layers, if there are any."""
    return HEADS[kind](width, hidden, dim)


def _linear(width: int, hidden: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, dim))


def _mlp(width: int, hidden: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim))


def _normalised(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths), start=2):
        is_last = number == len(widths)
        norm = nn.BatchNorm1d(after)
        if is_last:
            norm.register_parameter("bias", None)
        layers += [nn.Linear(before, after, bias=False), norm, *([] if is_last else [nn.ReLU()])]
    return nn.Sequential(*layers)


HEADS: dict[str, Callable[[int, int, int], nn.Sequential]] = {
    "linear": _linear,
    "mlp": _mlp,
    "mlp_bn2": lambda width, hidden, dim: _normalised([width, hidden, dim]),
    "mlp_bn3": lambda width, hidden, dim: _normalised([width, hidden, hidden, dim]),
}
