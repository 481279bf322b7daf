"""RandAugment (Cubuk et al. 2019) as the published "RandAug" recipe has it: timm's operations with "rand-n2-m10-mstd0.5".

In each of `layers` layers one of fifteen operations is chosen, all alike, and applied with probability 1/2. Its strength is
level / 10, where the level is drawn from a Gaussian around `magnitude` with the standard deviation `deviation` and cut to 0 .. 10. (So at
magnitude 10 every second level is 10 itself, at which solarising begins at 256 and does nothing; it is published so.)

    autocontrast, equalise, invert                  each channel; without a strength
    rotate, shear x and y, translate x and y        up to 30 degrees, 0.3, and 0.45 of the side, in either direction
    posterise, solarise, add below mid-grey         keep 0 to 4 bits; invert from 0 .. 256 on; add 0 to 110 below 128
    saturation, contrast, brightness, sharpness     a blend with factor 0.1 + 1.8 level / 10: the identity is at 5, the strongest at 10

Where a geometric operation finds nothing it puts the mean colour of ImageNet. The published code sets a translation of 100 pixels, too,
which is for operations that its list does not have: it translates by a share of the side, about 100 pixels of 224.

Other than there: always bilinear, where the published code draws bilinear or bicubic; the outermost pixels of a turned image blend with
the colour around it, where Pillow leaves a hard edge; a blend is rounded and not cut off.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from datasets.views import colours
from datasets.views.opencv import cv2

DRAWS = 5  # numbers that a layer uses: operation, whether it is applied, two for the level, direction
_MEAN_COLOUR = (124, 116, 104)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
_LEVELS = np.arange(256)

# (uint8 [S, S, 3], strength 0 to 1, direction -1 or 1) -> uint8 [S, S, 3]
Operation = Callable[[np.ndarray, float, int], np.ndarray]


def rand_augment(
    view_SS3: np.ndarray, draws_P: Sequence[float], layers: int, magnitude: float, deviation: float
) -> np.ndarray:
    """uint8 [S, S, 3] -> uint8 [S, S, 3]. draws_P: DRAWS numbers in [0, 1) for each layer."""
    for layer in range(layers):
        which, applied, radius, angle, direction = draws_P[layer * DRAWS : (layer + 1) * DRAWS]
        if applied < 0.5:
            # Box and Muller's way to a Gaussian number; 1 - radius is never 0.
            gaussian = math.sqrt(-2 * math.log(1 - radius)) * math.cos(2 * math.pi * angle)
            level = min(10.0, max(0.0, magnitude + deviation * gaussian))
            operation = OPERATIONS[int(which * len(OPERATIONS))]
            view_SS3 = operation(view_SS3, level / 10, -1 if direction < 0.5 else 1)
    return view_SS3


def autocontrast(view_SS3: np.ndarray, strength: float = 0, direction: int = 1) -> np.ndarray:
    """Each channel stretched from 0 to 255."""
    tables = []
    for channel in cv2.split(view_SS3):
        low, high, _, _ = cv2.minMaxLoc(channel)
        scale = 255 / (high - low) if high > low else 0.0
        # Spelled as Pillow does, because a fraction is cut off behind it.
        tables.append(_LEVELS * scale + -low * scale if scale else _LEVELS)
    return _through(view_SS3, np.stack(tables, axis=1))


def equalise(view_SS3: np.ndarray, strength: float = 0, direction: int = 1) -> np.ndarray:
    """Each channel through its own distribution function, in Pillow's whole numbers."""
    tables = []
    for channel in cv2.split(view_SS3):
        counts = np.bincount(channel.ravel(), minlength=256)
        step = (counts.sum() - counts[_LEVELS[counts > 0][-1]]) // 255
        before = np.cumsum(counts) - counts
        tables.append((step // 2 + before) // step if step else _LEVELS)
    return _through(view_SS3, np.stack(tables, axis=1))


def invert(view_SS3: np.ndarray, strength: float = 0, direction: int = 1) -> np.ndarray:
    return 255 - view_SS3


def posterise(view_SS3: np.ndarray, strength: float, direction: int = 1) -> np.ndarray:
    """Keep the highest 0 to 4 bits."""
    return view_SS3 & np.uint8(0xFF00 >> int(4 * strength) & 0xFF)


def solarise(view_SS3: np.ndarray, strength: float, direction: int = 1) -> np.ndarray:
    """Invert what is at least 256 times the strength."""
    return _through(view_SS3, np.where(int(256 * strength) > _LEVELS, _LEVELS, 255 - _LEVELS))


def add_to_dark(view_SS3: np.ndarray, strength: float, direction: int = 1) -> np.ndarray:
    """Add up to 110 to what is below 128."""
    return _through(view_SS3, np.where(_LEVELS < 128, _LEVELS + int(110 * strength), _LEVELS))


def saturate(view_SS3: np.ndarray, strength: float, direction: int = 1) -> np.ndarray:
    return colours.to_levels(colours.adjust_saturation(colours.to_floats(view_SS3), _factor(strength)))


def contrast(view_SS3: np.ndarray, strength: float, direction: int = 1) -> np.ndarray:
    return colours.to_levels(colours.adjust_contrast(colours.to_floats(view_SS3), _factor(strength)))


def brighten(view_SS3: np.ndarray, strength: float, direction: int = 1) -> np.ndarray:
    return colours.to_levels(colours.adjust_brightness(colours.to_floats(view_SS3), _factor(strength)))


def sharpen(view_SS3: np.ndarray, strength: float, direction: int = 1) -> np.ndarray:
    """Blend with a smooth image, which has the view's own outermost pixels."""
    smooth_SS3 = view_SS3.copy()
    smooth_SS3[1:-1, 1:-1] = cv2.filter2D(view_SS3, -1, _SMOOTH)[1:-1, 1:-1]
    factor = _factor(strength)
    return cv2.addWeighted(view_SS3, factor, smooth_SS3, 1 - factor, 0)


def rotate(view_SS3: np.ndarray, strength: float, direction: int) -> np.ndarray:
    angle = math.radians(30 * strength * direction)
    cos, sin = math.cos(angle), math.sin(angle)
    centre = view_SS3.shape[0] / 2
    across, down = centre * (1 - cos + sin), centre * (1 - cos - sin)
    return _read_at(view_SS3, ((cos, -sin, across), (sin, cos, down)))


def shear_x(view_SS3: np.ndarray, strength: float, direction: int) -> np.ndarray:
    return _read_at(view_SS3, ((1, 0.3 * strength * direction, 0), (0, 1, 0)))


def shear_y(view_SS3: np.ndarray, strength: float, direction: int) -> np.ndarray:
    return _read_at(view_SS3, ((1, 0, 0), (0.3 * strength * direction, 1, 0)))


def translate_x(view_SS3: np.ndarray, strength: float, direction: int) -> np.ndarray:
    return _read_at(view_SS3, ((1, 0, 0.45 * strength * direction * view_SS3.shape[1]), (0, 1, 0)))


def translate_y(view_SS3: np.ndarray, strength: float, direction: int) -> np.ndarray:
    return _read_at(view_SS3, ((1, 0, 0), (0, 1, 0.45 * strength * direction * view_SS3.shape[0])))


OPERATIONS: tuple[Operation, ...] = (
    *(autocontrast, equalise, invert, rotate, posterise, solarise, add_to_dark),
    *(saturate, contrast, brighten, sharpen, shear_x, shear_y, translate_x, translate_y),
)


def _factor(strength: float) -> float:
    return 0.1 + 1.8 * strength


def _through(view_SS3: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Each level replaced by the table's: [256] for all channels, or [256, 3]; fractions are cut off, as Pillow does."""
    levels = table.clip(0, 255).astype(np.uint8)
    return cv2.LUT(view_SS3, levels if levels.ndim == 1 else levels[None])


def _read_at(
    view_SS3: np.ndarray, source_of: tuple[tuple[float, float, float], tuple[float, float, float]]
) -> np.ndarray:
    """The pixel at (x, y) is read at ((a, b, c), (d, e, f)) (x, y, 1), coordinates of pixel centres being halves."""
    matrix = np.array(source_of, dtype=np.float64)
    matrix[:, 2] += 0.5 * (matrix[:, 0] + matrix[:, 1]) - 0.5
    return cv2.warpAffine(
        view_SS3,
        matrix,
        view_SS3.shape[:2][::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=_MEAN_COLOUR,
    )
