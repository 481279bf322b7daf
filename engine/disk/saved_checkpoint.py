"""A checkpoint as its manifest names it: what it has, read with checksums, as a whole or for some lanes."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load as numpy_load
from safetensors.torch import load as torch_load

from engine.disk import format_3, shapes
from engine.disk.block_map import BlockMap
from engine.disk.body import Body, Part, RowSizes
from engine.disk.files import Files
from engine.disk.generations import Generations
from engine.disk.manifest_body import check_active, check_map, require_arrays
from engine.disk.zarr_store import ZarrStore
from engine.ranks.lanes import ALL_LANES, Lanes
from engine.rows.damaged import Damaged

# Of a run without rows, where something has to be said.
NO_ROWS = RowSizes(block=1, dim=1, positions=1, dtype="float32")


@dataclass
class SavedCheckpoint:
    """A checkpoint: the body of its manifest, and where its files are."""

    files: Files
    body: Body
    _tables: dict[Lanes, tuple[Generations, BlockMap]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def number(self) -> int:
        return self.body.number

    @property
    def step(self) -> int:
        return self.body.step

    @property
    def name(self) -> str:
        """For people; also the directory that holds most of its files."""
        return self.body.directory

    def row_sizes(self) -> RowSizes:
        """Raises ValueError where the run has no rows."""
        if self.body.rows is None:
            raise ValueError(f"the method of this run has no rows; store.verb=verify looks at all that {self.name} has")
        return self.body.rows

    def read(self, name: str) -> bytes:
        """One of its own files (`trunk`, `momentum`, `shared-queue`), or another by its path. Raises Damaged."""
        path = name if "/" in name else f"{self.name}/{name}.safetensors"
        try:
            content = self.files.read(path)
        except FileNotFoundError:
            raise Damaged(f"{path} is missing") from None
        except IsADirectoryError:
            raise Damaged(f"{path} is a directory") from None
        if hashlib.sha256(content).hexdigest() != self.body.files[path]:
            raise Damaged(f"{path.rpartition('/')[2]} does not match its checksum")
        return content

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Of one of its safetensors files. Raises Damaged; what the arrays are is for the caller to check."""
        return self._loaded(numpy_load, name)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return self._loaded(torch_load, name)

    def log(self) -> dict[str, np.ndarray]:
        """What is known of every step, float64 [steps]: the loss, NaN where the step was skipped; with rows eta, too; else what the
        method logs.
        """
        parts = [self.arrays(path) for path in self.body.log.paths]
        names = {"eta", "loss"} if self.body.rows else {"loss", *parts[0]}
        for path, part in zip(self.body.log.paths, parts, strict=True):
            kind = np.dtype(np.float64), (part["loss"].size if "loss" in part else 0,)
            require_arrays(part, dict.fromkeys(names, kind), path.rpartition("/")[2])
        log = {name: np.concatenate([part[name] for part in parts]) for name in sorted(names)}
        if len(log["loss"]) != self.step:
            raise Damaged(f"its log has {len(log['loss'])} steps instead of {self.step}")
        return log

    def parts(self, lanes: Lanes = ALL_LANES) -> list[Part]:
        """What was written of these lanes, and maybe of others with them."""
        return [part for part in self.body.parts if lanes.meets(part.rank, part.ranks)]

    def active(self, lanes: Lanes = ALL_LANES) -> list[dict[str, np.ndarray]]:
        """The active rows, of each part that has some of these lanes; nothing where the run has no rows."""
        found = []
        for part in self.parts(lanes):
            if self.body.rows and part.active:
                found.append(self.arrays(part.active))
                check_active(found[-1], self.body.rows, part)
        return found

    def tables(self, lanes: Lanes = ALL_LANES) -> tuple[Generations, BlockMap]:
        """The generations that blocks of these lanes are in, and the block map of these lanes.

        Kept until `forget`: a start checks them first, and then takes them up.
        """
        if lanes not in self._tables:
            self._tables[lanes] = self._read_tables(lanes)
        return self._tables[lanes]

    def forget(self) -> None:
        """Let go of the tables, which may be large."""
        self._tables.clear()

    def _read_tables(self, lanes: Lanes) -> tuple[Generations, BlockMap]:
        generations, entries = self._no_tables()
        for part in self.parts(lanes):
            of_part, map_of_part = self.tables_of(part)
            if not lanes.contains(part.rank, part.ranks):
                of_part = of_part.all_shared()
            generations = generations.joined(of_part)
            entries = entries.overlaid(map_of_part.where(lanes.has(map_of_part.blocks())))
        return generations.of(entries.generations()[0]), entries

    def tables_of(self, part: Part) -> tuple[Generations, BlockMap]:
        """What one rank wrote of them. Raises Damaged."""
        generations, entries = self._no_tables()
        is_old = self.body.format == format_3.NUMBER
        if is_old and self.body.rows:
            generations = format_3.generations_of(part.extra, self.body.rows.dtype, self.body.rows.dim)
        for path in part.blocks.paths if part.blocks else []:
            arrays, sizes = self.arrays(path), self.row_sizes()
            check_map(arrays, sizes, part, path, self.body.format)
            if is_old:
                entries = entries.overlaid(format_3.map_of(arrays, generations))
                continue
            entries = entries.overlaid(BlockMap(arrays))
            generations = generations.joined(Generations(sizes.dtype, sizes.dim, arrays))
        if len(entries) != part.stored_blocks:
            raise Damaged(f"its map has {len(entries)} blocks instead of {part.stored_blocks}")
        return generations.of(entries.generations()[0]), entries

    def _no_tables(self) -> tuple[Generations, BlockMap]:
        rows = self.body.rows or NO_ROWS
        return Generations(rows.dtype, rows.dim), BlockMap()

    def generations(self, lanes: Lanes = ALL_LANES) -> Generations:
        return self.tables(lanes)[0]

    def entries(self, store: ZarrStore, lanes: Lanes = ALL_LANES) -> BlockMap:
        """The block map of these lanes; the store learns the generations that it speaks of."""
        generations, entries = self.tables(lanes)
        store.generations = store.generations.joined(generations)
        return entries

    def files_of(self, lanes: Lanes) -> list[str]:
        """The files that whoever works for these lanes reads; rank 0 reads those that belong to no lane, too."""
        of_parts = {path for part in self.body.parts for path in part.paths}
        mine = {path for part in self.parts(lanes) for path in part.paths}
        return [path for path in self.body.files if path in mine or (lanes.rank == 0 and path not in of_parts)]

    def _loaded(self, load: Callable[[bytes], Any], name: str) -> Any:
        content = self.read(name)
        try:
            return load(content)
        except MemoryError:
            raise
        except Exception as error:  # whatever safetensors makes of such a file
            raise Damaged(f"{name} is not a safetensors file: {shapes.shown(str(error))}") from None

    def store(self) -> ZarrStore:
        """A store of this checkpoint's sizes, for reading its blocks; of a run without rows, one in which nothing is."""
        rows = self.body.rows or NO_ROWS
        return ZarrStore(
            self.files, block=rows.block, dim=rows.dim, positions=rows.positions, dtype=np.dtype(rows.dtype)
        )
