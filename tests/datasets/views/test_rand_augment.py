"""Each operation of RandAugment beside Pillow's, and how often which is applied."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from datasets.keyed import keyed, uniform
from datasets.views import rand_augment as module
from datasets.views.rand_augment import DRAWS, OPERATIONS, rand_augment

SIDE = 48
FILL = (124, 116, 104)


def picture(seed: int = 0) -> np.ndarray:
    """Coloured noise, smooth, that does not reach black and white."""
    coarse = np.random.default_rng(seed).integers(20, 230, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def affine(image: Image.Image, *numbers: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, numbers, resample=Image.Resampling.BILINEAR, fillcolor=FILL
    )


def added(image: Image.Image, strength: float) -> Image.Image:
    return image.point([min(255, level + int(110 * strength)) if level < 128 else level for level in range(256)] * 3)


# (image, strength, direction) -> what the published operation makes of it, whose level is 10 times the strength.
PILLOW: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "autocontrast": lambda image, s, d: ImageOps.autocontrast(image),
    "equalise": lambda image, s, d: ImageOps.equalize(image),
    "invert": lambda image, s, d: ImageOps.invert(image),
    # Pillow refuses to keep no bit; when the recipe was published, that was black.
    "posterise": lambda image, s, d: (
        ImageOps.posterize(image, int(4 * s)) if s >= 0.25 else image.point(lambda level: 0)
    ),
    "solarise": lambda image, s, d: ImageOps.solarize(image, int(256 * s)),
    "add_to_dark": lambda image, s, d: added(image, s),
    "saturate": lambda image, s, d: ImageEnhance.Color(image).enhance(0.1 + 1.8 * s),
    "contrast": lambda image, s, d: ImageEnhance.Contrast(image).enhance(0.1 + 1.8 * s),
    "brighten": lambda image, s, d: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * s),
    "sharpen": lambda image, s, d: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * s),
    "rotate": lambda image, s, d: image.rotate(30 * s * d, resample=Image.Resampling.BILINEAR, fillcolor=FILL),
    "shear_x": lambda image, s, d: affine(image, 1, 0.3 * s * d, 0, 0, 1, 0),
    "shear_y": lambda image, s, d: affine(image, 1, 0, 0, 0.3 * s * d, 1, 0),
    "translate_x": lambda image, s, d: affine(image, 1, 0, 0.45 * s * d * SIDE, 0, 1, 0),
    "translate_y": lambda image, s, d: affine(image, 1, 0, 0, 0, 1, 0.45 * s * d * SIDE),
}
GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
EXACT = ("autocontrast", "equalise", "invert", "posterise", "solarise", "add_to_dark")
STRENGTHS = [0.0, 0.31, 0.62, 0.93, 1.0]


def test_there_are_the_fifteen_operations() -> None:
    assert len(OPERATIONS) == 15
    assert {operation.__name__ for operation in OPERATIONS} == set(PILLOW)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", sorted(set(PILLOW) - set(GEOMETRY)))
def test_an_operation_on_colours_is_pillows(name: str, strength: float) -> None:
    for seed in range(3):
        image = picture(seed)
        found = getattr(module, name)(image, strength, 1)
        expected = np.asarray(PILLOW[name](Image.fromarray(image), strength, 1))
        # Pillow cuts the fraction of a blend off, and rounds the luminance before that.
        assert np.abs(found.astype(int) - expected).max() <= (0 if name in EXACT else 1)
        assert found.dtype == np.uint8 and found.shape == image.shape


@pytest.mark.parametrize("direction", [-1, 1])
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", GEOMETRY)
def test_a_geometric_operation_is_pillows_inside_and_the_mean_colour_outside(
    name: str, strength: float, direction: int
) -> None:
    image = picture()
    found = getattr(module, name)(image, strength, direction)
    expected = np.asarray(PILLOW[name](Image.fromarray(image), strength, direction))
    # Where Pillow reads within a pixel of the edge, the two differ: a hard edge there, a blend here.
    coverage = getattr(module, name)(np.full((SIDE, SIDE, 3), 255, np.uint8), strength, direction)
    is_inside, is_outside = (coverage == 255).all(axis=2), (coverage == FILL).all(axis=2)
    assert np.abs(found.astype(int) - expected)[is_inside].max() <= 1
    assert (found[is_outside] == FILL).all() and (expected[is_outside] == FILL).all()
    assert (~is_inside & ~is_outside).mean() < 0.1
    assert is_outside.any() == (strength > 0.1)


def test_a_flat_image_has_no_contrast_to_stretch() -> None:
    flat = np.full((8, 8, 3), 90, np.uint8)
    for name in ("autocontrast", "equalise"):
        np.testing.assert_array_equal(getattr(module, name)(flat), flat)


def test_each_operation_is_chosen_alike_and_applied_half_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float, int]] = []

    def named(number: int) -> module.Operation:
        def operation(view: np.ndarray, strength: float, direction: int) -> np.ndarray:
            seen.append((number, strength, direction))
            return view

        return operation

    monkeypatch.setattr(module, "OPERATIONS", tuple(named(number) for number in range(15)))
    view, count = picture(), 8000
    for draws_P in uniform(keyed(0, np.arange(count)), 2 * DRAWS).tolist():
        rand_augment(view, draws_P, 2, 10.0, 0.5)
    assert abs(len(seen) - count) < 4.5 * math.sqrt(count / 2)
    counts = np.bincount([number for number, _, _ in seen], minlength=15)
    assert np.abs(counts - len(seen) / 15).max() < 4.5 * math.sqrt(len(seen) / 15)
    strengths = np.array([strength for _, strength, _ in seen])
    # A Gaussian around 10 of deviation 0.5, cut at 10: half of it is 10, the other half is 0.4 lower in the mean.
    assert abs((strengths == 1).mean() - 0.5) < 4.5 * 0.5 / math.sqrt(len(seen))
    below = strengths[strengths < 1]
    assert abs(below.mean() - (1 - 0.05 * math.sqrt(2 / math.pi))) < 0.002
    assert abs(np.mean([direction for _, _, direction in seen])) < 4.5 / math.sqrt(len(seen))


def test_the_same_draws_give_the_same_view_and_the_callers_view_stays() -> None:
    view = picture()
    before = view.copy()
    for draws_P in uniform(keyed(1, np.arange(200)), 2 * DRAWS).tolist():
        once = rand_augment(view, draws_P, 2, 10.0, 0.5)
        np.testing.assert_array_equal(once, rand_augment(view, draws_P, 2, 10.0, 0.5))
    np.testing.assert_array_equal(view, before)
