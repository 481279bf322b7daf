"""Features without a network: what a backbone named "given" would have made of the images.

    z = |d(instance) + spread n(step, instance, view)|      d, n: numbers uniform in a cube, of unit length; |.|: scaled to unit length

d is the direction of an instance, keyed by (seed, instance); n is the noise of one view, keyed by (seed, step, instance, view). So the
rows have something to learn: where the noise is no larger than the direction, the best row of an instance is d. No image is read.

With them a run costs what rows, softmax and store cost, and nothing else: for trials of any N, on a machine without torchvision and
DeepSpeed. What is left out: two instances are never alike, so nothing general can be learned, and there is nothing to evaluate.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from datasets.keyed import keyed, uniform

_DIRECTION, _NOISE = 0, 1  # what a key is for


@dataclass(frozen=True)
class GivenFeatures:
    """In the place of an augmentation (datasets/loader.py): the views are features.

    dim          D
    rows_grad_V  as in an augmentation
    spread       length of the noise beside a direction of length 1
    """

    dim: int
    rows_grad_V: tuple[bool, ...]
    spread: float = 1.0

    def views(self, images: Iterable[np.ndarray | None], seed: int, step: int, ids_B: np.ndarray) -> list[torch.Tensor]:
        """V tensors float32 [B, D] of unit length. The images are not asked for."""
        direction_BD = self._numbers(keyed(seed, _DIRECTION, ids_B))
        views = []
        for view in range(len(self.rows_grad_V)):
            noise_BD = self._numbers(keyed(seed, _NOISE, step, ids_B, view))
            z_BD = _of_unit_length(direction_BD + self.spread * noise_BD)
            views.append(torch.from_numpy(z_BD.astype(np.float32)))
        return views

    def _numbers(self, keys_B: np.ndarray) -> np.ndarray:
        return _of_unit_length(2 * uniform(keys_B, self.dim) - 1)


def _of_unit_length(x_BD: np.ndarray) -> np.ndarray:
    return x_BD / np.linalg.norm(x_BD, axis=1, keepdims=True)
