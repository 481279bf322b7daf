"""Looks at the names and sizes of all block files, so that no start has to.

A start checks manifests, tables and resident blocks, whatever N is. The rest is looked at by a thread while the run goes on, once that has
settled: a generation at a time, with rests that leave a twentieth of a core to it. What it finds:

    missing    a file of a block that is not there, or has another size: the run stops by name, before the block is asked for. An older
               checkpoint may be whole; store.verb=repair goes back to it
    garbage    a file or a generation of ours that no checkpoint names: what a killed run left. Checkpoints removes it
    foreign    what the engine did not write. It stays, and is told in a line

How the look and the run keep out of each other's way: nothing is added to a generation of before the start, and a block's file is removed
only after the map says where its next version is. So a missing file counts only if the map still names it. As for whole generations:
numbers from the checkpoint's next one on are those that this run gives, or that a killed one gave. The store knows its own, and every
rank looks after the numbers that it would give. Lower numbers nobody gives again; rank 0 compares them with what the checkpoints name.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from engine.disk import shapes
from engine.disk.block_map import BlockMap
from engine.disk.files import DIRECTORY, WHAT
from engine.disk.generations import Generation, Generations
from engine.disk.zarr_format import METADATA
from engine.disk.zarr_store import ROWS, Versions, ZarrStore, describe
from engine.rows.damaged import Damaged

_SETTLING_SECONDS = 10.0  # the first steps have the processor to themselves
_RESTS = 19.0  # times as long as the look before: a twentieth of a core


@dataclass
class Found:
    """missing: (block, what is wrong with a file of it). garbage, foreign: paths."""

    missing: list[tuple[int, str]] = field(default_factory=list)
    garbage: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def look(store: ZarrStore, versions: Versions, is_named: Callable[[str], bool]) -> Iterator[Found]:
    """What is found in one generation after the other, and last which generations nobody names.

    versions   of blocks that have files: what ZarrStore.restore gave
    is_named   whether a checkpoint names a generation, or it is another rank's to look after; by its name
    """
    return _look(store, store.generations.copy(), versions, is_named)  # of now, whenever the look begins


def _look(
    store: ZarrStore, generations: Generations, versions: Versions, is_named: Callable[[str], bool]
) -> Iterator[Found]:
    for number, blocks in _by_generation(versions):
        found = _in_generation(store, generations[number], blocks)
        found.missing = [one for one in found.missing if store.is_current(one[0], number)]
        yield found
    found = Found()
    for name, size in store.files.listing(ROWS).items():
        path = f"{ROWS}/{name}"
        if size != DIRECTORY or not shapes.is_directory(path):
            found.foreign.append(path)
        elif not is_named(name):
            found.garbage.append(path)
    yield found


def missing_files(store: ZarrStore, entries: BlockMap) -> list[str]:
    """A line for each file of these blocks that is not there or has another size, in the order of blocks. Reads directories, no file."""
    table = entries.arrays()
    lines: list[tuple[int, str]] = []
    for number, blocks in _by_generation(Versions(table["block"], table["generation"])):
        lines += _in_generation(store, store.generations[number], blocks).missing
    return [line for _, line in sorted(lines, key=lambda one: one[0])]


def naming(store: ZarrStore, next_generation: int, known: Generations | None) -> Callable[[str], bool]:
    """`is_named` of a run that goes on.

    next_generation   of the checkpoint from which it goes on
    known             what the kept checkpoints name, of all ranks; None: another rank looks after the lower numbers
    """

    def is_named(name: str) -> bool:
        number = shapes.generation_number(name)
        assert number is not None, name
        if number >= next_generation:
            return number % store.lanes.ranks != store.lanes.rank or store.generations.has_name(name)
        return known is None or known.has_name(name)

    return is_named


def all_found(looks: Iterator[Found]) -> Found:
    """Garbage and foreign of all of them. Raises Damaged for the first file that is missing."""
    total = Found()
    for found in looks:
        if found.missing:
            raise Damaged(found.missing[0][1])
        total.garbage += found.garbage
        total.foreign += found.foreign
    return total


class Patrol(threading.Thread):
    """`look`, on a thread.

    done     called at the end with garbage and foreign, unless `stop` came first
    failed   called instead, with Damaged where a block is missing, or with what kept it from looking
    """

    def __init__(
        self, looks: Iterator[Found], done: Callable[[Found], None], failed: Callable[[BaseException], None]
    ) -> None:
        super().__init__(name="patrol", daemon=True)
        self._looks, self._done, self._failed = looks, done, failed
        self._is_hurried, self._is_stopped = threading.Event(), False

    def run(self) -> None:
        try:
            self._is_hurried.wait(_SETTLING_SECONDS)
            found = all_found(self._with_rests())
            if not self._is_stopped:
                self._done(found)
        except BaseException as error:
            self._failed(error)

    def hurry(self) -> None:
        """Begin now, and do not rest: somebody waits."""
        self._is_hurried.set()

    def stop(self) -> None:
        """Return when it has ended."""
        self._is_stopped = True
        self.hurry()
        self.join()

    def _with_rests(self) -> Iterator[Found]:
        start = time.perf_counter()
        for found in self._looks:
            yield found
            self._is_hurried.wait(_RESTS * (time.perf_counter() - start))
            if self._is_stopped:
                return
            start = time.perf_counter()


def _in_generation(store: ZarrStore, generation: Generation, blocks: np.ndarray) -> Found:
    """What is there beside these blocks, int64 [n], and what of them is not."""
    found = Found()
    _compare(store, generation, "", {METADATA, *(column.name for column in generation.columns)}, found)
    for column in generation.columns:
        sizes = {column.file(block).partition("/")[2]: block for block in blocks.tolist()}
        wanted = column.chunk_bytes(store.block)
        try:
            there = _compare(store, generation, f"{column.name}/", {METADATA, *sizes}, found)
        except Damaged as error:
            found.missing += [(block, str(error)) for block in blocks.tolist()]
            continue
        for name, block in sizes.items():
            size = there.get(name)
            if size != wanted:
                what = "is missing" if size is None else WHAT.get(size, f"has {size} bytes instead of {wanted}")
                found.missing.append((block, f"{describe(generation, column, block)} {what}"))
    return found


def _compare(store: ZarrStore, generation: Generation, below: str, wanted: set[str], found: Found) -> dict[str, int]:
    """A directory of a generation, as Files.listing gives it; what is in it and not `wanted` is added to `found`.

    below   "", or a column and "/"
    """
    root = f"{ROWS}/{generation.name}/{below}"
    there = store.files.listing(root.rstrip("/"))
    for name in there.keys() - wanted:
        is_ours = there[name] >= DIRECTORY and (shapes.is_file(root + name) or shapes.is_directory(root + name))
        if not is_ours:
            found.foreign.append(root + name)
        elif _is_of_this_rank(store, generation, below + name):
            found.garbage.append(root + name)
    return there


def _is_of_this_rank(store: ZarrStore, generation: Generation, path: str) -> bool:
    """Whether a file below a generation is this rank's to remove."""
    block = shapes.chunk_block(path)
    if block is not None:
        return store.lanes.has(block)
    return not generation.shared or store.lanes.ranks == 1


def _by_generation(versions: Versions) -> Iterator[tuple[int, np.ndarray]]:
    """(number, its blocks, int64 [n]), ascending."""
    order = np.argsort(versions.generation, kind="stable")
    numbers, first = np.unique(versions.generation[order], return_index=True)
    return zip(numbers.tolist(), np.split(versions.block[order], first)[1:], strict=True)
