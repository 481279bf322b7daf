"""Every level of grey and colour is kept, whichever bits a format leaves unused, and marks for no data press none together."""

from collections.abc import Callable

import numpy as np
import pytest

from datasets.decode import Undecodable
from tests.datasets.encoded_images import deep_png, encoded, seen, tiff

RNG = np.random.default_rng(0)


# ---- bits


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(
    "write",
    [
        lambda v: encoded(v, "PNG"),
        lambda v: encoded(v, "TIFF"),
        lambda v: tiff(v, order=">"),
        lambda v: tiff(v, packed=True),
    ],
)
def test_grey_of_fewer_than_16_bits_keeps_its_levels(bits: int, write: Callable[[np.ndarray], bytes]) -> None:
    values = np.linspace(0, 2**bits - 1, 256).astype(np.uint16).reshape(8, 32)
    grey = seen(write(values))[..., 0]
    np.testing.assert_array_equal(grey, values >> (bits - 8))
    assert len(np.unique(grey)) == 256


def test_full_range_16_bit_is_its_high_byte_also_where_an_image_is_dark() -> None:
    values = RNG.integers(0, 65536, (30, 30), dtype=np.uint16)
    np.testing.assert_array_equal(seen(encoded(values, "PNG"))[..., 0], values >> 8)
    dark = (values >> 1) + np.uint16(1)
    assert dark.max() >= 2**14
    np.testing.assert_array_equal(seen(encoded(dark, "PNG"))[..., 0], dark >> 8)


@pytest.mark.parametrize(("bits", "shift"), [(8, 0), (12, 4), (14, 6), (16, 8)])
@pytest.mark.parametrize("kind", ["png", "tiff", "tiff big-endian", "tiff deflate"])
def test_colour_of_fewer_than_16_bits_keeps_its_levels(bits: int, shift: int, kind: str) -> None:
    values = RNG.integers(0, 2**bits, (16, 20, 3)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    written = {
        "png": lambda: deep_png(values, 2),
        "tiff": lambda: tiff(values),
        "tiff big-endian": lambda: tiff(values, order=">"),
        "tiff deflate": lambda: tiff(values, packed=True),
    }[kind]()
    np.testing.assert_array_equal(seen(written), values >> shift)


def test_opaque_12_bit_images_with_transparency_keep_their_levels() -> None:
    values = RNG.integers(0, 4096, (16, 20, 3)).astype(np.uint16)
    opaque = np.full((16, 20, 1), 65535, np.uint16)
    np.testing.assert_array_equal(seen(deep_png(np.concatenate([values, opaque], 2), 6)), values >> 4)
    grey = seen(deep_png(np.concatenate([values[..., :1], opaque], 2), 4))
    np.testing.assert_array_equal(grey, np.repeat(values[..., :1] >> 4, 3, axis=2))


# ---- ranges


def levels(values: np.ndarray, **options: object) -> np.ndarray:
    return seen(tiff(values, **options))[..., 0]


SCENE = np.linspace(0.2, 0.7, 300).astype(np.float32).reshape(15, 20)


@pytest.mark.parametrize("mark", [-9999.0, -3.4028235e38, 1e20, np.nan, np.inf, -np.inf, -1e30])
def test_a_mark_for_no_data_does_not_press_a_float_image_into_two_levels(mark: float) -> None:
    values = SCENE.copy()
    values[:5] = mark
    grey = levels(values, sample_format=3)
    assert set(grey[:5].ravel()) == {255 if mark > 1 else 0}
    np.testing.assert_array_equal(grey[5:], levels(SCENE[5:].copy(), sample_format=3))
    assert len(np.unique(grey[5:])) > 190


def test_the_mark_that_a_tiff_names_is_left_out_wherever_it_lies() -> None:
    values = SCENE.copy()
    values[:5] = 0.1
    grey = levels(values, sample_format=3, nodata="0.1")
    assert not grey[:5].any()
    np.testing.assert_array_equal(grey[5:], levels(SCENE[5:].copy(), sample_format=3))
    counts = RNG.integers(0, 4096, (15, 20)).astype(np.uint16)
    counts[0, 0], counts[5:7] = 4095, 65535
    grey = levels(counts, nodata="65535")
    assert not grey[5:7].any()
    np.testing.assert_array_equal(grey[:5], counts[:5] >> 4)
    assert levels(SCENE, sample_format=3, nodata="none").max() == 255


@pytest.mark.parametrize("mark", [-9999, -32768, -32767])
def test_signed_heights_are_not_pressed_together_by_the_customary_marks(mark: int) -> None:
    heights = RNG.integers(0, 3000, (15, 20)).astype(np.int16)
    heights[3:5] = mark
    grey = levels(heights, sample_format=2)
    assert not grey[3:5].any()
    np.testing.assert_array_equal(grey[:3], levels(np.vstack([heights[:3], heights[5:]]), sample_format=2)[:3])


def test_images_without_such_a_mark_are_stretched_from_min_to_max_as_ever() -> None:
    for values, kind in (
        (RNG.normal(size=(20, 20)).astype(np.float32), 3),
        (np.array([[0, 1], [1, 0]], np.float32), 3),
        (np.array([[-9999, 5]], np.float32), 3),  # two values: a mask
        (RNG.integers(-2000, 2000, (20, 20)).astype(np.int16), 2),
        (np.exp(RNG.normal(size=(20, 20))).astype(np.float32), 3),
    ):
        wide = values.astype(np.float64)
        low, high = wide.min(), wide.max()
        np.testing.assert_array_equal(levels(values, sample_format=kind), np.rint((wide - low) * (255 / (high - low))))


def test_an_image_without_any_value_is_unreadable_and_one_of_one_value_black() -> None:
    with pytest.raises(Undecodable, match="no value that is finite and not marked"):
        levels(np.full((4, 4), np.nan, np.float32), sample_format=3)
    with pytest.raises(Undecodable, match="no value that is finite"):
        levels(np.full((4, 4), 7, np.float32), sample_format=3, nodata="7")
    assert not levels(np.full((4, 4), 7, np.float32), sample_format=3).any()
