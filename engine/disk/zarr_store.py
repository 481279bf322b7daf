"""The store on disk: plain zarr v3 groups, written once, read by block.

    rows/000004-3fa29c/                a generation: a zarr group whose name is never used again (engine/disk/zarr_format.py)

A block is never overwritten: its next version goes into another generation, and the block map (block -> generation, one
checksum a column) says which one counts. The map lives in memory and in checkpoints (engine/training/checkpoint.py); what no
checkpoint names is garbage. A new generation starts after every commit, and when a block would be written into the same one twice.

The checksum in the map is crc32c(content, column, block, generation). So a chunk that is damaged, cut, zeroed, another
block's, or of another generation is noticed when it is read, whatever its own trailing checksum says.

What the map costs: 24 bytes of host memory for each stored block (engine/disk/block_map.py).
"""

import os
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.disk import shapes
from engine.disk.block_map import COLUMNS, BlockMap, Entry
from engine.disk.body import SavedGeneration
from engine.disk.files import DIRECTORY, TEMPORARY, WHAT, Files, remove_any, write_whole
from engine.disk.zarr_format import CRC_BYTES, Column, bound, columns_of, encoded, group_metadata, layouts, unbound
from engine.ranks.lanes import ALL_LANES, Lanes
from engine.rows.checks import CHECKED, crc_of, crc_of_zeros
from engine.rows.damaged import Damaged
from engine.rows.store import Block

ROWS = "rows"


@dataclass
class Generation:
    """A zarr group.

    blocks    how many of its blocks are still on the disk, as far as they are this rank's
    shared    another rank may have blocks in it: it was written when there were fewer ranks
    """

    name: str
    columns: tuple[Column, ...]
    blocks: int = 0
    shared: bool = False


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
        self.generations: dict[int, Generation] = {}
        self._map = BlockMap()
        self._next_generation = self._own_number(1)
        self._current: dict[tuple[Column, ...], int] = {}  # generations that may still be written into
        self._written: dict[int, set[int]] = {}  # blocks of each of those
        self._uncommitted: set[int] = set()  # blocks whose entry no checkpoint names yet
        self._changed: set[int] = set()
        self._replaced: list[tuple[int, Entry]] = []  # committed entries that the next commit replaces
        self._replaced_by: dict[int, list[tuple[int, Entry]]] = {}  # the same by commit
        self.bytes = 0

    # What the host tier asks

    def holds(self, block: int) -> bool:
        return block in self._map

    def read_block(self, block: int, out: Block) -> None:
        self.read_entry(block, self._map[block], out)

    def read_entry(self, block: int, entry: Entry, out: Block) -> None:
        """As read_block, of a version that is given; for checking the blocks of any checkpoint."""
        assert out.momentum is not None
        generation = self.generations[entry.generation]
        for column in generation.columns:
            self._read_column(generation, column, block, entry, getattr(out, column.name))
        if all(column.name != "momentum" for column in generation.columns):
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
        columns = self._exact_columns if exact else self._columns
        if rows.momentum is None:
            columns = tuple(column for column in columns if column.name != "momentum")
        number = self._generation_for(columns, block)
        generation = self.generations[number]
        checks = dict.fromkeys(COLUMNS, 0)
        for column in columns:
            content = encoded(column, getattr(rows, column.name))
            crc = crc_of(content)
            parts: list[Any] = [content.data, crc.to_bytes(CRC_BYTES, "little")]
            write_whole(self.files, f"{ROWS}/{generation.name}/{column.file(block)}", parts)
            checks[column.name] = bound(crc, generation.name, column.name, block)
        generation.blocks += 1
        self.bytes += self._block_bytes(generation)
        self._written[number].add(block)
        before = self._map.get(block)
        self._map.put(block, Entry(number, tuple(checks.values())))
        self._changed.add(block)
        if before and block in self._uncommitted:
            self._remove(block, before)
        elif before:
            self._replaced.append((block, before))
        self._uncommitted.add(block)

    def blocks(self) -> list[int]:
        return self._map.blocks().tolist()

    def checks(self) -> np.ndarray:
        """From the map, which has the checksum of each chunk bound to its place."""
        table = self._map.arrays()
        numbers, inverse = np.unique(table["generation"], return_inverse=True)
        generations = [self.generations[number] for number in numbers.tolist()]
        names_N = np.array([generation.name.encode() for generation in generations], np.bytes_)[inverse]
        found = np.empty(len(inverse), CHECKED)
        found["block"] = table["block"]
        for place, name in enumerate(COLUMNS):
            found["checks"][:, place] = unbound(table["checks"][:, place], names_N, name, table["block"])
        has_no_momentum_N = np.array([len(one.columns) < len(COLUMNS) for one in generations], bool)[inverse]
        zeros = [self._crc_of_no_momentum(one) for one in generations]
        found["checks"][has_no_momentum_N, 1] = np.array(zeros, np.uint32)[inverse][has_no_momentum_N]
        return found

    def read_checks(self, block: int, entry: Entry) -> list[int]:
        """The slow twin of `checks`, of one block: from the bytes on the disk. Raises Damaged where they are not those of the entry."""
        generation = self.generations[entry.generation]
        found = {"momentum": self._crc_of_no_momentum(generation)}
        for column in generation.columns:
            content = np.empty((self.block, max(column.width, 1)), column.stored)
            self._read_column(generation, column, block, entry, content)
            found[column.name] = crc_of(content)
        return [found[name] for name in COLUMNS]

    def _crc_of_no_momentum(self, generation: Generation) -> int:
        """The checksum of zeros, for a generation of folded blocks; the weight comes first in every generation."""
        return crc_of_zeros(generation.columns[0].chunk_bytes(self.block) - CRC_BYTES)

    def unsaved(self) -> list[tuple[int, Block]]:
        return []

    @property
    def host_bytes(self) -> int:
        return 0

    # What a checkpoint asks

    @property
    def next_generation(self) -> int:
        return self._next_generation

    def sync(self) -> None:
        """Make the names of all blocks written since the last call durable."""
        if not self._written:
            return
        for number in self._written:
            generation = self.generations[number]
            for column in generation.columns:
                self.files.sync_directory(f"{ROWS}/{generation.name}/{column.name}")
            self.files.sync_directory(f"{ROWS}/{generation.name}")
        self.files.sync_directory(ROWS)
        opened, self._written = self._written, {}
        self._current.clear()
        for number in opened:
            self._remove_if_empty(number)

    def committed(self, number: int) -> None:
        """Commit `number` names every block as it is now."""
        self._replaced_by[number] = self._replaced
        self._replaced = []
        self._uncommitted.clear()

    def take_changed(self) -> np.ndarray:
        """Blocks whose entry is not what it was at the last call, int64."""
        taken, self._changed = self._changed, set()
        return np.fromiter(taken, np.int64, len(taken))

    def drop_before(self, number: int) -> None:
        """Remove the blocks that commit `number`, and all later ones, do not name: no older commit is left."""
        for commit in sorted(self._replaced_by):
            if commit <= number:
                for block, entry in self._replaced_by.pop(commit):
                    self._remove(block, entry)

    def entry_count(self) -> int:
        """Blocks in the map."""
        return len(self._map)

    def generation_table(self) -> dict[int, SavedGeneration]:
        """The generations that the map may speak of, for a manifest, by number."""
        return {
            number: SavedGeneration(generation.name, generation.columns, generation.shared)
            for number, generation in self.generations.items()
        }

    def entries(self, blocks: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The map, or the part of it for `blocks`, as arrays: see BlockMap.arrays. What was written since the last call is merged."""
        self._map.merge()
        return self._map.arrays(blocks)

    def restore(
        self, versions: list[tuple[int, BlockMap]], next_generation: int, others: Set[str] | None = frozenset()
    ) -> list[str]:
        """Take up what the kept commits name, [(commit, map)] oldest first; returns the paths below `rows` that none of them names.

        The generations that the maps speak of are in `generations` already. Of blocks that are another rank's nothing is returned.
        others   the names of generations that other ranks' maps speak of; None: rank 0 looks after those that nobody names
        """
        assert not len(self._map)
        live = []
        for commit, entries in versions:
            before, self._map = self._map, entries.copy()
            self._replaced_by[commit] = list(before.without(entries).items())
            live.append(entries.without(before).arrays())
        blocks_of = _by_generation(live)
        on_disk = self.files.listing(ROWS)
        numbers = {name: number for name in on_disk if (number := shapes.generation_number(name)) is not None}
        self._next_generation = self._own_number(max([next_generation, *(number + 1 for number in numbers.values())]))
        self.generations = {number: self.generations[number] for number in blocks_of}
        known = (others or set()) | {generation.name for generation in self.generations.values()}
        garbage = [f"{ROWS}/{name}" for name in numbers.keys() - known if on_disk[name] == DIRECTORY]
        garbage = [] if others is None else garbage
        for number, generation in self.generations.items():
            for column in generation.columns:
                root = f"{ROWS}/{generation.name}"
                directory = f"{root}/{column.name}"
                wanted = {column.file(block).partition("/")[2] for block in blocks_of[number].tolist()} | {"zarr.json"}
                with suppress(Damaged):  # a link, in the place of a directory of an older checkpoint
                    there = {name for name, size in self.files.listing(directory).items() if size >= DIRECTORY}
                    unnamed = (f"{column.name}/{name}" for name in there - wanted)
                    garbage += [f"{root}/{path}" for path in unnamed if self._is_ours(root, path, generation.shared)]
            generation.blocks = len(blocks_of[number])
            self.bytes += generation.blocks * self._block_bytes(generation)
        return garbage

    def missing(self, entries: Mapping[int, Entry]) -> list[str]:
        """A line for each file of these blocks that is not there or has another size. Reads directories, no file."""
        listings: dict[tuple[int, str], dict[str, int]] = {}
        lines: list[str] = []
        for block, entry in entries.items():
            generation = self.generations[entry.generation]
            for column in generation.columns:
                key = (entry.generation, column.name)
                if key not in listings:
                    try:
                        listings[key] = self.files.listing(f"{ROWS}/{generation.name}/{column.name}")
                    except Damaged as error:
                        lines.append(str(error))
                        listings[key] = {}
                size, wanted = listings[key].get(column.file(block).partition("/")[2]), column.chunk_bytes(self.block)
                if size != wanted:
                    what = WHAT.get(size, f"has {size} bytes instead of {wanted}") if size is not None else "is missing"
                    lines.append(f"{describe(generation, column, block)} {what}")
        return lines

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
        try:
            same = layouts(found, generation.columns) == layouts(wanted, generation.columns)
        except Exception as error:  # whatever zarr makes of such a file
            return f"{where} is no zarr group: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return None if same else f"{where} has metadata that is not its own"

    def write_metadata(self, number: int) -> None:
        """The zarr.json files of a generation anew; they follow from its columns."""
        generation = self.generations[number]
        root = f"{ROWS}/{generation.name}"
        for path, content in group_metadata(generation.columns, self.block, self.positions).items():
            remove_any(self.files, f"{root}/{path}{TEMPORARY}")
            write_whole(self.files, f"{root}/{path}", [content])
            self.files.sync_directory(f"{root}/{path}".rpartition("/")[0])

    def _generation_for(self, columns: tuple[Column, ...], block: int) -> int:
        number = self._current.get(columns)
        if number is not None and block not in self._written[number]:
            return number
        number = self._next_generation
        self._next_generation += self.lanes.ranks
        generation = Generation(self._unused_name(number), columns)
        files, root = self.files, f"{ROWS}/{generation.name}"
        for column in columns:
            files.make_directory(f"{root}/{column.name}")
        for path, content in group_metadata(columns, self.block, self.positions).items():
            write_whole(files, f"{root}/{path}", [content])
        self.generations[number] = generation
        self._current[columns] = number
        self._written[number] = set()
        return number

    def _unused_name(self, number: int) -> str:
        # The random part: a number may come again after a power cut took the generation that had it.
        names = iter(lambda: f"{number:06d}-{os.urandom(3).hex()}", "")
        return next(name for name in names if name not in self.files.listing(ROWS))

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
        crc = crc_of(content)
        if size != wanted:
            problem = f"has {size} bytes instead of {wanted}"
        elif crc != int.from_bytes(trailer, "little"):
            problem = "does not match its checksum"
        elif bound(crc, generation.name, column.name, block) != entry.checks[COLUMNS.index(column.name)]:
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
        generation.blocks -= 1
        self.bytes -= self._block_bytes(generation)
        self._remove_if_empty(entry.generation)

    def _remove_if_empty(self, number: int) -> None:
        if self.generations[number].blocks == 0 and number not in self._current.values():
            self._written.pop(number, None)
            generation = self.generations.pop(number)
            # One that is shared goes at the next start, when no rank speaks of it.
            if not generation.shared or self.lanes.ranks == 1:
                remove_any(self.files, f"{ROWS}/{generation.name}")

    def _own_number(self, least: int) -> int:
        """The first number from `least` on that no other rank takes."""
        return least + (self.lanes.rank - least) % self.lanes.ranks

    def _is_ours(self, root: str, path: str, shared: bool) -> bool:
        """Whether a file below the generation `root` is the engine's, and this rank's to remove."""
        block = shapes.chunk_block(path)
        if block is not None:
            return self.lanes.has(block)
        return shapes.is_file(f"{root}/{path}") and (not shared or self.lanes.ranks == 1)

    def _block_bytes(self, generation: Generation) -> int:
        return sum(column.chunk_bytes(self.block) for column in generation.columns)


def _by_generation(maps: list[dict[str, np.ndarray]]) -> dict[int, np.ndarray]:
    """The blocks that maps have in each generation, int64 [n]. maps: what BlockMap.arrays gave; no two have the same version of a block."""
    generation, block = (
        np.concatenate([np.empty(0, int), *(one[name] for one in maps)]) for name in ("generation", "block")
    )
    order = np.argsort(generation, kind="stable")
    numbers, first = np.unique(generation[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(block[order], first)[1:], strict=True))


def describe(generation: Generation, column: Column, block: int) -> str:
    return f"block {block} ({column.name}) of generation {generation.name}"
