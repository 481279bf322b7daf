"""Photo augmentation: torchvision's functional operations as the reference, and the distributions of what is drawn."""

import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from datasets import photos
from datasets.keyed import keyed, uniform
from datasets.photos import Crop, PhotoAugment, crop_box

SMALL = PhotoAugment(crops=(Crop(32, 1, (0.14, 1.0)), Crop(16, 2, (0.08, 0.14), rows_grad=False)))


def only(size: int = 16, **switched_on: Any) -> PhotoAugment:
    off = dict.fromkeys(("flip", "jitter_probability", "grey", "blur_probability"), 0.0)
    return PhotoAugment(crops=(Crop(size, 1, (0.5, 1.0)),), **{**off, **switched_on})


def photo(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    """Smooth coloured noise."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return (fine[0] * 255).byte().permute(1, 2, 0).contiguous().numpy()


def float_image(side: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((3, side, side), dtype=np.float32)


def replay(image: np.ndarray, key: np.uint64, crop: Crop, recipe: PhotoAugment) -> torch.Tensor:
    """The same draws through torchvision's functional operations."""
    u = uniform(np.asarray(key), photos._DRAWS).tolist()
    top, left, height, width = crop_box(u, *image.shape[:2], crop.scale)  # type: ignore[call-arg]
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    x = tv.resized_crop(pixels, top, left, height, width, [crop.size, crop.size], antialias=True).float() / 255
    if u[photos._JITTER] < recipe.jitter_probability:
        brightness, contrast, saturation, hue = recipe.jitter
        # Valid for values up to 1, where the factor's range is 1 - value to 1 + value.
        operations = [
            lambda x: tv.adjust_brightness(x, 1 + brightness * (2 * u[photos._BRIGHTNESS] - 1)),
            lambda x: tv.adjust_contrast(x, 1 + contrast * (2 * u[photos._CONTRAST] - 1)),
            lambda x: tv.adjust_saturation(x, 1 + saturation * (2 * u[photos._SATURATION] - 1)),
            lambda x: tv.adjust_hue(x, hue * (2 * u[photos._HUE] - 1)),
        ]
        for number in sorted(range(4), key=lambda n: u[photos._ORDER + n]):
            x = operations[number](x)
    if u[photos._GREY] < recipe.grey:
        x = tv.rgb_to_grayscale(x, num_output_channels=3)
    if u[photos._BLUR] < recipe.blur_probability:
        least, most = recipe.blur_sigma
        sigma = least + (most - least) * u[photos._SIGMA]
        x = tv.gaussian_blur(x, [2 * int(np.ceil(3 * sigma)) + 1] * 2, [sigma, sigma])
    return tv.horizontal_flip(x) if u[photos._FLIP] < recipe.flip else x


def assert_uniform(values_B: np.ndarray, least: float, most: float) -> None:
    ideal_B = least + (most - least) * (np.arange(len(values_B)) + 0.5) / len(values_B)
    # The largest gap between two distribution functions exceeds 1.95 / sqrt(n) with probability 1e-3.
    assert np.abs(np.sort(values_B) - ideal_B).max() < (most - least) * 1.95 / np.sqrt(len(values_B))


def assert_share(share: float, probability: float, count: int) -> None:
    assert abs(share - probability) < 4.5 * np.sqrt(probability * (1 - probability) / count)


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
    np.testing.assert_allclose(getattr(photos, name)(image, factor), expected, atol=2e-6)


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.07, 0.2, 0.5])
def test_hue_equals_torchvision(turn: float) -> None:
    image = float_image()
    # Corners of the colour cube and greys, where two or three channels are the largest at once.
    image[:, 0, :8] = np.array([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 0, 1, 0, 1]])
    image[:, 1, :] = image[0, 1, :]
    expected = tv.adjust_hue(torch.from_numpy(image), turn).numpy()
    np.testing.assert_allclose(photos.adjust_hue(image, turn), expected, atol=5e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_equals_torchvision(sigma: float) -> None:
    image = float_image()
    taps = 2 * int(np.ceil(3 * sigma)) + 1
    expected = tv.gaussian_blur(torch.from_numpy(image), [taps, taps], [sigma, sigma]).numpy()
    np.testing.assert_allclose(photos.gaussian_blur(image, sigma), expected, atol=2e-6)


def test_blur_of_an_image_smaller_than_the_kernel_keeps_a_constant() -> None:
    np.testing.assert_allclose(photos.gaussian_blur(np.full((3, 4, 4), 0.25, np.float32), 2.0), 0.25, atol=1e-6)


def test_the_area_of_crops_is_uniform_in_the_scale_and_their_aspect_log_uniform() -> None:
    # Large, and crops small: every first attempt fits, so that rejection bends no distribution.
    draws = uniform(keyed(0, np.arange(4000)), photos._DRAWS).tolist()
    top, left, height, width = np.array([crop_box(u, 3000, 4000, (0.08, 0.14)) for u in draws]).T
    assert_uniform(height * width / 12e6, 0.08, 0.14)
    assert_uniform(np.log(width / height), np.log(3 / 4), np.log(4 / 3))
    assert_uniform(top / (3000 - height), 0, 1)
    assert_uniform(left / (4000 - width), 0, 1)
    assert abs(np.corrcoef(height * width, np.log(width / height))[0, 1]) < 4.5 / np.sqrt(4000)


@pytest.mark.parametrize(("height", "width"), [(60, 80), (33, 500), (7, 7), (1, 1)])
def test_crops_lie_inside_the_image(height: int, width: int) -> None:
    for u in uniform(keyed(1, np.arange(500)), photos._DRAWS).tolist():
        top, left, crop_height, crop_width = crop_box(u, height, width, (0.14, 1.0))
        assert 0 <= top <= top + crop_height <= height
        assert 0 <= left <= left + crop_width <= width
        assert crop_height > 0
        assert crop_width > 0


def test_crops_reach_every_edge() -> None:
    boxes = [crop_box(u, 8, 8, (0.5, 0.8)) for u in uniform(keyed(1, np.arange(500)), photos._DRAWS).tolist()]
    top, left, height, width = np.array(boxes).T
    for start, length in ((top, height), (left, width)):
        loose = length < 8
        assert (start[loose] == 0).any()
        assert (start[loose] + length[loose] == 8).any()


def test_crops_of_a_whole_image_follow_torchvisions_distribution() -> None:
    # Rejection matters here. Mean and spread of the area against torchvision's own sampler, 3 standard errors each.
    ours = np.array(
        [np.prod(crop_box(u, 60, 80, (0.14, 1.0))[2:]) for u in uniform(keyed(2, np.arange(6000)), 40).tolist()]
    )
    image = torch.zeros(3, 60, 80)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array(
            [np.prod(RandomResizedCrop.get_params(image, [0.14, 1.0], [3 / 4, 4 / 3])[2:]) for _ in range(6000)]
        )
    error = theirs.std() / np.sqrt(3000)
    assert abs(ours.mean() - theirs.mean()) < 3 * error
    assert abs(ours.std() - theirs.std()) < 3 * error


@pytest.mark.parametrize(("height", "width"), [(60, 500), (500, 60), (60, 70)])
def test_where_no_crop_fits_the_middle_is_taken_as_by_torchvision(height: int, width: int) -> None:
    # An area of twice the image never fits.
    u = uniform(keyed(0), photos._DRAWS).tolist()
    expected = RandomResizedCrop.get_params(torch.zeros(3, height, width), [2.0, 2.0], [3 / 4, 4 / 3])
    assert crop_box(u, height, width, (2.0, 2.0)) == expected


@pytest.mark.parametrize(
    ("switched_on", "probability"),
    [({"flip": 0.3}, 0.3), ({"jitter_probability": 0.8}, 0.8), ({"grey": 0.2}, 0.2), ({"blur_probability": 0.5}, 0.5)],
)
def test_each_operation_happens_with_its_probability(switched_on: dict[str, Any], probability: float) -> None:
    image, plain, changed = photo(), only(), only(**switched_on)
    keys_B = keyed(0, np.arange(1000))
    share = np.mean([not np.array_equal(plain(image, key, 0), changed(image, key, 0)) for key in keys_B])
    assert_share(float(share), probability, 1000)


def test_removed_colour_leaves_three_equal_channels() -> None:
    view_3SS = only(grey=1)(photo(), keyed(0, np.arange(1))[0], 0)
    assert np.array_equal(view_3SS[0], view_3SS[1])
    assert np.array_equal(view_3SS[0], view_3SS[2])
    assert view_3SS.std() > 0.01


def test_same_view_whatever_else_is_in_the_batch() -> None:
    images = [photo(60, 80, seed) for seed in range(5)] + [photo(90, 50, 7)]
    whole = SMALL.views(images, 3, 4, np.arange(6))
    part = SMALL.views([images[5], images[2]], 3, 4, np.array([5, 2]))
    for view in range(3):
        assert torch.equal(part[view], whole[view][[5, 2]])


def test_seed_step_instance_and_view_each_change_the_view() -> None:
    image = [photo()]
    base, small, other_view = SMALL.views(image, 3, 5, np.array([9]))
    assert (small - other_view).abs().max() > 0.05
    for words in ((4, 5, np.array([9])), (3, 6, np.array([9])), (3, 5, np.array([8]))):
        assert (base - SMALL.views(image, *words)[0]).abs().max() > 0.05


def test_global_generators_are_neither_read_nor_moved() -> None:
    image = [photo()]
    np.random.seed(0)  # noqa: NPY002 - the legacy generator is the one that must be left alone
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    expected_next = np.random.RandomState(0).random()
    first = SMALL.views(image, 0, 0, np.array([0]))
    assert random.getstate() == python_state
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.random() == expected_next  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        assert all(map(torch.equal, first, SMALL.views(image, 0, 0, np.array([0]))))


def test_images_in_read_only_memory_are_fine() -> None:
    image = photo()
    image.flags.writeable = False
    assert SMALL.views([image], 0, 0, np.array([0]))[0].shape == (1, 3, 32, 32)


def test_official_views_are_one_large_and_three_small_without_row_gradient() -> None:
    views = PhotoAugment().views([photo(300, 400)], 0, 0, np.array([0]))
    assert [tuple(view.shape) for view in views] == [(1, 3, 160, 160)] + [(1, 3, 96, 96)] * 3
    assert PhotoAugment().rows_grad_V == (True, False, False, False)
    for view in views:
        assert view.dtype == torch.float32
        assert view.min() >= 0
        assert view.max() <= 1


def test_no_images_give_views_without_images() -> None:
    views = SMALL.views([], 0, 0, np.array([], dtype=np.int64))
    assert [tuple(view.shape) for view in views] == [(0, 3, 32, 32), (0, 3, 16, 16), (0, 3, 16, 16)]


def test_a_copy_sent_to_another_process_augments_alike() -> None:
    image = [photo()]
    copy = pickle.loads(pickle.dumps(SMALL))
    assert all(map(torch.equal, copy.views(image, 0, 0, np.array([0])), SMALL.views(image, 0, 0, np.array([0]))))


def test_views_of_an_image_are_made_before_the_next_is_asked_for_and_none_is_black() -> None:
    ids_B = np.array([4, 9, 2])
    images = [photo(seed=0), photo(seed=1), photo(50, 40, seed=2)]
    asked: list[int] = []

    class Watched(PhotoAugment):
        def __call__(self, image_HW3: np.ndarray, key: np.uint64, view: int) -> np.ndarray:
            asked.append(-1)
            return super().__call__(image_HW3, key, view)

    def one_by_one() -> Iterator[np.ndarray | None]:
        for number, image in enumerate(images):
            asked.append(number)
            yield None if number == 1 else image

    views = Watched(SMALL.crops).views(one_by_one(), 3, 5, ids_B)
    assert asked == [0, -1, -1, -1, 1, 2, -1, -1, -1]
    for view, whole in zip(views, SMALL.views(images, 3, 5, ids_B), strict=True):
        assert not view[1].any()
        assert torch.equal(view[[0, 2]], whole[[0, 2]])
