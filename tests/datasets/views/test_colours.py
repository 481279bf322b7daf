"""Each operation on colours is torchvision's: on floats up to rounding, on uint8 within one grey level, or two where it cuts twice."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from datasets.views import colours
from datasets.views.opencv import cv2

TORCHVISION = {
    "adjust_brightness": tv.adjust_brightness,
    "adjust_contrast": tv.adjust_contrast,
    "adjust_saturation": tv.adjust_saturation,
    "turn_hue": tv.adjust_hue,
    "gaussian_blur": lambda x, sigma: tv.gaussian_blur(x, [2 * int(np.ceil(3 * sigma)) + 1] * 2, [sigma, sigma]),
}
AMOUNTS = [
    *((name, factor) for name in list(TORCHVISION)[:3] for factor in (0.0, 0.2, 1.0, 1.8)),
    *(("turn_hue", turn) for turn in (-0.5, -0.2, 0.0, 0.07, 0.4, 0.5)),
    *(("gaussian_blur", sigma) for sigma in (0.1, 0.5, 1.0, 2.0)),
]


def noise(seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (41, 40, 3), dtype=np.uint8)
    # Corners of the colour cube and greys, where two or three channels are the largest at once.
    image[0, :8] = 255 * np.array([[corner >> 2 & 1, corner >> 1 & 1, corner & 1] for corner in range(8)])
    image[1] = image[1, :, :1]
    return image


def planes(image_HW3: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image_HW3).permute(2, 0, 1)


@pytest.mark.parametrize(("name", "amount"), AMOUNTS)
def test_on_floats_an_operation_is_torchvisions(name: str, amount: float) -> None:
    image = noise()
    expected = TORCHVISION[name](planes(image).float() / 255, amount) * 255
    found = getattr(colours, name)(colours.to_floats(image), amount)
    # The digits of the luminance: 0.299 here, 0.2989 there.
    np.testing.assert_allclose(found.transpose(2, 0, 1), expected.numpy(), atol=0.03 if "blur" not in name else 1e-3)


@pytest.mark.parametrize(("name", "amount"), AMOUNTS)
def test_on_uint8_an_operation_is_torchvisions_within_a_grey_level(name: str, amount: float) -> None:
    image = noise()
    found = colours.to_levels(getattr(colours, name)(colours.to_floats(image), amount))
    expected = TORCHVISION[name](planes(image), amount).numpy()
    # Of a saturation it cuts the fraction of the luminance off, and then that of the blend: less than two levels, seldom more than one.
    difference = np.abs(found.transpose(2, 0, 1).astype(int) - expected)
    assert difference.max() <= (2 if name == "adjust_saturation" else 1)
    assert (difference > 1).mean() < 0.05


def test_luminance_is_torchvisions_within_a_grey_level() -> None:
    found = colours.without_colour(noise()).transpose(2, 0, 1)
    assert np.abs(found.astype(int) - tv.rgb_to_grayscale(planes(noise()), 3).numpy()).max() <= 1


@given(seed=st.integers(0, 1000), factor=st.floats(0, 3), name=st.sampled_from(list(TORCHVISION)[:3]))
def test_a_blend_stays_between_black_and_white_and_does_not_change_its_argument(
    seed: int, factor: float, name: str
) -> None:
    x = colours.to_floats(noise(seed))
    before = x.copy()
    found = getattr(colours, name)(x, factor)
    assert found.min() >= 0 and found.max() <= 255.001
    np.testing.assert_array_equal(x, before)


@given(turn=st.floats(-3, 3))
def test_a_turn_of_the_hue_keeps_value_and_greys_and_can_be_taken_back(turn: float) -> None:
    x = colours.to_floats(noise())
    turned = colours.turn_hue(x, turn)
    np.testing.assert_allclose(turned.max(axis=2), x.max(axis=2), atol=1e-3)
    np.testing.assert_allclose(turned[1], x[1], atol=1e-3)
    np.testing.assert_allclose(colours.turn_hue(turned, -turn), x, atol=0.02)


def test_blur_of_an_image_smaller_than_the_kernel_keeps_a_constant() -> None:
    np.testing.assert_allclose(colours.gaussian_blur(np.full((4, 4, 3), 64, np.float32), 2.0), 64, atol=1e-3)
    np.testing.assert_allclose(colours.gaussian_blur(np.full((1, 1, 3), 64, np.float32), 2.0), 64, atol=1e-3)


def test_a_view_goes_to_floats_and_planes_and_back() -> None:
    image, out = noise(), np.zeros((3, 41, 40), np.uint8)
    np.testing.assert_array_equal(colours.to_levels(colours.to_floats(image)), image)
    colours.put_planes(image, out)
    np.testing.assert_array_equal(out, image.transpose(2, 0, 1))
    np.testing.assert_array_equal(colours.interleaved(out), image)
    np.testing.assert_array_equal(colours.mirrored(image), image[:, ::-1])


def test_opencv_has_one_thread_and_no_opencl() -> None:
    assert cv2.getNumThreads() == 1 and not cv2.ocl.useOpenCL()
