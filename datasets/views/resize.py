"""Resizing of uint8 images, bilinear and antialiased: what training and evaluation have in common.

It is torch's own operation, whose pixels are torchvision's to the bit, and which was the fastest of those that are antialiased. On one core
300 x 300 to 160 x 160 takes 0.15 ms, OpenCV's INTER_AREA 0.40 and Pillow 0.9. (INTER_AREA also averages over a box where the others weigh
by a triangle.) OpenCV's INTER_LINEAR takes 0.06, but skips pixels: fine lines and textures become noise.
"""

import numpy as np
import torch
from torch.nn.functional import interpolate


def resized(image: np.ndarray, side: int) -> torch.Tensor:
    """uint8 [H, W] or [H, W, 3] -> uint8 [C, side, side]; one that has this size already keeps its pixels.

    The image may be a part of another, and may be read-only memory, which torch does not take: so it is copied first.
    """
    pixels_1HWC = torch.from_numpy((image if image.ndim == 3 else image[..., None])[None].copy())
    planes_1CHW = pixels_1HWC.permute(0, 3, 1, 2)
    if image.shape[:2] == (side, side):
        return planes_1CHW[0].contiguous()
    return interpolate(planes_1CHW, size=(side, side), mode="bilinear", antialias=True)[0]
