"""Digits: scikit-learn's 1,797 scanned digits of 8 x 8 pixels, small enough for a test to train on.

Values 0..16 become round(255 v / 16). Nothing is resized here. The file is read where scikit-learn keeps it, without
importing scikit-learn, which takes as long as torch. The set is that of Alpaydin and Kaynak, "Optical
Recognition of Handwritten Digits" (UCI, 1998). Neighbours in it are easy (raw pixels: 98.8 % by nearest neighbour), so
a good score says that the code runs, not that features are good.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

_TRAIN_COUNT = 1437


@cache
def _table() -> np.ndarray:
    """Of each digit its 64 values, row by row, and its label: uint8 [1797, 65]. ValueError without scikit-learn."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ValueError("data.source: the digits are scikit-learn's, which is not installed; pip install scikit-learn")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table_N65 = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    table_N65.flags.writeable = False
    return table_N65


class Digits:
    """Source of grey images [8, 8]: "train" is the first 1,437 (80 %), "test" the last 360, "all" both."""

    name = "digits"
    channels = 1
    notes: tuple[str, ...] = ()

    def __init__(self, split: Literal["all", "train", "test"] = "all") -> None:
        chosen = {"all": slice(None), "train": slice(_TRAIN_COUNT), "test": slice(_TRAIN_COUNT, None)}[split]
        table_N65 = _table()[chosen]
        self._images_NHW = np.rint(table_N65[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        self._labels_N = table_N65[:, 64].astype(np.int64)

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
