"""The slow twin of the views of photographs is torchvision, operation by operation and as a whole, up to rounding of floats."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from datasets.keyed import keyed, uniform
from tests.datasets import slow_photos
from tests.datasets.slow_photos import Crop, PhotoAugment, crop_box

SMALL = PhotoAugment(crops=(Crop(32, 1, (0.14, 1.0)), Crop(16, 2, (0.08, 0.14), rows_grad=False)))


def photo(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    """Smooth coloured noise."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return (fine[0] * 255).byte().permute(1, 2, 0).contiguous().numpy()


def float_image(side: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((3, side, side), dtype=np.float32)


def replay(image: np.ndarray, key: np.uint64, crop: Crop, recipe: PhotoAugment) -> torch.Tensor:
    """The same draws through torchvision's functional operations."""
    u = uniform(np.asarray(key), slow_photos._DRAWS).tolist()
    top, left, height, width = crop_box(u, *image.shape[:2], crop.scale)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    x = tv.resized_crop(pixels, top, left, height, width, [crop.size, crop.size], antialias=True).float() / 255
    if u[slow_photos._JITTER] < recipe.jitter_probability:
        brightness, contrast, saturation, hue = recipe.jitter
        # Valid for values up to 1, where the factor's range is 1 - value to 1 + value.
        operations = [
            lambda x: tv.adjust_brightness(x, 1 + brightness * (2 * u[slow_photos._BRIGHTNESS] - 1)),
            lambda x: tv.adjust_contrast(x, 1 + contrast * (2 * u[slow_photos._CONTRAST] - 1)),
            lambda x: tv.adjust_saturation(x, 1 + saturation * (2 * u[slow_photos._SATURATION] - 1)),
            lambda x: tv.adjust_hue(x, hue * (2 * u[slow_photos._HUE] - 1)),
        ]
        for number in sorted(range(4), key=lambda n: u[slow_photos._ORDER + n]):
            x = operations[number](x)
    if u[slow_photos._GREY] < recipe.grey:
        x = tv.rgb_to_grayscale(x, num_output_channels=3)
    if u[slow_photos._BLUR] < recipe.blur_probability:
        least, most = recipe.blur_sigma
        sigma = least + (most - least) * u[slow_photos._SIGMA]
        x = tv.gaussian_blur(x, [2 * int(np.ceil(3 * sigma)) + 1] * 2, [sigma, sigma])
    return tv.horizontal_flip(x) if u[slow_photos._FLIP] < recipe.flip else x


@pytest.mark.parametrize("view", [0, 1, 2])
def test_a_view_equals_torchvision_given_the_same_draws(view: int) -> None:
    image = photo()
    for key in keyed(0, 0, np.arange(60), view):
        expected = replay(image, key, SMALL.crop_V[view], SMALL)
        torch.testing.assert_close(torch.from_numpy(SMALL(image, key, view).copy()), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("factor", [0.0, 0.2, 1.0, 1.8])
@pytest.mark.parametrize("name", ["adjust_brightness", "adjust_contrast", "adjust_saturation"])
def test_blends_equal_torchvision(name: str, factor: float) -> None:
    image = float_image()
    expected = getattr(tv, name)(torch.from_numpy(image), factor).numpy()
    np.testing.assert_allclose(getattr(slow_photos, name)(image, factor), expected, atol=2e-6)


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.07, 0.2, 0.5])
def test_hue_equals_torchvision(turn: float) -> None:
    image = float_image()
    # Corners of the colour cube and greys, where two or three channels are the largest at once.
    image[:, 0, :8] = np.array([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 0, 1, 0, 1]])
    image[:, 1, :] = image[0, 1, :]
    expected = tv.adjust_hue(torch.from_numpy(image), turn).numpy()
    np.testing.assert_allclose(slow_photos.adjust_hue(image, turn), expected, atol=5e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_equals_torchvision(sigma: float) -> None:
    image = float_image()
    taps = 2 * int(np.ceil(3 * sigma)) + 1
    expected = tv.gaussian_blur(torch.from_numpy(image), [taps, taps], [sigma, sigma]).numpy()
    np.testing.assert_allclose(slow_photos.gaussian_blur(image, sigma), expected, atol=2e-6)
