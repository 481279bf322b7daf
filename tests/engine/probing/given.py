"""Features with classes that overlap, and a small network: what the tests of probes look at."""

import numpy as np
import torch
from torch import nn

from datasets.batch import UnreadableImage
from engine.probing.frozen import FrozenTrunk
from engine.probing.rows import Rows, standard_of
from engine.trunk.network import Network

CPU = torch.device("cpu")


def clouds(count=600, width=12, classes=4, seed=0):
    """(features float32 [count, width] of very different scales, labels int64 [count])."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    features = (centres[labels] + 1.5 * generator.normal(size=(count, width))) * 10.0 ** np.linspace(-1, 2, width) + 3
    return features.astype(np.float32), labels


def standardised(features, ids):
    return Rows(features, standard_of(features, ids, CPU), CPU)


def small_trunk(features="backbone"):
    """With batch statistics that are not those of its inputs: a trunk in training mode would move them."""
    torch.manual_seed(3)
    backbone = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )
    with torch.no_grad():
        backbone[1].running_mean.uniform_(-1, 1)
        backbone[1].running_var.uniform_(0.5, 2)
    return FrozenTrunk(Network(backbone, 24, 8, 5), features, CPU)


UNREADABLE = 11


class Images:
    """Grey images, one of which cannot be read."""

    def image(self, instance):
        if instance == UNREADABLE:
            raise UnreadableImage(f"image {instance}", "gone")
        return np.random.default_rng(instance).integers(0, 256, (9, 9), dtype=np.uint8)

    def file_bytes(self, instance):
        return 0
