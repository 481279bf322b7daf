"""A probe in a file, to be tested again: its classifiers with what standardises their rows, its classes, and which network it is for."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from engine.probing.heads import Head
from engine.probing.rows import Standard
from engine.results.whole_files import write_file


class SavedProbe(NamedTuple):
    """
    heads       by name, each with the standard of its rows
    labels_C    int64, the label of each class as its source had it
    digest      of the network (engine/probing/frozen.py)
    image_size  pixels
    """

    heads: dict[str, tuple[Head, Standard]]
    labels_C: np.ndarray
    digest: str
    image_size: int

    def write(self, path: Path) -> None:
        """Whole, or not at all."""
        tensors = {"labels": torch.from_numpy(self.labels_C)}
        for name, (head, standard) in self.heads.items():
            tensors |= head.tensors(name, standard)
        metadata = {"heads": " ".join(self.heads), "trunk": self.digest, "image_size": str(self.image_size)}
        write_file(path, save(tensors, metadata=metadata))

    @staticmethod
    def read(path: Path, device: torch.device) -> "SavedProbe":
        """Raises ValueError where there is no such file, or none of ours."""
        if not path.is_file():
            raise ValueError(f"linear.probe: there is no probe at {path}; train one without linear.probe")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            heads = {name: Head.loaded(tensors, name, device) for name in metadata["heads"].split()}
            return SavedProbe(heads, tensors["labels"].numpy(), metadata["trunk"], int(metadata["image_size"]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"linear.probe: {path} is not a probe that job=linear saved ({error}); name one of its linear/heads-*.safetensors"
            ) from None
