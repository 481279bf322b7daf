"""Resizing is torchvision's to the bit, of colour and grey images, of parts of images and of read-only memory."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from datasets.views.resize import resized

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(300, 200), (20, 33), (31, 160, 3), (333, 471, 3), (7, 5, 3), (1, 1, 3)])
@pytest.mark.parametrize("side", [16, 96])
def test_an_image_of_any_size_is_resized_as_by_torchvision(shape: tuple[int, ...], side: int) -> None:
    image = RNG.integers(0, 256, shape, dtype=np.uint8)
    planes = torch.from_numpy(image if image.ndim == 3 else image[..., None]).permute(2, 0, 1)
    found = resized(image, side)
    assert found.dtype == torch.uint8
    assert torch.equal(found, tv.resize(planes, [side, side], antialias=True))


def test_an_image_of_this_size_keeps_its_pixels_and_is_a_copy() -> None:
    image = RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    found = resized(image, 24)
    assert torch.equal(found, torch.from_numpy(image).permute(2, 0, 1))
    found.zero_()
    assert image.any()


def test_a_part_of_an_image_in_read_only_memory_is_resized() -> None:
    image = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image.flags.writeable = False
    part = image[10:50, 5:45]
    assert torch.equal(resized(part, 20), resized(part.copy(), 20))
    assert not torch.equal(resized(part, 20), resized(image, 20))
