"""Seconds by stage of the step, as metrics.jsonl tells them."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """`with stages("softmax"):` adds the block's wall time to that stage's sum; a stage inside another is not counted in that too."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner_seconds = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start, before = time.perf_counter(), self._inner_seconds
        self._inner_seconds = 0.0
        try:
            yield
        finally:
            whole_seconds = time.perf_counter() - start
            self.seconds[name] += whole_seconds - self._inner_seconds
            self._inner_seconds = before + whole_seconds

    def sum(self, *names: str) -> float:
        """Of these stages since the last `take`, in seconds."""
        return sum(self.seconds.get(name, 0.0) for name in names)

    def take(self) -> dict[str, float]:
        """The sums since the last call, in seconds."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken
