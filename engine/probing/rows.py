"""Rows of cached features as a classifier gets them: standardised, on the device, some at a time.

    x = (h - mean) / sqrt(variance + 1e-5)

Mean and variance are those of the images that it is trained on: batch normalisation without weights of its own, whose statistics
are those of all images. They make one range of learning rates fit any network. They are summed in float64, in slices of rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

EPSILON = 1e-5
ROWS_AT_ONCE = 8192  # rows that are looked at together


class Standard(NamedTuple):
    """mean_D, scale_D: float32 on the device; x = (h - mean) scale."""

    mean_D: torch.Tensor
    scale_D: torch.Tensor

    @staticmethod
    def none(width: int, device: torch.device) -> "Standard":
        """Features as they are."""
        return Standard(torch.zeros(width, device=device), torch.ones(width, device=device))


class Rows:
    """features_MD: float32 [M, D] on the host, perhaps a memory map. `rows(ids_B)` gives float32 [B, D] on the device."""

    def __init__(self, features_MD: np.ndarray, standard: Standard, device: torch.device) -> None:
        self.features_MD, self.standard, self.device = features_MD, standard, device

    @property
    def width(self) -> int:
        """D."""
        return int(self.features_MD.shape[1])

    def __call__(self, ids_B: np.ndarray) -> torch.Tensor:
        h_BD = torch.from_numpy(self.features_MD[ids_B]).to(self.device)
        return (h_BD - self.standard.mean_D) * self.standard.scale_D

    def slices(self, ids_M: np.ndarray, at_once: int = ROWS_AT_ONCE) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """(ids, their rows) of so many at a time."""
        for start in range(0, len(ids_M), at_once):
            ids_B = ids_M[start : start + at_once]
            yield ids_B, self(ids_B)


def standard_of(features_MD: np.ndarray, ids_M: np.ndarray, device: torch.device) -> Standard:
    """Of the rows `ids_M`, which are finite."""
    mean_D, square_D = (np.zeros(features_MD.shape[1]) for _ in range(2))
    starts = range(0, len(ids_M), ROWS_AT_ONCE)
    for start in starts:
        mean_D += features_MD[ids_M[start : start + ROWS_AT_ONCE]].sum(axis=0, dtype=np.float64) / len(ids_M)
    for start in starts:
        square_D += np.square(features_MD[ids_M[start : start + ROWS_AT_ONCE]] - mean_D).sum(axis=0) / len(ids_M)
    scale_D = 1 / np.sqrt(square_D + EPSILON)
    return Standard(*(torch.from_numpy(one.astype(np.float32)).to(device) for one in (mean_D, scale_D)))


def readable(features_MD: np.ndarray) -> np.ndarray:
    """bool [M]: rows that are numbers; of an image that cannot be read they are not."""
    starts = range(0, len(features_MD), ROWS_AT_ONCE)
    return np.concatenate([np.isfinite(features_MD[start : start + ROWS_AT_ONCE]).all(axis=1) for start in starts])
