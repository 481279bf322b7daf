"""What people take away from a run: the backbone for torchvision or timm, every image's embedding, every row, all in instance order.

    exports/backbone.safetensors   the names of torchvision or timm; loads strictly once the model's classifier is Identity
    exports/embeddings.npy         float32 [N, width], backbone features of unit length; NaN where an image cannot be read
    exports/rows.npy               float32 [N, D], caught up to the checkpoint's step. A row never visited is what the generator and
                                   weight decay made of it; with rows that start at a feature it does not exist and is NaN
    exports/names.txt              UTF-8, line i names instance i: the path of an image, what a glyph shows; as messages show it
    exports/manifest.json          step, shapes, how many images could not be read

They belong together. They are written beside those of an export before, and take their names when all are whole
(engine/results/whole_files.py); manifest.json goes first and comes last, so without it the others may be of two exports.

Arrays are written through memory maps, so the host holds a batch of images or a block of rows at a time.
"""

import json
import os
from array import array
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save

from datasets.batch import Loaded
from datasets.shown import few
from engine.disk import shapes
from engine.results.whole_files import Together, own_directory, write_file
from engine.rows.snapshots import RowReader

NAMES = ["rows.npy", "embeddings.npy", "names.txt", "backbone.safetensors", "manifest.json"]
_LINES = 65_536  # names that are written at once

Embed = Callable[[Loaded], np.ndarray]
Images = Iterator[tuple[np.ndarray, Loaded]]


class Exported(NamedTuple):
    """
    shapes      of the arrays
    unreadable  images whose embeddings are NaN
    first       the names of the first three of them
    """

    shapes: dict[str, tuple[int, int]]
    unreadable: int
    first: list[str]

    def __str__(self) -> str:
        text = json.dumps(self.shapes)
        if self.unreadable:
            text += f"\n{self.unreadable:,} images could not be read, and their embeddings are NaN: {few(self.first, self.unreadable)}"
        return text


def export_run(
    directory: Path,
    *,
    reader: RowReader | None,
    size: int,
    instances: Callable[[np.ndarray], np.ndarray],
    backbone: dict[str, torch.Tensor],
    model: dict[str, str],
    embed: Embed,
    images: Images,
    name_of: Callable[[int], str],
    about: dict[str, Any],
) -> Exported:
    """Write all files into `directory`, which is made; returns what they hold.

    reader     None: the method has no rows, and rows.npy is left out
    size       N                        instances   the schedule's map from positions to instances
    model      which model the backbone is, for the file's metadata
    embed      images to features, float32 [B, width], NaN where one cannot be decoded
    images      (instances int64 [B], their images) until all N are read
    name_of    an instance to its name, on one line
    about      what manifest.json says beside the shapes

    Raises ValueError where `directory` or a file in it is a link, OSError where the disk has no room: before any row is read. Raises
    ValueError where no image can be read, and leaves an export before as it was.
    """
    with Together(own_directory(directory), NAMES if reader else NAMES[1:]) as new:
        ids, batch = next(images)
        first = embed(batch)
        shapes_of = {"rows": (size, reader.rows.host.weight.shape[1])} if reader else {}
        shapes_of["embeddings"] = (size, first.shape[1])
        arrays = {name: new.array(f"{name}.npy", shape) for name, shape in shapes_of.items()}
        new.write("backbone.safetensors", _backbone_bytes(backbone, model))
        if reader:
            _fill_rows(arrays["rows"], reader, instances)
        features = chain([(ids, first)], ((ids, embed(batch)) for ids, batch in images))
        unreadable = _fill_embeddings(arrays["embeddings"], features)
        if len(unreadable) == size:
            raise ValueError(f"none of {size:,} images can be read; look at data.root")
        new.write_pieces("names.txt", _name_lines(size, name_of))
        content = {**about, "shapes": shapes_of, "unreadable": len(unreadable)}
        new.write("manifest.json", manifest_bytes(content))
    return Exported(shapes_of, len(unreadable), [name_of(instance) for instance in unreadable[:3]])


def write_rows(
    new: Together, name: str, reader: RowReader, size: int, instances: Callable[[np.ndarray], np.ndarray]
) -> np.memmap:
    """Write the rows as the file `name`, an .npy; returns them, float32 [N, D], good until `new` ends."""
    rows = new.array(name, (size, reader.rows.host.weight.shape[1]))
    _fill_rows(rows, reader, instances)
    return rows


def backbone_of(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The backbone's tensors under the names of its library."""
    prefix = "backbone."
    return {name.removeprefix(prefix): tensor for name, tensor in model.items() if name.startswith(prefix)}


def export_backbone(path: Path, backbone: dict[str, torch.Tensor], model: dict[str, str]) -> None:
    """Write the backbone under the names of its library. model: which model it is, for the file's metadata."""
    write_file(path, _backbone_bytes(backbone, model))


def manifest_bytes(content: dict[str, Any]) -> bytes:
    """What says of an export what it is."""
    return (json.dumps({"order": "row i belongs to instance i", **content}, indent=2) + "\n").encode()


def remove_zarr(path: Path) -> None:
    """Remove an array that an export wrote, or has begun to write."""
    _remove(path.parent, path.name)


def foreign_in(path: Path, below: str) -> list[str]:
    """Of the export `below` in `path`, or all of them (""): paths of what no export wrote."""
    return _remove(path, below, only_list=True)


def _remove(directory: Path, below: str, only_list: bool = False) -> list[str]:
    stays = []
    with os.scandir(directory / below) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir(follow_symlinks=False) and shapes.is_export_directory(path):
            stays += _remove(directory, path, only_list)
        elif not entry.is_file(follow_symlinks=False) or not shapes.is_export(path):
            stays.append(path)
        elif not only_list:
            os.unlink(entry.path)
    if not stays and not only_list:
        os.rmdir(directory / below)
    return stays


def _fill_rows(rows_ND: np.ndarray, reader: RowReader, instances: Callable[[np.ndarray], np.ndarray]) -> None:
    for ids, weight in reader.caught_up_blocks(instances):
        rows_ND[ids] = weight


def _fill_embeddings(out: np.ndarray, features: Iterator[tuple[np.ndarray, np.ndarray]]) -> "array[int]":
    """The instances without features."""
    unreadable = array("q")
    for ids, rows in features:
        out[ids] = rows
        unreadable.extend(ids[~np.isfinite(rows).all(axis=1)].tolist())
    return unreadable


def _name_lines(size: int, name_of: Callable[[int], str]) -> Iterator[bytes]:
    for first in range(0, size, _LINES):
        yield "".join(f"{name_of(instance)}\n" for instance in range(first, min(first + _LINES, size))).encode()


def _backbone_bytes(backbone: dict[str, torch.Tensor], model: dict[str, str]) -> bytes:
    return save(backbone, metadata=model)
