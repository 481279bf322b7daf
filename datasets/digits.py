"""Digits: scikit-learn's 1,797 scanned digits of 8 x 8 pixels, small enough for a test to train on.

Values 0..16 become round(255 v / 16). Nothing is resized here. The set is that of Alpaydin and Kaynak, "Optical
Recognition of Handwritten Digits" (UCI, 1998). Neighbours in it are easy (raw pixels: 98.8 % by nearest neighbour), so
a good score says that the code runs, not that features are good.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

_TRAIN_COUNT = 1437


class Digits:
    """Source of grey images [8, 8]: "train" is the first 1,437 (80 %), "test" the last 360, "all" both."""

    name = "digits"
    channels = 1
    notes: tuple[str, ...] = ()

    def __init__(self, split: Literal["all", "train", "test"] = "all") -> None:
        # scikit-learn takes a second to import: only those who want digits wait for it.
        from sklearn.datasets import load_digits

        bunch = load_digits()
        chosen = {"all": slice(None), "train": slice(_TRAIN_COUNT), "test": slice(_TRAIN_COUNT, None)}[split]
        self._images_NHW = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
        self._labels_N = bunch.target[chosen].astype(np.int64)

    def __len__(self) -> int:
        return len(self._images_NHW)

    def image(self, instance: int) -> np.ndarray:
        assert 0 <= instance < len(self), instance
        return self._images_NHW[instance].copy()

    def labels(self) -> np.ndarray:
        return self._labels_N.copy()

    def instance_name(self, instance: int) -> str:
        return f"digit {instance} ({self._labels_N[instance]})"

    def file_bytes(self, instance: int) -> int:
        """0: images have no files of their own here."""
        return 0

    def fingerprint(self, count: int | None = None, were: Mapping[int, int] | None = None) -> str:
        return hashlib.sha256(b"digits\n" + self._images_NHW[:count].tobytes()).hexdigest()

    def save_index(self, path: Path) -> None:
        """Nothing to save: the order is scikit-learn's."""
