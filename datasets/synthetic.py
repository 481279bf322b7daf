"""Images of any declared number, computed from their numbers: for trials of a size that no collection of images has.

An image is one shape before a grating:

    label     k petals (0, 2, 3, 4 or 5), filled or a ring: 10 of them, keyed by the instance
    the rest  place, size, turn and depth of the petals, direction, wavelength and phase of the grating; keyed by the instance, too

So every image is one of its own, and the label is there to be found. Petals survive a turn, a shift and a slant, which the views of grey
images have. Nothing is read and nothing is kept: 10^12 images take as much memory as ten. Images behind those that were declared
are the queries of the evaluation, so no training has seen them.

Left out: anything that makes photographs hard. Figures of these images say that a run works, and what it costs.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from datasets.keyed import keyed, uniform

MOST_IMAGES = 10**12
CLASSES = 10
_PETALS = (0, 2, 3, 4, 5)
_LABEL, _LOOK = 0, 1  # what a key is for
_LABELLED_AT_ONCE = 2**24  # labels() of more images than these would be an array that nobody needs


class Synthetic:
    """Source of grey images [side, side].

    size    N, up to 10^12
    first   the number of the first one, as the generator counts: others show other images
    """

    name = "synthetic"
    channels = 1
    notes: tuple[str, ...] = ()

    def __init__(self, size: int, side: int, first: int = 0) -> None:
        assert 1 <= size <= MOST_IMAGES, size
        self._size, self._side, self._first = size, side, first
        grid = (np.arange(side, dtype=np.float32) + 0.5) / side
        self._points_SS = grid[None, :] + 1j * grid[:, None]  # x + iy of each pixel

    def __len__(self) -> int:
        return self._size

    def image(self, instance: int) -> np.ndarray:
        assert 0 <= instance < self._size, instance
        petals, is_ring = divmod(int(self.labels_of(np.array([instance]))[0]), 2)
        place_x, place_y, turn, radius, depth, direction, waves, phase, grey = (
            uniform(keyed(_LOOK, np.array([self._first + instance])), 9)[0].astype(np.float32).tolist()
        )
        points_SS = self._points_SS - np.complex64(complex(0.38 + 0.24 * place_x, 0.38 + 0.24 * place_y))
        distance_SS = np.abs(points_SS)
        inside_SS = (0.2 + 0.1 * radius) - distance_SS
        if count := _PETALS[petals]:  # the edge goes with the cosine of `count` times the angle
            ray_SS = points_SS * np.complex64(np.exp(2j * np.pi * turn)) / distance_SS.clip(1e-6)
            wave_SS = ray_SS.copy()
            for _ in range(count - 1):
                wave_SS *= ray_SS
            inside_SS += (0.2 + 0.1 * radius) * (0.3 + 0.15 * depth) * wave_SS.real
        if is_ring:
            inside_SS = 0.04 - np.abs(inside_SS)
        shape_SS = np.clip(0.5 + inside_SS * self._side, 0, 1)  # an edge one pixel wide
        along_SS = (self._points_SS * np.complex64(np.exp(1j * np.pi * direction))).real
        ground_SS = (0.1 + 0.2 * grey) * (1 + np.cos(2 * np.pi * ((2 + 4 * waves) * along_SS + phase)))
        return np.rint(255 * (shape_SS + (1 - shape_SS) * ground_SS)).astype(np.uint8)

    def labels_of(self, instances_B: np.ndarray) -> np.ndarray:
        """int64 [B] -> int64 [B], in 0 .. 9."""
        return (keyed(_LABEL, self._first + instances_B) % np.uint64(CLASSES)).astype(np.int64)

    def labels(self) -> np.ndarray | None:
        """Of all images; None where there are more than 2^24, of which `labels_of` tells those that are asked for."""
        return self.labels_of(np.arange(self._size)) if self._size <= _LABELLED_AT_ONCE else None

    def instance_name(self, instance: int) -> str:
        petals, is_ring = divmod(int(self.labels_of(np.array([instance]))[0]), 2)
        return f"image {instance}: {_PETALS[petals]} petals, {'a ring' if is_ring else 'filled'}"

    def file_bytes(self, instance: int) -> int:
        """0: images have no files here."""
        return 0

    def fingerprint(self, count: int | None = None, were: Mapping[int, int] | None = None) -> str:
        count = self._size if count is None else count
        return hashlib.sha256(f"synthetic {self._side} {self._first} {count}".encode()).hexdigest()

    def save_index(self, path: Path) -> None:
        """Nothing to save: an image is its number."""
