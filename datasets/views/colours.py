"""Colours and blur of a view, on float32 [H, W, 3] in 0 to 255: torchvision's functional operations on floats, made of OpenCV's.

    blend(a)     a x + (1 - a) y, cut to 0 .. 255      y: black for brightness, the mean luminance for contrast, the pixel's for saturation
    hue          RGB -> HSV, h + turn, -> RGB
    blur         rows, then columns, by a Gaussian cut at 3 sigma, the image mirrored at its edges

Why floats, when a view begins and ends as uint8? Each of the last three operations may multiply an error by 1.8. On floats there is one
rounding, at the end, so a whole recipe is within one grey level of torchvision's on floats. On uint8 OpenCV would save about a tenth of the
time of the colours. (torchvision on uint8 cuts fractions off after every operation, which makes a view up to 5 grey levels darker.)

A luminance is ITU-R BT.601's with three digits, as OpenCV has it; torchvision's 0.2989 in the place of 0.299 differs by 0.03 of a level.
Every operation is one of fixed order a pixel, on one thread. Between machines whose processors have other vector units the last bit of a
float may differ, and with it, now and then, a grey level.
"""

import math

import numpy as np

from datasets.views.opencv import cv2

_AS_IT_IS_33 = np.eye(3, dtype=np.float32)
_LUMINANCE_33 = np.tile(np.array([0.299, 0.587, 0.114], dtype=np.float32), (3, 1))


def adjust_brightness(x_HW3: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black: float32 [H, W, 3]; factor 1 changes nothing, 0 is black."""
    return _at_most_255(x_HW3 * np.float32(factor))


def adjust_contrast(x_HW3: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean luminance of the image: float32 [H, W, 3]."""
    mean = cv2.mean(cv2.cvtColor(x_HW3, cv2.COLOR_RGB2GRAY))[0]
    return _in_range(cv2.addWeighted(x_HW3, factor, x_HW3, 0, (1 - factor) * mean), factor)


def adjust_saturation(x_HW3: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey image: float32 [H, W, 3]."""
    blend_33 = np.float32(factor) * _AS_IT_IS_33 + np.float32(1 - factor) * _LUMINANCE_33
    return _in_range(cv2.transform(x_HW3, blend_33), factor)


def turn_hue(x_HW3: np.ndarray, turn: float) -> np.ndarray:
    """Turn the hue by a fraction of the colour circle, HSV saturation and value kept: float32 [H, W, 3]."""
    hsv_HW3: np.ndarray = cv2.cvtColor(x_HW3, cv2.COLOR_RGB2HSV)
    # From 0 to 720 degrees, which OpenCV takes for what they are; below 0 it does not.
    hsv_HW3[:, :, 0] += np.float32(360 * (turn % 1))
    return cv2.cvtColor(hsv_HW3, cv2.COLOR_HSV2RGB)


def gaussian_blur(x_HW3: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with a Gaussian of `sigma` pixels, cut at 3 sigma or at the image's side: float32 [H, W, 3]."""
    radius = min(math.ceil(3 * sigma), min(x_HW3.shape[:2]) - 1)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    return cv2.sepFilter2D(x_HW3, -1, weights, weights, borderType=cv2.BORDER_REFLECT_101)


def without_colour(view_HW3: np.ndarray) -> np.ndarray:
    """Each pixel's luminance in all three channels: uint8 [H, W, 3]."""
    return cv2.cvtColor(cv2.cvtColor(view_HW3, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def mirrored(view_HW3: np.ndarray) -> np.ndarray:
    """Left and right exchanged."""
    return cv2.flip(view_HW3, 1)


def to_floats(view_HW3: np.ndarray) -> np.ndarray:
    return view_HW3.astype(np.float32)


def to_levels(x_HW3: np.ndarray) -> np.ndarray:
    """The nearest grey levels: float32 [H, W, 3] in 0 to 255 -> uint8 [H, W, 3]."""
    return cv2.convertScaleAbs(x_HW3)


def interleaved(planes_3HW: np.ndarray) -> np.ndarray:
    """[3, H, W] -> [H, W, 3]."""
    return cv2.merge(list(planes_3HW))


def put_planes(view_HW3: np.ndarray, out_3HW: np.ndarray) -> None:
    """[H, W, 3] into [3, H, W], of the same type."""
    # OpenCV writes into arrays that are given and fit, which takes a third of the time of new ones.
    cv2.split(view_HW3, list(out_3HW))


def _in_range(x_HW3: np.ndarray, factor: float) -> np.ndarray:
    """A blend, cut to 0 .. 255; one of two images in range with a factor up to 1 lies between them."""
    if factor <= 1:
        return x_HW3
    return cv2.threshold(_at_most_255(x_HW3), 0, 0, cv2.THRESH_TOZERO, dst=x_HW3)[1]


def _at_most_255(x_HW3: np.ndarray) -> np.ndarray:
    return cv2.threshold(x_HW3, 255, 0, cv2.THRESH_TRUNC, dst=x_HW3)[1]
