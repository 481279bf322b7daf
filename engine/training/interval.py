"""What is measured between two lines of metrics.jsonl, and the line."""

import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from datasets.batch import Batch
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
        totals: Totals,
        held: Callable[[], dict[str, int]],
    ) -> None:
        """held: what this rank holds between two steps, bytes by tier: "device", "host", "disk"."""
        self.ranks, self.method, self.checkpoints, self.held = ranks, method, checkpoints, held
        self.stages = stages
        self._chance_loss = method.chance_loss()
        self._begin(totals)

    def _begin(self, totals: Totals) -> None:
        self._start, self._images, self._steps = time.perf_counter(), totals.images, len(totals.losses)
        self._sent_bytes = Counter(self.ranks.sent_bytes)
        self._waits: dict[str, float] = {"steps": 0, "seconds": 0.0}
        self._loaded: dict[str, float] = {"images": 0, "cpu_seconds": 0.0, "read_bytes": 0}
        self._active = array("q")  # of each step

    def count(self, batch: Batch) -> None:
        """After every step: whether it waited for the disk, what its batch took, how many rows were active."""
        self._loaded["images"] += int(np.count_nonzero(batch.filled_G))
        self._loaded["cpu_seconds"] += batch.cpu_seconds
        self._loaded["read_bytes"] += batch.read_bytes
        if (active := self.method.active_now()) is not None:
            self._active.append(active)
        waited = self.method.take_waited_seconds()
        for waiting in (self.checkpoints.disk, self.checkpoints):
            waited += waiting.waited_seconds
            waiting.waited_seconds = 0.0
        self._waits["steps"] += waited > 0
        self._waits["seconds"] += waited

    def line(self, done: int, totals: Totals, lr: float) -> dict[str, Any]:
        """The line after `done` steps; then a new interval begins. Takes up peaks in `totals`."""
        now, seconds = time.perf_counter(), self.stages.take()
        by_rank = self.ranks.share(self._own(seconds.get("data", 0.0)))
        tiers = {tier: max(own["bytes"][tier] for own in by_rank) for tier in ("device", "host")}
        tiers["disk"] = sum(own["bytes"]["disk"] for own in by_rank)
        process_peak = max(own["process_peak"] for own in by_rank)
        totals.peak_host_bytes = max(totals.peak_host_bytes, process_peak)
        totals.peak_device_bytes = max(totals.peak_device_bytes, tiers["device"])
        figures = combined([own["figures"] for own in by_rank])
        line = {
            "step": done,
            "loss": mean_of_finite(totals.losses[self._steps :]),
            "chance_loss": chance_of([own["active"] for own in by_rank], self._chance_loss),
            "lr": lr,
            "images_per_second": (totals.images - self._images) / (now - self._start),
            "seconds": seconds,
            "interval_seconds": now - self._start,
            "interval_steps": len(totals.losses) - self._steps,
            "loader": loader_figures([own["loaded"] for own in by_rank], now - self._start),
            "bytes": {**tiers, "process_peak": process_peak},
            "prefetch_waits": max((own["waits"] for own in by_rank), key=lambda waits: waits["seconds"]),
            "backends": self.method.backends,
            "ranks": len(by_rank),
            "figures": list(figures),
            "skipped_steps": totals.skipped_steps,
            "elapsed_seconds": totals.step_seconds,
            "sent_bytes": dict(self.ranks.sent_bytes - self._sent_bytes),
        }
        self._begin(totals)
        return merged(line, figures)

    def _own(self, waited_seconds: float) -> dict[str, Any]:
        """What a line needs of each rank. Memory and waits are told of the rank with most, the disk is added up.

        waited_seconds   for images
        """
        return {
            "bytes": self._bytes(),
            "process_peak": peak_resident_bytes(),
            "waits": self._waits,
            "loaded": {**self._loaded, "waited_seconds": waited_seconds},
            "active": self._active,
            "figures": self.method.figures(),
        }

    def _bytes(self) -> dict[str, int]:
        """By tier. On a GPU the device's are the allocator's peak, on a CPU a count."""
        held = self.held()
        if self.ranks.device.type == "cuda":
            held["device"] = torch.cuda.max_memory_allocated()
        return held


def loader_figures(by_rank: Sequence[Mapping[str, float]], seconds: float) -> dict[str, float | None]:
    """What the loaders of all ranks did in so many seconds. The share of waiting is that of the rank that waited most."""
    images, cpu_seconds, read_bytes = (
        sum(own[name] for own in by_rank) for name in ("images", "cpu_seconds", "read_bytes")
    )
    return {
        "images": images,
        "cpu_seconds": cpu_seconds,
        "images_per_core_second": images / cpu_seconds if cpu_seconds else None,
        "read_bytes": read_bytes,
        "waiting_share": max(own["waited_seconds"] for own in by_rank) / seconds,
    }


def chance_of(active_by_rank: Sequence[Sequence[int]], otherwise: float) -> float:
    """The loss, in nats, of a softmax that knows nothing: the mean of ln(active rows of all ranks) over the steps that had some.

    active_by_rank   of each rank, a number a step      otherwise   where no step had any, or the method has no rows
    """
    active_S = np.sum([np.asarray(own, dtype=np.int64) for own in active_by_rank], axis=0)
    active_S = active_S[active_S > 0]
    return float(np.log(active_S).mean()) if len(active_S) else otherwise
