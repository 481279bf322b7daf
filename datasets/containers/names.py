"""Millions of names as one block of bytes, and which number has a name.

As Python strings, 10^7 names of 30 characters take 800 MB, and a dict of them 1.2 GB more. Here a name is a range of one block:
its bytes and 16 more. `Finder` looks names up by a hash of 64 bits: 16 bytes a name beside them, a sort when it is made, a binary
search a question. The hash is Python's own of bytes; it is keyed anew in each process, so that nobody can make names that collide, and
is never kept. Names that share a hash are told apart by their bytes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from operator import eq

import numpy as np

_AT_ONCE = 1 << 16  # names for which numbers of ranges are Python objects at a time


class Names:
    """N names; names[number] is bytes.

    content   the block that all names lie in, which may hold more than them
    starts_N, stops_N   int64, where in it each name begins and ends
    """

    def __init__(self, content: bytes | bytearray, starts_N: np.ndarray, stops_N: np.ndarray) -> None:
        assert starts_N.shape == stops_N.shape
        self.content = content
        self.starts_N = starts_N
        self.stops_N = stops_N

    @classmethod
    def of(cls, names: Iterable[bytes]) -> "Names":
        """Names one by one, copied."""
        content, ends = bytearray(), [0]
        for name in names:
            content += name
            ends.append(len(content))
        offsets = np.array(ends, np.int64)
        return cls(content, offsets[:-1], offsets[1:])

    def __len__(self) -> int:
        return len(self.starts_N)

    def __getitem__(self, number: int) -> bytes:
        return bytes(self.content[self.starts_N[number] : self.stops_N[number]])

    def __iter__(self) -> Iterator[bytes]:
        content = self.content
        for first in range(0, len(self), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            for start, stop in zip(self.starts_N[some].tolist(), self.stops_N[some].tolist(), strict=True):
                yield bytes(content[start:stop])

    def take(self, chosen: np.ndarray) -> "Names":
        """Some of them, by their numbers or a mask; they lie in the same block."""
        return Names(self.content, self.starts_N[chosen], self.stops_N[chosen])

    def hashes(self) -> np.ndarray:
        """int64 [N], good in this process alone."""
        return np.fromiter(map(hash, self), np.int64, len(self))


class Finder:
    """find(others): which number of `names` each of the others is."""

    def __init__(self, names: Names) -> None:
        self._names = names
        hashes_N = names.hashes()
        self._order_N = np.argsort(hashes_N, kind="stable")
        self._sorted_N = hashes_N[self._order_N]

    def find(self, others: Names) -> np.ndarray:
        """int64 [M]: the number of the name with the same bytes, -1 where there is none; of equal names the first."""
        found_M = np.full(len(others), -1, np.int64)
        if not len(self._names):
            return found_M
        hashes_M = others.hashes()
        # The first place with this hash or a larger one; the last place stands for "behind all".
        places_M = np.minimum(np.searchsorted(self._sorted_N, hashes_M), len(self._sorted_N) - 1)
        asked = np.flatnonzero(self._sorted_N[places_M] == hashes_M)
        numbers = self._order_N[places_M[asked]]
        is_same = np.fromiter(map(eq, others.take(asked), self._names.take(numbers)), bool, len(asked))
        found_M[asked[is_same]] = numbers[is_same]
        for other in asked[~is_same].tolist():
            found_M[other] = self._behind(int(places_M[other]), others[other])
        return found_M

    def _behind(self, place: int, name: bytes) -> int:
        """The number of the name among those that share the hash at this place, which is another name's; -1 where it is none of them."""
        shared = self._sorted_N[place]
        while place < len(self._sorted_N) and self._sorted_N[place] == shared:
            number = int(self._order_N[place])
            if self._names[number] == name:
                return number
            place += 1
        return -1


def equal_groups(names: Names) -> list[list[int]]:
    """The numbers of each name that stands there more than once, in rising order; the groups by their first number."""
    hashes_N = names.hashes()
    order_N = np.argsort(hashes_N, kind="stable")
    is_same = np.diff(hashes_N[order_N]) == 0
    is_shared = np.append(is_same, False) | np.insert(is_same, 0, False)
    numbers_of: dict[bytes, list[int]] = defaultdict(list)
    for number in sorted(order_N[is_shared].tolist() if len(names) else ()):
        numbers_of[names[number]].append(number)
    return [numbers for numbers in numbers_of.values() if len(numbers) > 1]
