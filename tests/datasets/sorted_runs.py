"""Not tests: images that lie class by class, visited in the keyed order or run by run, to see what it costs to read neighbours together.

    python -m tests.datasets.sorted_runs runs --config configs/fashion_mnist.json output=runs/runs ...

trains as launch.py does on Fashion-MNIST whose training images are sorted by their label, with this order of the images:

    keyed   a bijection of all of them, as ever
    runs    a bijection of runs of C images that lie together, C the size of a block; what is left over stays last. So a block has images
            of one class, and a window as many runs as it has blocks, which its own shuffle mixes
"""

import sys
from dataclasses import dataclass

import numpy as np

import launch
from datasets import fashion_mnist
from datasets.keyed import keyed
from datasets.schedule import Feistel, Schedule


@dataclass(frozen=True)
class RunOrder:
    """A keyed bijection of range(size) that keeps runs together.

    >>> RunOrder(key=1, size=7, run=3).forward(np.arange(7)).tolist()
    [3, 4, 5, 0, 1, 2, 6]
    """

    key: int
    size: int
    run: int

    def forward(self, x_B: np.ndarray) -> np.ndarray:
        """int64 [B] in range(size) -> int64 [B] in range(size)."""
        number_B, offset_B = np.divmod(x_B, self.run)
        whole_B = number_B < self.size // self.run
        y_B = np.array(x_B, dtype=np.int64)
        runs = Feistel(self.key, self.size // self.run)
        y_B[whole_B] = runs.forward(number_B[whole_B]) * self.run + offset_B[whole_B]
        return y_B


class SortedFashionMnist(fashion_mnist.FashionMnist):
    def __init__(self, root, split="train", limit=None):
        super().__init__(root, split, limit)
        order = np.argsort(self._labels_N, kind="stable")
        self._images_NHW, self._labels_N = self._images_NHW[order], self._labels_N[order]


def _run_order(self: Schedule, segment: int) -> RunOrder:
    assert segment == 0
    return RunOrder(int(keyed(self.seed, 1)), self.size, self.block)


if __name__ == "__main__":
    fashion_mnist.FashionMnist = SortedFashionMnist
    if sys.argv[1] == "runs":
        Schedule._order = _run_order
    sys.exit(launch.main(sys.argv[2:]))
