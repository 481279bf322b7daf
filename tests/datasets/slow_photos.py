"""The slow twin of datasets/photos.py: the same draws on numpy, float32 from the crop to the end, every operation spelled out.

The views of the engine are compared with these, and these with torchvision (test_slow_photos.py). Here a view is float32 [3, size, size] in
[0, 1]. Which part of an image it shows is the engine's own `crop_box`. RandAugment is not here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tv

from datasets.keyed import keyed, uniform
from datasets.photos import OFFICIAL_CROPS
from datasets.views.crops import DRAWS as BOX_DRAWS
from datasets.views.crops import Crop, crop_box

_FLIP, _JITTER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(BOX_DRAWS, BOX_DRAWS + 6)
_ORDER = BOX_DRAWS + 6
_GREY, _BLUR, _SIGMA, _DRAWS = range(_ORDER + 4, _ORDER + 8)
# Luminance as in ITU-R BT.601, with torchvision's digits.
_LUMINANCE = np.array([0.2989, 0.587, 0.114], dtype=np.float32).reshape(3, 1, 1)


@dataclass(frozen=True)
class PhotoAugment:
    """Random views of colour photos; view v is of the v-th crop when each kind is counted out.

    crops               kinds of crops
    flip                probability of a mirror image
    jitter              (brightness, contrast, saturation, hue): factors uniform in 1 +- value, not under 0; hue
                        uniform in +-value, as a fraction of the colour circle
    jitter_probability  probability that the four are applied at all
    grey                probability that colour is removed
    blur_probability    probability of a blur
    blur_sigma          (least, most) standard deviation of the blur, pixels of the view
    """

    crops: tuple[Crop, ...] = OFFICIAL_CROPS
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    jitter_probability: float = 0.8
    grey: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    @property
    def crop_V(self) -> tuple[Crop, ...]:
        """The crop of each view."""
        return tuple(crop for crop in self.crops for _ in range(crop.count))

    @property
    def rows_grad_V(self) -> tuple[bool, ...]:
        """For each view, whether its gradient may reach the rows of the classifier."""
        return tuple(crop.rows_grad for crop in self.crop_V)

    def views(self, images: Iterable[np.ndarray | None], seed: int, step: int, ids_B: np.ndarray) -> list[torch.Tensor]:
        """Augment B images (uint8 [H, W, 3], of any sizes) for one step: V tensors, float32 [B, 3, size, size].

        An image is asked for when all views of the one before are made and that one is let go. None gives black views.
        """
        views = [np.zeros((len(ids_B), 3, crop.size, crop.size), dtype=np.float32) for crop in self.crop_V]
        keys_VB = [keyed(seed, step, ids_B, view) for view in range(len(views))]
        place = 0
        # No enumerate: it would keep an image while the next one is made.
        for image in images:
            if image is not None:
                for view, view_B3SS in enumerate(views):
                    view_B3SS[place] = self(image, keys_VB[view][place], view)
            del image
            place += 1
        assert place == len(ids_B), (place, len(ids_B))
        return [torch.from_numpy(view_B3SS) for view_B3SS in views]

    def __call__(self, image_HW3: np.ndarray, key: np.uint64, view: int) -> np.ndarray:
        """One view of one image: uint8 [H, W, 3] -> float32 [3, size, size] in [0, 1]."""
        draws_P = uniform(np.asarray(key), _DRAWS).tolist()
        crop = self.crop_V[view]
        height, width, _ = image_HW3.shape
        view_3SS = _crop_and_resize(image_HW3, crop_box(draws_P, height, width, crop.scale), crop.size)
        if draws_P[_JITTER] < self.jitter_probability:
            view_3SS = self._jitter(view_3SS, draws_P)
        if draws_P[_GREY] < self.grey:
            view_3SS = np.repeat(_luminance(view_3SS), 3, axis=0)
        if draws_P[_BLUR] < self.blur_probability:
            least, most = self.blur_sigma
            view_3SS = gaussian_blur(view_3SS, least + (most - least) * draws_P[_SIGMA])
        return view_3SS[:, :, ::-1] if draws_P[_FLIP] < self.flip else view_3SS

    def _jitter(self, view_3SS: np.ndarray, draws_P: list[float]) -> np.ndarray:
        factors = [
            max(0.0, 1 - spread) + (1 + spread - max(0.0, 1 - spread)) * draws_P[draw]
            for draw, spread in zip((_BRIGHTNESS, _CONTRAST, _SATURATION), self.jitter[:3], strict=True)
        ]
        turn = self.jitter[3] * (2 * draws_P[_HUE] - 1)
        operations = [
            lambda x: adjust_brightness(x, factors[0]),
            lambda x: adjust_contrast(x, factors[1]),
            lambda x: adjust_saturation(x, factors[2]),
            lambda x: adjust_hue(x, turn),
        ]
        for number in np.argsort(draws_P[_ORDER : _ORDER + 4]):
            view_3SS = operations[number](view_3SS)
        return view_3SS


def _crop_and_resize(image_HW3: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Cut a box out of uint8 [H, W, 3] and resize it, antialiased: float32 [3, size, size] in [0, 1]."""
    top, left, height, width = box
    # A copy, because an image may be read-only memory (a memory map, Pillow's buffer), which torch does not wrap.
    cut_3HW = torch.from_numpy(image_HW3[top : top + height, left : left + width].copy()).permute(2, 0, 1)
    view_3SS = tv.resize(cut_3HW, [size, size], antialias=True).numpy()
    return np.divide(view_3SS, np.float32(255), order="C")


def _luminance(image_3HW: np.ndarray) -> np.ndarray:
    """float32 [3, H, W] -> [1, H, W]."""
    red, green, blue = image_3HW * _LUMINANCE
    return (red + green + blue)[None]


def _blend(image_3HW: np.ndarray, other: np.ndarray | np.float32, factor: float) -> np.ndarray:
    """other + factor * (image - other), cut to [0, 1]."""
    blended = image_3HW * np.float32(factor)
    blended += other * np.float32(1 - factor)
    return np.clip(blended, 0, 1, out=blended)


def adjust_brightness(image_3HW: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black: float32 [3, H, W] in [0, 1]; factor 1 changes nothing."""
    return _blend(image_3HW, np.float32(0), factor)


def adjust_contrast(image_3HW: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean luminance of the image: float32 [3, H, W] in [0, 1]."""
    return _blend(image_3HW, _luminance(image_3HW).mean(), factor)


def adjust_saturation(image_3HW: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey image: float32 [3, H, W] in [0, 1]."""
    return _blend(image_3HW, _luminance(image_3HW), factor)


def adjust_hue(image_3HW: np.ndarray, turn: float) -> np.ndarray:
    """Turn the hue by a fraction of the colour circle, HSV saturation and value kept: float32 [3, H, W] in [0, 1].

    With value v, chroma c and hue h in sextants, a channel is v - c * clip(min(k, 4 - k), 0, 1), k = (n + h) mod 6,
    n = 5, 3, 1 for red, green, blue: no case distinction on the way back from HSV.
    """
    red, green, blue = image_3HW
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    # A grey pixel has no hue; any will do, because its chroma is 0.
    divisor = np.where(chroma == 0, np.float32(1), chroma)
    sextant = np.where(value == red, green - blue, np.where(value == green, blue - red, red - green)) / divisor
    sextant += np.where(value == red, np.float32(0), np.where(value == green, np.float32(2), np.float32(4)))
    turned = np.empty_like(image_3HW)
    for channel, n in enumerate((5, 3, 1)):
        k = sextant + np.float32((n + 6 * turn) % 6)
        k -= np.float32(6) * np.floor(k * np.float32(1 / 6))
        share = np.minimum(k, np.float32(4) - k)
        np.clip(share, 0, 1, out=share)
        share *= chroma
        np.subtract(value, share, out=turned[channel])
    return turned


def gaussian_blur(image_3HW: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with a Gaussian cut at 3 sigma (pixels), the image mirrored at its edges: float32 [3, H, W]."""
    radius = min(int(np.ceil(3 * sigma)), min(image_3HW.shape[1:]) - 1)
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    weights = (weights / (weights[0] + 2 * weights[1:].sum())).astype(np.float32)
    for axis in (1, 2):
        length = image_3HW.shape[axis]
        distance_from_start = np.abs(np.arange(-radius, length + radius))
        mirrored = np.minimum(distance_from_start, 2 * (length - 1) - distance_from_start)
        # The blurred axis first, so that a shifted copy is a slice of the first index.
        padded = np.moveaxis(image_3HW.take(mirrored, axis), axis, 0)
        blurred = padded[radius : radius + length] * weights[0]
        for distance in range(1, radius + 1):
            pair = padded[radius - distance :][:length] + padded[radius + distance :][:length]
            pair *= weights[distance]
            blurred += pair
        image_3HW = np.moveaxis(blurred, 0, axis)
    return image_3HW
