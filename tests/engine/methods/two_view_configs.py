"""Configs of tiny runs of the methods that look at two views of an image."""

from tests.conftest import TINY

SETTINGS = {
    "momentum_queue": {"temperature": 0.1, "momentum": 0.99},
    "moco": {"temperature": 0.1, "key_momentum": 0.99, "queue": 256},
}
OPTIMIZER = {"lr": 0.1, "warmup_epochs": 0.5}


def config_of(kind, **changes):
    data = {**TINY["data"], "augment": {"kind": "grey", "views": 2}}
    settings = {"kind": kind, "dim": 16} | SETTINGS.get(kind, {})
    return {**TINY, "epochs": 3, "data": data, "method": settings, "optimizer": OPTIMIZER, **changes}
