"""What a probe has trained so far, in a file: replaced whole, and of no use to a probe that was told anything else."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from engine.results.whole_files import write_file

SAVE_SECONDS = 60.0


class Kept:
    """
    path            None: nothing is kept
    key             of all that the result depends on; a file with another one counts for nothing
    `save` writes at most every SAVE_SECONDS, and at the last step.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._key = path, key
        self._saved = time.monotonic()

    def load(self) -> tuple[int, dict[str, torch.Tensor]] | None:
        """(step, tensors) of the last save; None where there is none."""
        if self._path is None or not self._path.is_file() or self._path.is_symlink():
            return None
        try:
            with safe_open(self._path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self._key:
                    return None
                return int(metadata["step"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def save(self, step: int, tensors: Callable[[], dict[str, torch.Tensor]], *, is_last: bool) -> None:
        """Write, where it is time to. tensors: gives them, on the host."""
        if self._path is None or (not is_last and time.monotonic() - self._saved < SAVE_SECONDS):
            return
        write_file(self._path, save(tensors(), metadata={"key": self._key, "step": str(step)}))
        self._saved = time.monotonic()
