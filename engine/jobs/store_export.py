"""job=store store.verb=export: every row, caught up, in instance order, as .npy or zarr.

What is left out: zarr written straight from the rows. Neighbours in the order of positions lie anywhere in the order of instances, so
every row would rewrite its chunk. Rows go into a memory-mapped file first and from there into zarr, which for a while takes their
bytes twice, on the disk.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.disk import shapes
from engine.disk.files import TEMPORARY
from engine.disk.zarr_format import CRC_BYTES, create_export
from engine.results import exports
from engine.results.whole_files import Together, own_directory, refuse_links, write_file
from engine.rows.active_rows import ActiveRows
from engine.rows.snapshots import RowReader

_CHUNK_BYTES = 16 * 2**20
_METADATA_BYTES = 2**16  # more than zarr's take


def export(
    directory: Path,
    rows: ActiveRows,
    size: int,
    instances: Callable[[np.ndarray], np.ndarray],
    step: int,
    format: str,
) -> int:
    """Write rows-<step>.npy or .zarr, and rows-<step>.json beside it, into `directory`.

    rows        of the checkpoint of `step`     size   N     instances   the schedule's map from positions to instances
    format      "npy" or "zarr": float32 [N, D] caught up
    A file has its final name only when it is whole; one that had it before is replaced then, and not before.

    Raises ValueError where something there is a link or nobody's export, OSError where the disk has no room: before any row is read.
    """
    own_directory(directory)
    name, about, reader = f"rows-{step}.{format}", f"rows-{step}.json", RowReader(rows)
    content = exports.manifest_bytes({"step": step, "shape": (size, rows.host.weight.shape[1])})
    if format == "zarr":
        refuse_links(directory, [about])
        _export_zarr(directory, name, reader, size, instances)
        write_file(directory / about, content)
    else:
        with Together(directory, [name, about]) as new:
            exports.write_rows(new, name, reader, size, instances)
            new.write(about, content)
    dim = rows.host.weight.shape[1]
    print(
        f"exported the rows of step {step} to {directory / name}: {size:,} x {dim:,} float32, row i belongs to instance i"
    )
    return 0


def _export_zarr(
    directory: Path, name: str, reader: RowReader, size: int, instances: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Write the rows as the zarr array `name`, by way of an .npy."""
    path, part, old = (directory / f"{name}{end}" for end in ("", TEMPORARY, f".old{TEMPORARY}"))
    for there in (path, part, old):
        odd = (
            [there.name] if there.is_symlink() else exports.foreign_in(directory, there.name) if there.exists() else []
        )
        if odd:
            raise ValueError(f"{directory / shapes.shown(odd[0])} is nothing that an export wrote; move it away")
    if old.exists() and not path.exists():  # an export was killed while it took the place of one before
        old.rename(path)
    source, room = name.removesuffix(".zarr") + ".npy", f"{name}.room"
    with Together(directory, [source, room]) as scratch:
        dim = reader.rows.host.weight.shape[1]
        chunk_rows = min(max(1, _CHUNK_BYTES // (4 * dim)), size)
        chunks = -(-size // chunk_rows)
        chunk_bytes = 4 * chunk_rows * dim + CRC_BYTES
        left = scratch.room(room, chunks * chunk_bytes + _METADATA_BYTES)
        rows_ND = exports.write_rows(scratch, source, reader, size, instances)
        for there in (part, old):
            _remove_export(there)
        out = create_export(part, rows_ND.shape, chunk_rows)
        for number, first in enumerate(range(0, size, chunk_rows), start=1):
            os.ftruncate(left, (chunks - number) * chunk_bytes)  # its room is the chunk's now
            out[first : first + chunk_rows] = rows_ND[first : first + chunk_rows]
        scratch.discard()
    if path.exists():
        path.rename(old)
    part.rename(path)
    _remove_export(old)


def _remove_export(path: Path) -> None:
    """A zarr array of ours, in which nothing else is."""
    if path.exists():
        exports.remove_zarr(path)
