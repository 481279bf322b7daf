"""Augmentation of small grey images (glyphs, digits, Fashion-MNIST): some hundred at once, yet random image by image.

One warp carries all the geometry. The output pixel p lies in the source at

    q = F K^-1 R^-1 (p - t) / s + e(p)

with shift t, rotation R, shear K, scale s, mirror F and an elastic displacement e: random control points on a coarse
grid, made smooth by cubic B-splines. So an image is resampled once, by one `grid_sample`. Then its strokes grow or
shrink (a blend towards the 3 x 3 maximum or minimum), a blur takes the edge off, and the contrast changes.

Every parameter of an image is drawn from the hash of (seed, step, instance, view): see keyed.py. Its pixels, too, are
the same to the bit whatever else is in the batch and however many threads torch has. For apart from `grid_sample` and the
product of splines, which go image by image, every operation is one rounded sum, product or maximum an element. That rules
out matrix products over a batch, convolutions and fused multiply-adds (`addcmul`, `alpha=`): their rounding depends on how
the work is cut up. Images come and go as uint8; between, they are floats, rounded once.

Left out: one image after the other; a batch is decoded whole before it is warped, which is several times as fast and, of 256
small images of 64 x 64, holds 5 MB. Left out, too: OpenCV, whose remap and dilate on one tall image of all would save about 1 of
the 6 ms that a batch of 256 images of 32 x 32 takes, and whose calls image by image would cost more than that; and antialiasing.
A source more than twice as large as `size` is sampled too sparsely; render it smaller. Images lie on a background of 0, which is
also what the warp finds outside of them. One that is not square is made square.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import grid_sample

from datasets.keyed import keyed, uniform

_CONTROL_POINTS = 6  # a side, of which the image spans the inner 3 intervals: about 11 pixels each at 32 x 32
_ANGLE, _SHIFT_X, _SHIFT_Y, _SCALE, _SHEAR, _FLIP, _THICKNESS, _BLUR, _CONTRAST, _BRIGHTNESS, _ELASTIC = range(11)
_DRAWS = _ELASTIC + 2 * _CONTROL_POINTS**2
# 1 MiB an array of floats, of which there are some ten: 256 views of 32 x 32. A batch of large views would take hundreds of MiB.
_PIXELS_AT_ONCE = 2**18


@dataclass(frozen=True)
class GreyAugment:
    """Random views of grey images. A field at 0 (`scale` at (1, 1)) switches its operation off.

    size        side of the views, pixels
    view_count  views of each image, all drawn alike
    degrees     rotation, uniform in +-degrees
    shift       translation in x and in y, uniform in +-shift, as a fraction of the side
    scale       (least, most) size of what is drawn relative to the source, log-uniform; under 1 it shrinks
    shear       horizontal slant, uniform in +-shear, as a tangent (an italic has about 0.2)
    elastic     largest elastic displacement, as a fraction of the side (a typical one is a third of it)
    thickness   blend, uniform in +-thickness, towards the 3 x 3 maximum (above 0: bolder) or minimum (below 0: lighter)
    blur        largest standard deviation of the blur, pixels of the view, uniform from 0
    flip        probability of a mirror image
    contrast    gain around mid-grey, uniform in 1 +- contrast, and added brightness, uniform in +-contrast / 2

    The defaults suit glyphs whose identity must hold across fonts. A moderate jitter for Fashion-MNIST is degrees 15,
    shift 0.1, scale (0.8, 1), flip 0.5 and the rest 0.
    """

    size: int = 32
    view_count: int = 1
    degrees: float = 15.0
    shift: float = 0.08
    scale: tuple[float, float] = (0.75, 1.2)
    shear: float = 0.25
    elastic: float = 0.1
    thickness: float = 0.6
    blur: float = 0.7
    flip: float = 0.0
    contrast: float = 0.2

    @property
    def rows_grad_V(self) -> tuple[bool, ...]:
        """For each view, whether its gradient may reach the rows of the classifier."""
        return (True,) * self.view_count

    def views(self, images: Iterable[np.ndarray | None], seed: int, step: int, ids_B: np.ndarray) -> list[torch.Tensor]:
        """Augment B images (uint8 [H, W], of one size) for one step. All of them are held at once; None gives black views.

        Returns `view_count` tensors, uint8 [B, 1, size, size].
        """
        in_memory = list(images)
        assert len(in_memory) == len(ids_B), (len(in_memory), len(ids_B))
        there_B = np.array([image is not None for image in in_memory], dtype=bool)
        pixels = [image for image in in_memory if image is not None]
        if not pixels:
            shape = (len(in_memory), 1, self.size, self.size)
            return [torch.zeros(shape, dtype=torch.uint8) for _ in range(self.view_count)]
        images_B1HW = torch.from_numpy(np.stack(pixels)[:, None])
        keys = [keyed(seed, step, ids_B[there_B], view) for view in range(self.view_count)]
        views = [torch.cat([self(*some) for some in self._parts(images_B1HW, keys_B)]) for keys_B in keys]
        if len(pixels) == len(in_memory):
            return views
        views_VB1SS = torch.zeros(len(views), len(in_memory), 1, self.size, self.size, dtype=torch.uint8)
        views_VB1SS[:, torch.from_numpy(there_B)] = torch.stack(views)
        return list(views_VB1SS)

    def _parts(self, images_B1HW: torch.Tensor, keys_B: np.ndarray) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        """As many images at a time as views of them have _PIXELS_AT_ONCE pixels."""
        at_once = max(1, _PIXELS_AT_ONCE // self.size**2)
        return zip(images_B1HW.split(at_once), np.split(keys_B, range(at_once, len(keys_B), at_once)), strict=True)

    def __call__(self, images_B1HW: torch.Tensor, keys_B: np.ndarray) -> torch.Tensor:
        """One view of each image: uint8 [B, 1, H, W] and uint64 [B] -> uint8 [B, 1, size, size]."""
        views_B1SS = self.on_floats(images_B1HW.to(torch.float32).div_(255), keys_B)
        return views_B1SS.mul_(255).round_().to(torch.uint8)

    def on_floats(self, images_B1HW: torch.Tensor, keys_B: np.ndarray) -> torch.Tensor:
        """The same before it is rounded: float32 [B, 1, H, W] in [0, 1] -> float32 [B, 1, size, size] in [0, 1]."""
        # One contiguous row a draw, so that numpy treats a draw alike in small and large batches.
        draws_PB = np.ascontiguousarray(uniform(keys_B, _DRAWS).T)
        grid_B2SS = self._affine_grid(draws_PB)
        if self.elastic:
            # Coordinates run from -1 to 1: a displacement by the whole side is 2.
            control_B2NN = (2 * draws_PB[_ELASTIC:].T - 1) * (2 * self.elastic)
            grid_B2SS += _smooth_field(control_B2NN.reshape(-1, 2, _CONTROL_POINTS, _CONTROL_POINTS), self.size)
        views_B1SS = grid_sample(images_B1HW, grid_B2SS.permute(0, 2, 3, 1), align_corners=False)
        if self.thickness:
            views_B1SS = _change_thickness(views_B1SS, _per_image(self.thickness * (2 * draws_PB[_THICKNESS] - 1)))
        if self.blur:
            views_B1SS = _blur(views_B1SS, self.blur * draws_PB[_BLUR], self.blur)
        if self.contrast:
            gain_B = 1 + self.contrast * (2 * draws_PB[_CONTRAST] - 1)
            brightness_B = self.contrast * (draws_PB[_BRIGHTNESS] - 0.5)
            views_B1SS = views_B1SS.mul_(_per_image(gain_B)).add_(_per_image(0.5 - 0.5 * gain_B + brightness_B))
        # Bilinear weights sum to 1 up to rounding only, so the clamp is needed without contrast, too.
        return views_B1SS.clamp_(0, 1)

    def _affine_grid(self, draws_PB: np.ndarray) -> torch.Tensor:
        """Source coordinates of every output pixel without the elastic part: float32 [B, (x, y), size, size]."""
        angle_B = np.deg2rad(self.degrees) * (2 * draws_PB[_ANGLE] - 1)
        cos_B, sin_B = np.cos(angle_B), np.sin(angle_B)
        shear_B = self.shear * (2 * draws_PB[_SHEAR] - 1)
        least, most = self.scale
        inverse_scale_B = 1 / (least * (most / least) ** draws_PB[_SCALE])
        mirror_B = np.where(draws_PB[_FLIP] < self.flip, -1.0, 1.0)
        # The rows of F K^-1 R^-1 / s; the mirror is the innermost step, so it flips what the row for x reads.
        x_x_B = mirror_B * inverse_scale_B * (cos_B + shear_B * sin_B)
        x_y_B = mirror_B * inverse_scale_B * (sin_B - shear_B * cos_B)
        y_x_B = -inverse_scale_B * sin_B
        y_y_B = inverse_scale_B * cos_B
        shift_x_B = 2 * self.shift * (2 * draws_PB[_SHIFT_X] - 1)
        shift_y_B = 2 * self.shift * (2 * draws_PB[_SHIFT_Y] - 1)
        offset_x_B = -(x_x_B * shift_x_B + x_y_B * shift_y_B)
        offset_y_B = -(y_x_B * shift_x_B + y_y_B * shift_y_B)
        centres_S = _float32((2 * np.arange(self.size) + 1) / self.size - 1)
        along_x_B2 = _float32(np.stack([x_x_B, y_x_B], axis=1))
        along_y_B2 = _float32(np.stack([x_y_B, y_y_B], axis=1))
        offset_B2 = _float32(np.stack([offset_x_B, offset_y_B], axis=1))
        columns_B2S = along_x_B2[..., None] * centres_S + offset_B2[..., None]
        rows_B2S = along_y_B2[..., None] * centres_S
        return columns_B2S[:, :, None, :] + rows_B2S[:, :, :, None]


def _float32(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _per_image(values_B: np.ndarray) -> torch.Tensor:
    return _float32(values_B).reshape(-1, 1, 1, 1)


def _spline_weights(size: int) -> np.ndarray:
    """Weight of each control point at each pixel centre, uniform cubic B-splines: float32 [control points, size]."""
    intervals = _CONTROL_POINTS - 3
    place_S = (np.arange(size) + 0.5) / size * intervals
    # Control point k sits at k - 1 in units of intervals: one lies outside the image at either end.
    distance_NS = np.abs(place_S - (np.arange(_CONTROL_POINTS)[:, None] - 1))
    near_NS = 2 / 3 - distance_NS**2 + distance_NS**3 / 2
    far_NS = np.maximum(2 - distance_NS, 0) ** 3 / 6
    return np.where(distance_NS < 1, near_NS, far_NS).astype(np.float32)


def _smooth_field(control_B2NN: np.ndarray, size: int) -> torch.Tensor:
    """Spline the control points up to every pixel: float64 [B, 2, n, n] -> float32 [B, 2, size, size].

    numpy multiplies a stack of matrices one after the other, each of them alike; torch would choose by how many there are.
    """
    weights_NS = _spline_weights(size)
    return torch.from_numpy(weights_NS.T @ (control_B2NN.astype(np.float32) @ weights_NS))


def _change_thickness(images_B1SS: torch.Tensor, amount_B111: torch.Tensor) -> torch.Tensor:
    """Blend each image with its 3 x 3 maximum (amount above 0) or minimum (below 0)."""
    # min(x) = -max(-x): with the sign put on the image, one pass of maxima serves both.
    sign_B111 = torch.where(amount_B111 < 0, -1.0, 1.0)
    signed_B1SS = images_B1SS * sign_B111
    peak_B1SS = signed_B1SS
    for axis in (2, 3):
        before_B1SS, peak_B1SS = peak_B1SS, peak_B1SS.clone()
        length = before_B1SS.shape[axis] - 1
        for target, source in ((1, 0), (0, 1)):
            narrow = peak_B1SS.narrow(axis, target, length)
            torch.maximum(narrow, before_B1SS.narrow(axis, source, length), out=narrow)
    # sign * |amount| = amount: the sign is taken off again by the blend itself.
    return images_B1SS + (peak_B1SS - signed_B1SS) * amount_B111


def _blur(images_B1SS: torch.Tensor, sigma_B: np.ndarray, largest_sigma: float) -> torch.Tensor:
    """Blur each image with its own sigma (pixels), 0 outside the image.

    A pass with taps (w, 1 - 2w, w) has variance 2w, and variances add up: w = sigma^2 / (2 passes). The kernel is
    bell-shaped for w <= 1/4, which says how many passes the largest sigma needs: one up to 0.7, two up to 1.
    """
    passes = int(np.ceil(2 * largest_sigma**2))
    side_B = sigma_B**2 / (2 * passes)
    side_B111, centre_B111 = _per_image(side_B), _per_image(1 - 2 * side_B)
    for axis in (2, 3) * passes:
        length = images_B1SS.shape[axis] - 1
        neighbours_B1SS = torch.zeros_like(images_B1SS)
        neighbours_B1SS.narrow(axis, 1, length).copy_(images_B1SS.narrow(axis, 0, length))
        neighbours_B1SS.narrow(axis, 0, length).add_(images_B1SS.narrow(axis, 1, length))
        images_B1SS = (images_B1SS * centre_B111).add_(neighbours_B1SS.mul_(side_B111))
    return images_B1SS
