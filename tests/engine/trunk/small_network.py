"""A small network with batch statistics, and how one process trains it."""

import torch
from torch import nn

from engine.ranks.ranks import start
from engine.trunk.optimizers import Sgd

ALONE = start(torch.device("cpu"))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, views):
        return nn.functional.normalize(self.last(torch.relu(self.norm(self.first(torch.cat(views))))))


SETTINGS = {"ranks": 1, "places": 8, "device": ALONE.device, "rule": Sgd(0.9, 1e-2)}
