"""Augmentation of photos: the pieces of which the published recipes are made, random image by image.

    crop of random area and aspect -> resize -> [jitter of brightness, contrast, saturation, hue in random order]
        -> [Gaussian blur] -> [RandAugment] -> [grey] -> [mirror]                    [.] with a probability

A recipe is a table of values (configs/augment.py), not code. The recipes that take colour away before they blur are the same here: blur and
luminance are linear, so their order changes a rounding; likewise the mirror, which most of them have first.

Every parameter is drawn from the hash of (seed, step, instance, view), never from a global generator: see keyed.py.
(torchvision's own random transforms draw one set of parameters for a whole batch, from the worker's generator.) A view depends on its own
image and key alone, so a batch may be cut up in any way.

A view is uint8 when it is cut out and when it is done; only colours and blur are made on floats, and rounded once (views/colours.py).

Left out: solarisation by itself and random erasing, which no recipe of the paper has.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from datasets.keyed import keyed, uniform
from datasets.views import colours, crops
from datasets.views.crops import Crop, crop_box
from datasets.views.rand_augment import DRAWS as LAYER_DRAWS
from datasets.views.rand_augment import rand_augment
from datasets.views.resize import resized

_FLIP, _JITTER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(crops.DRAWS, crops.DRAWS + 6)
_ORDER = crops.DRAWS + 6
_GREY, _BLUR, _SIGMA, _DRAWS = range(_ORDER + 4, _ORDER + 8)

OFFICIAL_CROPS = (Crop(160, 1, (0.14, 1.0)), Crop(96, 3, (0.08, 0.14), rows_grad=False))


@dataclass(frozen=True)
class RandAugment:
    """Of the operations of views/rand_augment.py: how many, and how strong (0 to 10), with which spread."""

    layers: int = 2
    magnitude: float = 10.0
    deviation: float = 0.5


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
    rand_augment        None: none of its operations
    """

    crops: tuple[Crop, ...] = OFFICIAL_CROPS
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    jitter_probability: float = 0.8
    grey: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    rand_augment: RandAugment | None = None

    @property
    def crop_V(self) -> tuple[Crop, ...]:
        """The crop of each view."""
        return tuple(crop for crop in self.crops for _ in range(crop.count))

    @property
    def rows_grad_V(self) -> tuple[bool, ...]:
        """For each view, whether its gradient may reach the rows of the classifier."""
        return tuple(crop.rows_grad for crop in self.crop_V)

    def views(self, images: Iterable[np.ndarray | None], seed: int, step: int, ids_B: np.ndarray) -> list[torch.Tensor]:
        """Augment B images (uint8 [H, W, 3], of any sizes) for one step: V tensors, uint8 [B, 3, size, size].

        An image is asked for when all views of the one before are made and that one is let go. None gives black views.
        """
        views = [np.zeros((len(ids_B), 3, crop.size, crop.size), dtype=np.uint8) for crop in self.crop_V]
        draws_VBP = [self.draws(keyed(seed, step, ids_B, view)) for view in range(len(views))]
        place = 0
        # No enumerate: it would keep an image while the next one is made.
        for image in images:
            if image is not None:
                for view, view_B3SS in enumerate(views):
                    colours.put_planes(self(image, draws_VBP[view][place].tolist(), view), view_B3SS[place])
            del image
            place += 1
        assert place == len(ids_B), (place, len(ids_B))
        return [torch.from_numpy(view_B3SS) for view_B3SS in views]

    def draws(self, keys_B: np.ndarray) -> np.ndarray:
        """The numbers in [0, 1) of which everything random is made: uint64 [B] -> float64 [B, P]."""
        layers = self.rand_augment.layers if self.rand_augment is not None else 0
        return uniform(keys_B, _DRAWS + layers * LAYER_DRAWS)

    def __call__(self, image_HW3: np.ndarray, draws_P: Sequence[float], view: int) -> np.ndarray:
        """One view of one image, by its own row of `draws`: uint8 [H, W, 3] -> uint8 [size, size, 3]."""
        crop = self.crop_V[view]
        top, left, height, width = crop_box(draws_P, image_HW3.shape[0], image_HW3.shape[1], crop.scale)
        cut_HW3 = image_HW3[top : top + height, left : left + width]
        view_SS3 = colours.interleaved(resized(cut_HW3, crop.size).numpy())
        view_SS3 = self._coloured_and_blurred(view_SS3, draws_P)
        operations = self.rand_augment
        if operations is not None:
            view_SS3 = rand_augment(
                view_SS3, draws_P[_DRAWS:], operations.layers, operations.magnitude, operations.deviation
            )
        if draws_P[_GREY] < self.grey:
            view_SS3 = colours.without_colour(view_SS3)
        return colours.mirrored(view_SS3) if draws_P[_FLIP] < self.flip else view_SS3

    def _coloured_and_blurred(self, view_SS3: np.ndarray, draws_P: Sequence[float]) -> np.ndarray:
        is_jittered, is_blurred = draws_P[_JITTER] < self.jitter_probability, draws_P[_BLUR] < self.blur_probability
        if not is_jittered and not is_blurred:
            return view_SS3
        x_SS3 = colours.to_floats(view_SS3)
        if is_jittered:
            x_SS3 = self._jittered(x_SS3, draws_P)
        if is_blurred:
            least, most = self.blur_sigma
            x_SS3 = colours.gaussian_blur(x_SS3, least + (most - least) * draws_P[_SIGMA])
        return colours.to_levels(x_SS3)

    def _jittered(self, x_SS3: np.ndarray, draws_P: Sequence[float]) -> np.ndarray:
        factors = [
            max(0.0, 1 - spread) + (1 + spread - max(0.0, 1 - spread)) * draws_P[draw]
            for draw, spread in zip((_BRIGHTNESS, _CONTRAST, _SATURATION), self.jitter[:3], strict=True)
        ]
        turn = self.jitter[3] * (2 * draws_P[_HUE] - 1)
        operations = (
            (colours.adjust_brightness, factors[0]),
            (colours.adjust_contrast, factors[1]),
            (colours.adjust_saturation, factors[2]),
            (colours.turn_hue, turn),
        )
        for number in sorted(range(4), key=lambda number: draws_P[_ORDER + number]):
            operation, amount = operations[number]
            x_SS3 = operation(x_SS3, amount)
        return x_SS3
