"""What is left of a run: the facts that its summary and its checkpoints take from elsewhere, and one hash over all that it trained."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.methods.method import Components
from engine.rows.checks import by_block


@dataclass(frozen=True)
class About:
    """
    job, method, instances   for the summary
    backbone                 which model it is, for the file of its weights
    state                    what each checkpoint is to keep for the next start: the config, and what the images were
    planned                  bytes by tier and item
    held                     of a run: bytes by tier that it holds between two steps
    tensorboard              whether TensorBoard hears of the run
    """

    job: str
    method: str
    instances: int
    backbone: dict[str, str]
    state: dict[str, Any]
    planned: dict[str, dict[str, int]]
    held: Callable[[Any], dict[str, int]]
    tensorboard: bool


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """One object of several that have no key in common: what a method or an evaluator tells may not replace what the run tells."""
    whole = {name: value for part in parts for name, value in part.items()}
    assert len(whole) == sum(map(len, parts)), f"said twice: {[*map(sorted, parts)]}"
    return whole


def digest(backbone: dict[str, torch.Tensor], checks: Sequence[np.ndarray], shared: Components | None = None) -> str:
    """sha256 over the backbone's tensors, the checksums of each visited block, and the shared components.

    checks   of each rank, CHECKED [n] (engine/rows/checks.py)
    """
    total = hashlib.sha256()
    for name in sorted(backbone):
        total.update(name.encode())
        total.update(backbone[name].contiguous().numpy().tobytes())
    total.update(by_block(*checks).tobytes())
    for component, tensors in sorted((shared or {}).items()):
        for name in sorted(tensors):
            total.update(f"{component}/{name}".encode())
            total.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
