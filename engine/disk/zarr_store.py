"""The store on disk: plain zarr v3 groups, written once, read by block.

    rows/000004-3fa29c/                a generation: a zarr group whose name is never used again (engine/disk/zarr_format.py)

A block is never overwritten: its next version goes into another generation, and the block map (block -> generation, the crc32c of
each column) says which one counts. The map lives in memory and in checkpoints (engine/training/checkpoint.py); what no
checkpoint names is garbage. A new generation starts after every commit, and when a block would be written into the same one twice.

The map says by block what a chunk must hold. So one that is damaged, cut, zeroed, another block's, or of another generation is noticed
when it is read, whatever its own trailing checksum says; unless its bytes are the same.

What the map costs: 24 bytes of host memory for each stored block (engine/disk/block_map.py), 14 for each generation
(engine/disk/generations.py).
"""

import os
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from engine.disk.block_map import COLUMNS, BlockMap, Entry
from engine.disk.files import TEMPORARY, Files, remove_any
from engine.disk.generations import Generation, Generations
from engine.disk.zarr_format import (
    CRC_BYTES,
    METADATA,
    Column,
    columns_of,
    encoded,
    group_metadata,
    has_momentum,
    layouts,
    without_momentum,
)
from engine.ranks.lanes import ALL_LANES, Lanes
from engine.rows.checks import CHECKED, crc_of, crc_of_zeros
from engine.rows.damaged import Damaged
from engine.rows.store import Block

ROWS = "rows"
_MOST_BLOCKS = 2**16  # of a generation, so that what is remembered of the current ones is bounded


class Versions(NamedTuple):
    """Versions of blocks, distinct: block and generation, int64 [n] each."""

    block: np.ndarray
    generation: np.ndarray


class ZarrStore:
    """Blocks on disk. All calls return when the work is done; engine/disk/write_behind.py does it on a thread.

    files         everything lies below its directory `rows`
    block, dim    C, D
    positions     length of the arrays
    dtype         numpy float32 or float64, of the rows
    bfloat16      store weight and momentum of departing blocks in bfloat16; `exact` writes are in `dtype` all the same
    lanes         whose blocks these are. Ranks that share a disk write into generations of their own, with numbers of their own
    """

    def __init__(
        self,
        files: Files,
        *,
        block: int,
        dim: int,
        positions: int,
        dtype: np.dtype | type,
        bfloat16: bool = False,
        lanes: Lanes = ALL_LANES,
    ) -> None:
        self.files, self.block, self.positions, self.lanes = files, block, positions, lanes
        full = np.dtype(dtype).name
        self._exact_columns = columns_of(full, dim)
        self._columns = columns_of("bfloat16", dim) if bfloat16 else self._exact_columns
        self.generations = Generations(full, dim)
        self._map = BlockMap()
        self._next_generation = self._own_number(1)
        self._first_uncommitted = self._next_generation  # no commit names a generation from this one on
        self._current: dict[tuple[Column, ...], int] = {}  # generations that may still be written into
        self._written: dict[int, set[int]] = {}  # blocks of each of those
        self._unsynced: list[int] = []  # generations that were written into since the last sync
        self._replaced: list[tuple[int, Entry]] = []  # committed entries that the next commit replaces
        self._replaced_by: dict[int, list[tuple[int, Entry]]] = {}  # the same by commit
        self.bytes = 0  # of all block files
        self.blocks_stored = 0  # of which there is a version
        self.blocks_written, self.write_seconds = 0, 0.0  # since the start; on the thread that writes

    # What the host tier asks

    def holds(self, block: int) -> bool:
        return block in self._map

    def is_current(self, block: int, generation: int) -> bool:
        """Whether the newest version of a block is in this generation."""
        entry = self._map.get(block)
        return entry is not None and entry.generation == generation

    def read_block(self, block: int, out: Block) -> None:
        self.read_entry(block, self._map[block], out)

    def read_entry(self, block: int, entry: Entry, out: Block) -> None:
        """As read_block, of a version that is given; for checking the blocks of any checkpoint."""
        generation = self.generations[entry.generation]
        for column in generation.columns:
            content = getattr(out, column.name)
            assert content is not None, "rows without momentum are in generations without"
            self._read_column(generation, column, block, entry, content)
        if out.momentum is not None and not has_momentum(generation.columns):
            out.momentum[:] = 0

    def read_last_step(self, block: int, entry: Entry) -> np.ndarray:
        """The column of a version that is given, int64 [C]; the others are not read. Raises Damaged."""
        generation, out = self.generations[entry.generation], np.empty(self.block, np.int64)
        (column,) = (column for column in generation.columns if column.name == "last_step")
        self._read_column(generation, column, block, entry, out)
        return out

    def as_stored(self, rows: Block, exact: bool) -> Block:
        """A copy of the block as it will be read back."""
        copy = rows.copy()
        if not exact and self._columns is not self._exact_columns:
            for array in (copy.weight, copy.momentum):
                if array is not None:
                    array[:] = torch.from_numpy(array).to(torch.bfloat16).to(torch.float32).numpy()
        return copy

    def write_block(self, block: int, rows: Block, exact: bool = False) -> None:
        start = time.perf_counter()
        columns = self._exact_columns if exact else self._columns
        if rows.momentum is None:
            columns = without_momentum(columns)
        number = self._generation_for(columns, block)
        generation = self.generations[number]
        checks = dict.fromkeys(COLUMNS, 0)
        for column in columns:
            content = encoded(column, getattr(rows, column.name))
            crc = crc_of(content)
            parts: list[Any] = [content.data, crc.to_bytes(CRC_BYTES, "little")]
            self.files.put_whole(f"{ROWS}/{generation.name}/{column.file(block)}", parts)
            checks[column.name] = crc
        self.generations.count(number, 1)
        self.bytes += self._block_bytes(generation)
        self._written[number].add(block)
        if len(self._written[number]) == _MOST_BLOCKS:
            self._close(number)
        before = self._map.get(block)
        self._map.put(block, Entry(number, tuple(checks.values())))
        if before and before.generation >= self._first_uncommitted:
            self._remove(block, before)
        elif before:
            self._replaced.append((block, before))
        self.blocks_stored += before is None
        self.blocks_written += 1
        self.write_seconds += time.perf_counter() - start

    def blocks(self) -> list[int]:
        return self._map.blocks().tolist()

    def checks(self) -> np.ndarray:
        """From the map."""
        table = self._map.arrays()
        found = np.empty(len(table["block"]), CHECKED)
        found["block"], found["checks"] = table["block"], table["checks"]
        kind_N = self.generations.kinds(table["generation"])
        for kind, columns in enumerate(self.generations.columns):
            if len(columns) < len(COLUMNS):
                found["checks"][kind_N == kind, COLUMNS.index("momentum")] = self._crc_of_no_momentum(columns)
        return found

    def read_checks(self, block: int, entry: Entry) -> list[int]:
        """The slow twin of `checks`, of one block: from the bytes on the disk. Raises Damaged where they are not those of the entry."""
        generation = self.generations[entry.generation]
        found = {"momentum": self._crc_of_no_momentum(generation.columns)}
        for column in generation.columns:
            content = np.empty((self.block, max(column.width, 1)), column.stored)
            self._read_column(generation, column, block, entry, content)
            found[column.name] = crc_of(content)
        return [found[name] for name in COLUMNS]

    def _crc_of_no_momentum(self, columns: tuple[Column, ...]) -> int:
        """The checksum of zeros, for a generation without momentum; the weight comes first in every generation."""
        return crc_of_zeros(columns[0].chunk_bytes(self.block) - CRC_BYTES)

    def unsaved(self) -> list[tuple[int, Block]]:
        return []

    @property
    def host_bytes(self) -> int:
        return 0

    @property
    def map_bytes(self) -> int:
        """Host memory of the block map and the generations."""
        return self._map.bytes + self.generations.bytes

    # What a checkpoint asks

    @property
    def next_generation(self) -> int:
        return self._next_generation

    def sync(self) -> None:
        """Make the names of all blocks written since the last call durable."""
        if not self._unsynced:
            return
        for number in self._unsynced:
            generation = self.generations[number]
            for column in generation.columns:
                self.files.sync_directory(f"{ROWS}/{generation.name}/{column.name}")
            self.files.sync_directory(f"{ROWS}/{generation.name}")
        self.files.sync_directory(ROWS)
        for number in list(self._written):
            self._close(number)
        unsynced, self._unsynced = self._unsynced, []
        for number in unsynced:
            self._remove_if_empty(number)

    def committed(self, number: int) -> None:
        """Commit `number` names every block as it is now."""
        self._replaced_by[number] = self._replaced
        self._replaced = []
        self._first_uncommitted = self._next_generation

    def changed(self) -> np.ndarray:
        """Blocks whose entry is not what it was at the last commit, int64, ascending."""
        self._map.merge()
        return self._map.blocks_since(self._first_uncommitted)

    def drop_before(self, number: int) -> None:
        """Remove the blocks that commit `number`, and all later ones, do not name: no older commit is left."""
        for commit in sorted(self._replaced_by):
            if commit <= number:
                for block, entry in self._replaced_by.pop(commit):
                    self._remove(block, entry)

    def entry_count(self) -> int:
        """Blocks in the map."""
        return len(self._map)

    def entries(self, blocks: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The arrays of a file: the map, or the part of it for `blocks`, and the generations that it speaks of.

        What was written since the last call is merged.
        """
        self._map.merge()
        table = self._map.arrays(blocks)
        return {**table, **self.generations.of(np.unique(table["generation"])).arrays()}

    def restore(self, versions: list[tuple[int, BlockMap]], generations: Generations, next_generation: int) -> Versions:
        """Take up what the kept commits name, [(commit, map)] oldest first, and the generations that they speak of; no file is looked at.

        Returns every version of a block that is named, for Patrol (engine/disk/patrol.py), which looks.
        """
        assert not len(self._map)
        live = []
        for commit, entries in versions:
            before, self._map = self._map, entries.copy()
            self._replaced_by[commit] = list(before.without(entries).items())
            live.append(entries.without(before).arrays())
        block, generation = (
            np.concatenate([np.empty(0, int), *(one[name] for one in live)]) for name in ("block", "generation")
        )
        self.generations = generations.with_counts(*np.unique(generation, return_counts=True))
        self.bytes = self.generations.total_bytes(self.block)
        self.blocks_stored = len(self._map)
        self._next_generation = self._first_uncommitted = self._own_number(next_generation)
        return Versions(block, generation)

    def metadata_problem(self, number: int) -> str | None:
        """A line where zarr would not open the generation, or would look for other chunks in it than are there."""
        generation = self.generations[number]
        where = f"generation {generation.name}"
        wanted = group_metadata(generation.columns, self.block, self.positions)
        found = {}
        for path in wanted:
            try:
                found[path] = self.files.read(f"{ROWS}/{generation.name}/{path}")
            except FileNotFoundError:
                return f"{where} has no {path}"
            except (OSError, Damaged) as error:
                return f"{where}: {error}"
        wanted_layouts = layouts(wanted, generation.columns)
        try:
            same = layouts(found, generation.columns) == wanted_layouts
        except MemoryError:
            raise
        except Exception as error:  # whatever zarr makes of such a file
            return f"{where} is no zarr group: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return None if same else f"{where} has metadata that is not its own"

    def write_metadata(self, number: int) -> None:
        """The zarr.json files of a generation anew; they follow from its columns."""
        generation = self.generations[number]
        root = f"{ROWS}/{generation.name}"
        for path, content in group_metadata(generation.columns, self.block, self.positions).items():
            remove_any(self.files, f"{root}/{path}{TEMPORARY}")
            self.files.put_whole(f"{root}/{path}", [content])
            self.files.sync_directory(f"{root}/{path}".rpartition("/")[0])

    def _generation_for(self, columns: tuple[Column, ...], block: int) -> int:
        number = self._current.get(columns)
        if number is not None and block not in self._written[number]:
            return number
        if number is not None:
            self._close(number)
        number = self._next_generation
        self._next_generation += self.lanes.ranks
        self._begin_generation(number, columns)
        self._current[columns] = number
        self._written[number] = set()
        self._unsynced.append(number)
        return number

    def _close(self, number: int) -> None:
        """Write no more into a generation."""
        del self._written[number], self._current[self.generations[number].columns]

    def _begin_generation(self, number: int, columns: tuple[Column, ...]) -> None:
        """Its directories and zarr.json files, under a name that nothing there has."""
        metadata = group_metadata(columns, self.block, self.positions)
        self.files.make_directory(ROWS)
        while True:
            # The random part: a number comes again after a power cut or a kill took the checkpoint that knew the generation.
            self.generations.add(number, int.from_bytes(os.urandom(3)), columns)  # before Patrol can see the directory
            root = f"{ROWS}/{self.generations[number].name}"
            try:
                for column in columns:
                    self.files.make_directory(f"{root}/{column.name}")
                self.files.put_if_absent(f"{root}/{METADATA}", [metadata[METADATA]])
                break
            except (FileExistsError, Damaged):  # there is one already, or something foreign
                self.generations.remove(number)
        for path in metadata.keys() - {METADATA}:
            self.files.put_whole(f"{root}/{path}", [metadata[path]])

    def _read_column(self, generation: Generation, column: Column, block: int, entry: Entry, out: np.ndarray) -> None:
        direct = out.dtype == column.stored
        content = out if direct else np.empty(out.shape, column.stored)
        trailer = bytearray(CRC_BYTES)
        path = f"{ROWS}/{generation.name}/{column.file(block)}"
        wanted = column.chunk_bytes(self.block)
        try:
            size = self.files.read_into(path, [content.data.cast("B"), memoryview(trailer)])
        except FileNotFoundError:
            raise Damaged(f"{describe(generation, column, block)} is missing") from None
        except IsADirectoryError:
            raise Damaged(f"{describe(generation, column, block)} is a directory") from None
        crc = crc_of(content)
        if size != wanted:
            problem = f"has {size} bytes instead of {wanted}"
        elif crc != int.from_bytes(trailer, "little"):
            problem = "does not match its checksum"
        elif crc != entry.checks[COLUMNS.index(column.name)]:
            problem = "holds another block, or an older version of it"
        else:
            problem = ""
        if problem:
            raise Damaged(f"{describe(generation, column, block)} {problem}")
        if not direct:
            out[:] = torch.from_numpy(content).view(torch.bfloat16).to(torch.float32).numpy()

    def _remove(self, block: int, entry: Entry) -> None:
        generation = self.generations[entry.generation]
        for column in generation.columns:
            remove_any(self.files, f"{ROWS}/{generation.name}/{column.file(block)}")  # where it is not missing
        self.generations.count(entry.generation, -1)
        self.bytes -= self._block_bytes(generation)
        self._remove_if_empty(entry.generation)

    def _remove_if_empty(self, number: int) -> None:
        generation = self.generations[number]
        if generation.blocks == 0 and number not in self._written:
            if number in self._unsynced:
                self._unsynced.remove(number)
            self.generations.remove(number)
            # One that is shared goes at the next start, when no rank speaks of it.
            if not generation.shared or self.lanes.ranks == 1:
                remove_any(self.files, f"{ROWS}/{generation.name}")

    def _own_number(self, least: int) -> int:
        """The first number from `least` on that no other rank takes."""
        return least + (self.lanes.rank - least) % self.lanes.ranks

    def _block_bytes(self, generation: Generation) -> int:
        return sum(column.chunk_bytes(self.block) for column in generation.columns)


def describe(generation: Generation, column: Column, block: int) -> str:
    return f"block {block} ({column.name}) of generation {generation.name}"
