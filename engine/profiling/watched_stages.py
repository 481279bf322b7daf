"""The stages of a step as a profile sees them: each is told to the sampler, and memory is looked at where it ends."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.methods.stages import Stages
from engine.planning.activations import StorageCount
from engine.profiling.now import STAGES, START, Now
from engine.ranks.process_table import resident_bytes

_COUNTED_STEP = 3  # the first ones allocate what later ones use again


class WatchedStages(Stages):
    """
    now              what the sampler reads
    is_gpu           whether the device's allocator is asked
    resident_bytes   stage -> the largest resident set at its end
    device_bytes     stage -> the most that a GPU's allocator had given out within it
    made_bytes       what operators made within one step, beyond what was there: activations, gradients, work space
    """

    def __init__(self, now: Now, is_gpu: bool) -> None:
        super().__init__()
        self.resident_bytes: dict[str, int] = {}
        self.device_bytes: dict[str, int] = {}
        self.made_bytes = 0
        self._now, self._is_gpu, self._stage, self._step = now, is_gpu, START, 0
        self._count: StorageCount | None = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        outer = self._stage
        self._begin(name)
        with super().__call__(name):
            try:
                yield
            finally:
                self._end(name, outer)

    def _begin(self, name: str) -> None:
        self._step += name == "data"
        self._tell(name)
        if name == "trunk_forward" and self._step == _COUNTED_STEP and not self.made_bytes:
            self._count = StorageCount()
            self._count.__enter__()

    def _end(self, name: str, outer: str) -> None:
        if name == "update" and self._count:
            self._count.__exit__(None, None, None)
            self.made_bytes, self._count = self._count.peak(), None
        self.resident_bytes[name] = max(self.resident_bytes.get(name, 0), resident_bytes())
        if self._is_gpu:
            self.device_bytes[name] = max(self.device_bytes.get(name, 0), torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
        self._tell("between steps" if outer == START else outer)

    def _tell(self, name: str) -> None:
        self._stage = name
        held = (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) if self._is_gpu else (0, 0)
        self._now.write(name if name in STAGES else "between steps", self._step, *held)
