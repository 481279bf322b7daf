"""Which rows a rank works for: lane l belongs to rank l mod R, and block b to lane b mod L.

    L = 4, R = 2     rank 0 has lanes 0 and 2, rank 1 has lanes 1 and 3
                     block   0 1 2 3 4 5 6 7
                     lane    0 1 2 3 0 1 2 3
                     rank    0 1 0 1 0 1 0 1

A batch has the same number of places for every lane, so each rank has G/R of them. Since R divides L, a block belongs to rank b mod R.
What is kept says of each part whose it was, so that a run goes on with any other R that divides L.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Lanes:
    """The lanes of rank `rank` of `ranks`, out of `count` = L. R divides L."""

    count: int
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.ranks and self.count % self.ranks == 0, self

    @property
    def numbers(self) -> list[int]:
        """Of this rank's lanes, ascending."""
        return list(range(self.rank, self.count, self.ranks))

    def __len__(self) -> int:
        return self.count // self.ranks

    def has(self, block: Any) -> Any:
        """Whether a block is this rank's; of an array of blocks, bool of the same shape."""
        return block % self.ranks == self.rank

    def chosen(self, blocks: Iterable[int]) -> np.ndarray:
        """Those of the blocks that are this rank's, int64."""
        blocks = np.asarray(list(blocks), dtype=np.int64)
        return blocks[blocks % self.ranks == self.rank]

    def meets(self, rank: int, ranks: int) -> bool:
        """Whether some of these lanes belong to rank `rank` when there are `ranks` of them."""
        return (rank - self.rank) % math.gcd(ranks, self.ranks) == 0

    def contains(self, rank: int, ranks: int) -> bool:
        """Whether all lanes of rank `rank` of `ranks` are among these."""
        return ranks % self.ranks == 0 and rank % self.ranks == self.rank

    def local(self, block: int) -> int:
        """The place of a block's lane among this rank's lanes: 0 .. L/R - 1."""
        return block % self.count // self.ranks

    def in_batch_order(self, places: int) -> np.ndarray:
        """Where each place of a batch, in the order of lanes, is when the ranks' parts stand one after the other; int64 [places].

        >>> Lanes(4, 0, 2).in_batch_order(8)  # lanes 0 0 1 1 2 2 3 3; the parts are lanes 0 0 2 2 and 1 1 3 3
        array([0, 1, 4, 5, 2, 3, 6, 7])
        """
        share = places // self.count
        lanes = np.arange(self.count)
        first = (lanes % self.ranks) * (places // self.ranks) + lanes // self.ranks * share
        return (first[:, None] + np.arange(share)).reshape(-1)


ALL_LANES = Lanes(1)  # as one rank has them, for readers of blocks: of the lanes' number nothing there depends
