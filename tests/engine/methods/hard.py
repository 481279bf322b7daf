"""The two methods of the tests in the registry of methods: `register` is what a start of launch.py calls first."""

from configs.methods import REGISTRY
from tests.engine.methods import momentum_queue, whole_batch

HARD = {
    "momentum_queue": (momentum_queue.Settings, momentum_queue.__name__),
    "whole_batch": (whole_batch.Settings, whole_batch.__name__),
}


def register() -> None:
    REGISTRY.update(HARD)
