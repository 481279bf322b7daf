"""The cells of a sweep: what each changes in the config, and in which order they run.

A grid is an object of keys and lists of values; its cells are all combinations. Several grids give the cells of each:

    [{"data.limit": [1000, 2000], "ranks": [1, 2]}, {"data.limit": [1000], "peer": ["pic_dense"]}]     4 + 1 cells

Two keys are not the schema's: "ranks" is how many processes train, "peer" is what trains in the place of this engine.

Every repeat is a block: each cell once, in an order that is drawn from the seed. What drifts on the machine (its temperature, other
work, the disk that fills) then meets all cells alike, and a cell is compared with the reference cell of the same block.
"""

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RANKS, PEER = "ranks", "peer"
_NOT_A_CELLS = ("job", "output", "scale", "deepspeed")  # deepspeed as a whole; its keys may differ


@dataclass(frozen=True)
class Cell:
    """number: its place in the list of all cells. values: every key of its grid with its value, "ranks" and "peer" too."""

    number: int
    values: Mapping[str, Any] = field(hash=False)

    @property
    def ranks(self) -> int:
        return int(self.values.get(RANKS, 1))

    @property
    def peer(self) -> str | None:
        return self.values.get(PEER)

    @property
    def changes(self) -> dict[str, Any]:
        """What it changes in the config: key of the schema -> value."""
        return {key: value for key, value in self.values.items() if key not in (RANKS, PEER)}

    @property
    def name(self) -> str:
        """For people: `data.limit=1000 ranks=2`."""
        words = " ".join(f"{key}={word(value)}" for key, value in self.values.items())
        return words or "the config as it is"


def word(value: Any) -> str:
    """A value as it stands behind `key=` on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def cells_of(grids: Sequence[Mapping[str, Sequence[Any]]]) -> list[Cell]:
    """All cells. Raises ValueError for a key that no cell may have, a number of ranks that is none, and two cells that are the same."""
    found: dict[str, Mapping[str, Any]] = {}
    for grid in grids:
        for key in grid:
            if key.partition(".")[0] in _NOT_A_CELLS and not key.startswith("deepspeed."):
                raise ValueError(
                    f"scale.grid has the key {key}, which the sweep itself sets for each cell; take it out"
                )
        for values in itertools.product(*grid.values()):
            cell = dict(zip(grid, values, strict=True))
            ranks = cell.get(RANKS, 1)
            if type(ranks) is not int or not 1 <= ranks <= 4096:
                raise ValueError(f'scale.grid has "ranks": {json.dumps(ranks)}; write how many processes are to train')
            same = json.dumps(cell, sort_keys=True)
            if same in found:
                raise ValueError(f"scale.grid has the cell {same} twice; leave one out")
            found[same] = cell
    return [Cell(number, values) for number, values in enumerate(found.values())]


def block_order(seed: int, repeat: int, count: int) -> list[int]:
    """The numbers of the cells in the order of a block: a function of (seed, repeat, count) alone."""
    numbers = list(range(count))
    random.Random(f"{seed}/{repeat}").shuffle(numbers)
    return numbers
