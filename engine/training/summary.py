"""What is left of a run: the facts that its summary and its checkpoints take from elsewhere, and one hash over all that it trained."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from engine.methods.method import Components


@dataclass(frozen=True)
class About:
    """
    job, method, instances   for the summary
    backbone                 its name, for the file of its weights
    state                    what each checkpoint is to keep for the next start: the config, and what the images were
    planned                  bytes by tier and item
    tensorboard              whether TensorBoard hears of the run
    """

    job: str
    method: str
    instances: int
    backbone: str
    state: dict[str, Any]
    planned: dict[str, dict[str, int]]
    tensorboard: bool


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """One object of several that have no key in common: what a method or an evaluator tells may not replace what the run tells."""
    whole = {name: value for part in parts for name, value in part.items()}
    assert len(whole) == sum(map(len, parts)), f"said twice: {[*map(sorted, parts)]}"
    return whole


def digest(backbone: dict[str, torch.Tensor], hashes: dict[int, bytes], shared: Components | None = None) -> str:
    """sha256 over the backbone's tensors, the hash of each visited block, whichever rank it came from, and the shared components."""
    total = hashlib.sha256()
    for name in sorted(backbone):
        total.update(name.encode())
        total.update(backbone[name].contiguous().numpy().tobytes())
    for number in sorted(hashes):
        total.update(number.to_bytes(8, "little") + hashes[number])
    for component, tensors in sorted((shared or {}).items()):
        for name in sorted(tensors):
            total.update(f"{component}/{name}".encode())
            total.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
