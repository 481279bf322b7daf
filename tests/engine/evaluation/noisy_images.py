"""Sets of random images with noisy labels, one of which cannot be decoded."""

import numpy as np
import torch

from datasets.batch import ImageSet, Loaded


def images(name, count, seed, decoded, labelled=True):
    """Random images with noisy labels; number 3 cannot be decoded. Whoever decodes writes down what."""
    generator = np.random.default_rng(seed)
    pixels = torch.from_numpy(generator.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8))
    labels = (pixels[:, 0, 0].sum(dim=1).numpy() * 2) // 255
    readable = np.arange(count) != 3

    def load(start, stop):
        decoded.append((name, start, stop))
        return Loaded(pixels[start:stop], readable[start:stop])

    return ImageSet(name, count, load, labels if labelled else None)
