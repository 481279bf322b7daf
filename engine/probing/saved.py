"""A probe in a file, to be tested again: its classifiers with what standardises their rows, its classes, and which network it is for.

Files of earlier versions have no names of classes, nothing of the images that they were trained on, and of the network its weights alone.
"""

import json
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
    names_C     what the source called them; None: its labels are numbers that mean the same everywhere
    trained_M   int64, ascending: hashes of the names of the images that they were trained on; None: a file of an earlier version
    digest      of the network's weights (engine/probing/frozen.py)
    network     a hash of all that its features depend on; None: a file of an earlier version
    image_size  pixels
    """

    heads: dict[str, tuple[Head, Standard]]
    labels_C: np.ndarray
    names_C: list[str] | None
    trained_M: np.ndarray | None
    digest: str
    network: str | None
    image_size: int

    def write(self, path: Path) -> None:
        """Whole, or not at all."""
        tensors = {"labels": torch.from_numpy(self.labels_C)}
        if self.trained_M is not None:
            tensors["trained"] = torch.from_numpy(self.trained_M)
        for name, (head, standard) in self.heads.items():
            tensors |= head.tensors(name, standard)
        metadata = {"heads": " ".join(self.heads), "trunk": self.digest, "image_size": str(self.image_size)}
        metadata |= {} if self.network is None else {"network": self.network}
        metadata |= {} if self.names_C is None else {"classes": json.dumps(self.names_C)}
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
            return SavedProbe(
                heads,
                tensors["labels"].numpy(),
                json.loads(metadata["classes"]) if "classes" in metadata else None,
                tensors["trained"].numpy() if "trained" in tensors else None,
                metadata["trunk"],
                metadata.get("network"),
                int(metadata["image_size"]),
            )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"linear.probe: {path} is not a probe that job=linear saved ({error}); name one of its linear/heads-*.safetensors"
            ) from None
