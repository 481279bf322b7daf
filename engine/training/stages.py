"""Seconds by stage of the step, as metrics.jsonl tells them."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """`with stages("softmax"):` adds the block's wall time to that stage's sum."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The sums since the last call, in seconds."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken
