"""What is measured between two lines of metrics.jsonl, and the line."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from engine.methods.method import Method, combined
from engine.methods.stages import Stages
from engine.ranks.process_table import peak_resident_bytes
from engine.ranks.ranks import Ranks
from engine.training.checkpoint import Checkpoints
from engine.training.summary import merged
from engine.training.totals import Totals, mean_of_finite


class Interval:
    """Since the last line. All ranks take part in a line; what is added up or compared over ranks, the line says of all."""

    def __init__(
        self,
        ranks: Ranks,
        method: Method,
        checkpoints: Checkpoints,
        stages: Stages,
        images: int,
        held: Callable[[], dict[str, int]],
    ) -> None:
        """held: what this rank holds between two steps, bytes by tier: "device", "host", "disk"."""
        self.ranks, self.method, self.checkpoints, self.held = ranks, method, checkpoints, held
        self.stages = stages
        self._waits: dict[str, float] = {"steps": 0, "seconds": 0.0}
        self._start, self._images = time.perf_counter(), images
        self._sent_bytes = Counter(ranks.sent_bytes)

    def count_waits(self) -> None:
        """After every step: whether it waited for the disk."""
        waited = self.method.take_waited_seconds()
        for waiting in (self.checkpoints.disk, self.checkpoints):
            waited += waiting.waited_seconds
            waiting.waited_seconds = 0.0
        self._waits["steps"] += waited > 0
        self._waits["seconds"] += waited

    def line(self, done: int, totals: Totals, lr: float, log_every: int) -> dict[str, Any]:
        """The line after `done` steps; then a new interval begins. Takes up peaks and the trunk's seconds in `totals`."""
        now, seconds = time.perf_counter(), self.stages.take()
        totals.trunk_seconds += seconds.get("trunk_forward", 0.0) + seconds.get("trunk_backward", 0.0)
        by_rank = self.ranks.share(self._own())
        tiers = {tier: max(own["bytes"][tier] for own in by_rank) for tier in ("device", "host")}
        tiers["disk"] = sum(own["bytes"]["disk"] for own in by_rank)
        process_peak = max(own["process_peak"] for own in by_rank)
        totals.peak_host_bytes = max(totals.peak_host_bytes, process_peak)
        totals.peak_device_bytes = max(totals.peak_device_bytes, tiers["device"])
        figures = combined([own["figures"] for own in by_rank])
        line = {
            "step": done,
            "loss": mean_of_finite(totals.losses[-log_every:]),
            "lr": lr,
            "images_per_second": (totals.images - self._images) / (now - self._start),
            "seconds": seconds,
            "interval_seconds": now - self._start,
            "bytes": {**tiers, "process_peak": process_peak},
            "prefetch_waits": max((own["waits"] for own in by_rank), key=lambda waits: waits["seconds"]),
            "backends": self.method.backends,
            "ranks": len(by_rank),
            "figures": list(figures),
            "skipped_steps": totals.skipped_steps,
            "elapsed_seconds": totals.step_seconds,
            "sent_bytes": dict(self.ranks.sent_bytes - self._sent_bytes),
        }
        self._waits = {"steps": 0, "seconds": 0.0}
        self._start, self._images = now, totals.images
        self._sent_bytes = Counter(self.ranks.sent_bytes)
        return merged(line, figures)

    def _own(self) -> dict[str, Any]:
        """What a line needs of each rank. Memory and waits are told of the rank with most, the disk is added up."""
        return {
            "bytes": self._bytes(),
            "process_peak": peak_resident_bytes(),
            "waits": self._waits,
            "figures": self.method.figures(),
        }

    def _bytes(self) -> dict[str, int]:
        """By tier. On a GPU the device's are the allocator's peak, on a CPU a count."""
        held = self.held()
        if self.ranks.device.type == "cuda":
            held["device"] = torch.cuda.max_memory_allocated()
        return held
