"""From decoded images to a tensor, without augmentation: what evaluation and export look at.

    centre square (side = the shorter side) -> round(margin * image_size), bilinear with antialiasing
                                            -> its centre square of image_size

margin = 1 keeps a square image whole (glyphs, digits, clothes). Photographs take 256/224, the custom of ImageNet
evaluation: the border, where the subject rarely is, is cut away; of an oblong photograph the ends are lost either way.
"""

from collections.abc import Sequence

import numpy as np
import torch

from datasets.batch import ImageSet, Loaded, UnreadableImage
from datasets.source import Source
from datasets.views.resize import resized

PHOTO_MARGIN = 256 / 224


def to_tensor(images: Sequence[np.ndarray], image_size: int, margin: float = 1.0) -> torch.Tensor:
    """uint8 [H, W] or [H, W, 3], of any sizes -> uint8 [n, channels, image_size, image_size].

    Images whose shorter side already has the right length are cropped, not resampled: their pixels are exact.
    """
    assert len(images) > 0
    assert margin >= 1.0, margin
    return torch.stack([_resized(image, image_size, round(margin * image_size)) for image in images])


def _resized(image: np.ndarray, image_size: int, resized_side: int) -> torch.Tensor:
    square_CHW = resized(_centre(image, min(image.shape[:2])), resized_side)
    corner = (resized_side - image_size) // 2
    return square_CHW[:, corner : corner + image_size, corner : corner + image_size]


def _centre(image: np.ndarray, side: int) -> np.ndarray:
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def load_images(source: Source, instances: np.ndarray, image_size: int) -> Loaded:
    """Images of a source without augmentation; one that cannot be decoded is black and not readable."""
    margin = PHOTO_MARGIN if source.channels == 3 else 1.0
    images = torch.zeros(len(instances), source.channels, image_size, image_size, dtype=torch.uint8)
    readable_B = np.zeros(len(instances), dtype=bool)
    for place, instance in enumerate(instances):
        try:
            images[place] = to_tensor([source.image(int(instance))], image_size, margin)[0]
        except UnreadableImage:
            continue
        readable_B[place] = True
    return Loaded(images, readable_B)


def first_readable(images: ImageSet, limit: int) -> int | None:
    """Which of the first `limit` images of a set can be decoded first; None where none of them can."""
    for place in range(min(images.count, limit)):
        if images.load(place, place + 1).readable_B[0]:
            return place
    return None
