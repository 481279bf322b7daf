"""What people take away from a run: the backbone for torchvision, every image's embedding, every row, all in instance order.

    exports/backbone.safetensors   torchvision's names; loads strictly once the model's classifier is Identity
    exports/embeddings.npy         float32 [N, width], backbone features of unit length; NaN where an image cannot be read
    exports/rows.npy               float32 [N, D], caught up to the checkpoint's step. A row never visited is what the generator and
                                   weight decay made of it; with rows that start at a feature it does not exist and is NaN
    exports/manifest.json          step, N, shapes

Arrays are written through memory maps, so the host holds a batch of images or a block of rows at a time.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from engine.snapshots import RowReader


def export_rows(
    path: Path, reader: RowReader, size: int, instances: Callable[[np.ndarray], np.ndarray]
) -> tuple[int, int]:
    """Write rows.npy; returns its shape. size: N. instances: the schedule's map from positions to instances."""
    dim = reader.rows.host.weight.shape[1]
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(size, dim))
    for ids, weight in reader.caught_up_blocks(instances):
        out[ids] = weight
    out.flush()
    return size, dim


def export_embeddings(
    path: Path,
    embed: Callable[[torch.Tensor], torch.Tensor],
    images: Iterator[tuple[np.ndarray, torch.Tensor]],
    size: int,
) -> tuple[int, int]:
    """Write embeddings.npy; returns its shape. images: (instances int64 [B], float32 [B, C, H, W]) until all are read."""
    out: np.ndarray | None = None
    for ids, batch in images:
        features = embed(batch).numpy()
        if out is None:
            out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(size, features.shape[1]))
        out[ids] = features
    assert out is not None, "a source holds at least one image"
    out.flush()  # type: ignore[attr-defined]
    return out.shape[0], out.shape[1]


def export_backbone(path: Path, backbone: dict[str, torch.Tensor], model_name: str) -> None:
    """Write the backbone under torchvision's names; the model's name is in the file's metadata."""
    save_file(backbone, path, metadata={"torchvision": model_name})


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps({"order": "row i belongs to instance i", **content}, indent=2) + "\n")
