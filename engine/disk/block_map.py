"""The block map: where each stored block is, in 24 bytes of host memory a block.

    block        int64 [n], ascending
    generation   uint32 [n], its number
    checks       uint32 [n, 3], the crc32c of each column: weight, momentum, last_step; 0 where the generation lacks the column

What was written since the last merge lies in a dict over these arrays, so a write costs nothing that grows with the map. A merge makes
new arrays, which costs a copy of them (24 MB for 10^6 blocks, some 10 ms) and happens at commits and after 65,536 writes. Until then both
are there.

One thread writes and merges. Others may look up blocks meanwhile: arrays are never changed, and are replaced before the dict is.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

COLUMNS = ("weight", "momentum", "last_step")
MOST_GENERATION = 2**32 - 1
_MOST_NEWS = 2**16


class Entry(NamedTuple):
    """Where a block is: the generation's number, and the crc32c of each of COLUMNS, 0 where the generation lacks it."""

    generation: int
    checks: tuple[int, ...]


class _Table(NamedTuple):
    """See the module's docstring."""

    block: np.ndarray
    generation: np.ndarray
    checks: np.ndarray

    def overlaid(self, news: "_Table") -> "_Table":
        """The same with the blocks of `news`, which replace those of the same number."""
        if not len(self.block) or not len(news.block):
            return news if len(news.block) else self
        place = np.searchsorted(self.block, news.block)
        there = np.zeros(len(place), dtype=bool)
        inside = place < len(self.block)
        there[inside] = self.block[place[inside]] == news.block[inside]
        parts = []
        for old, new in zip(self, news, strict=True):
            part = old
            if there.any():
                part = old.copy()
                part[place[there]] = new[there]
            if not there.all():
                part = np.insert(part, place[~there], new[~there], axis=0)
            parts.append(part)
        return _Table(*parts)

    def chosen(self, index: np.ndarray) -> "_Table":
        return _Table(*(part[index] for part in self))


class BlockMap(Mapping[int, Entry]):
    """block -> Entry; iterates in ascending order. `put` and `merge` are for one thread, all else for any."""

    def __init__(self, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """arrays   what `arrays` gave: block int64 [n], distinct; generation [n], below 2^32; checks uint32 [n, 3]"""
        if arrays is None:
            arrays = {"block": np.empty(0), "generation": np.empty(0), "checks": np.empty((0, len(COLUMNS)))}
        block = np.asarray(arrays["block"]).astype(np.int64)
        table = _Table(block, arrays["generation"].astype(np.uint32), arrays["checks"].astype(np.uint32))
        self._table = table if (np.diff(block) > 0).all() else table.chosen(np.argsort(block))
        self._news: dict[int, Entry] = {}

    def __getitem__(self, block: int) -> Entry:
        entry = self._news.get(block)
        if entry is not None:
            return entry
        table = self._table
        place = int(np.searchsorted(table.block, block))
        if place == len(table.block) or table.block[place] != block:
            raise KeyError(block)
        return Entry(int(table.generation[place]), tuple(table.checks[place].tolist()))

    def __len__(self) -> int:
        return len(self.blocks())

    def __iter__(self) -> Iterator[int]:
        return iter(self.blocks().tolist())

    def put(self, block: int, entry: Entry) -> None:
        assert entry.generation <= MOST_GENERATION and len(entry.checks) == len(COLUMNS), entry
        self._news[block] = entry
        if len(self._news) == _MOST_NEWS:
            self.merge()

    def merge(self) -> None:
        """Take what was put into the arrays."""
        if self._news:
            self._table = self._table.overlaid(_table_of(self._news))
            self._news = {}  # not cleared: another thread may look into it

    def blocks(self) -> np.ndarray:
        """int64 [n], ascending."""
        news = self._news.copy()
        table = self._table
        return np.union1d(table.block, np.fromiter(news, np.int64, len(news))) if news else table.block

    def blocks_since(self, generation: int) -> np.ndarray:
        """Those that are in this generation or one with a higher number, int64, ascending."""
        table = self._merged()
        return table.block[table.generation >= generation]

    @property
    def bytes(self) -> int:
        """What the arrays occupy; the dict beside them is bounded."""
        return sum(part.nbytes for part in self._table)

    def generations(self) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of the generations that blocks are in, int64 [g], ascending; how many blocks each has, int64 [g])."""
        numbers, counts = np.unique(self._merged().generation, return_counts=True)
        return numbers.astype(np.int64), counts

    def arrays(self, blocks: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """What a file keeps: block int64 [n], generation uint32 [n], checks uint32 [n, 3]. blocks: of these alone, which are all there."""
        table = self._merged()
        if blocks is not None:
            blocks = np.sort(blocks)
            table = table.chosen(np.searchsorted(table.block, blocks))
            assert np.array_equal(table.block, blocks), "a block is not in the map"
        return table._asdict()

    def overlaid(self, newer: "BlockMap") -> "BlockMap":
        """Another map, with the blocks of both; those of `newer` count."""
        return self._of(self._merged().overlaid(newer._merged()))

    def where(self, chosen: np.ndarray) -> "BlockMap":
        """Another map of some of the blocks: chosen, bool [n], in their order."""
        table = self._merged()
        return self._of(table if chosen.all() else table.chosen(chosen))

    def without(self, other: "BlockMap") -> "BlockMap":
        """Another map, of what is not the same in `other`: blocks that it lacks, or has in another version."""
        table, newer = self._merged(), other._merged()
        if not len(newer.block):
            return self._of(table)
        place = np.searchsorted(newer.block, table.block)
        differs = place == len(newer.block)
        inside = ~differs
        at = place[inside]
        differs[inside] = (
            (newer.block[at] != table.block[inside])
            | (newer.generation[at] != table.generation[inside])
            | (newer.checks[at] != table.checks[inside]).any(axis=1)
        )
        return self._of(table.chosen(differs))

    def copy(self) -> "BlockMap":
        return self._of(self._merged())

    @classmethod
    def _of(cls, table: _Table) -> "BlockMap":
        made = cls()
        made._table = table
        return made

    def _merged(self) -> _Table:
        news = self._news.copy()  # before the arrays: they may be replaced in between, and then have it too
        return self._table.overlaid(_table_of(news)) if news else self._table


def _table_of(news: dict[int, Entry]) -> _Table:
    blocks = sorted(news)
    return _Table(
        np.array(blocks, dtype=np.int64),
        np.array([news[block].generation for block in blocks], dtype=np.uint32),
        np.array([news[block].checks for block in blocks], dtype=np.uint32).reshape(-1, len(COLUMNS)),
    )
