"""Views of photographs: within a grey level of torchvision's and of a slow twin, and the distributions of what is drawn."""

import pickle
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from configs import schema
from datasets import photos
from datasets.catalog import make_augmentation
from datasets.keyed import keyed, uniform
from datasets.photos import Crop, PhotoAugment, RandAugment
from datasets.views.crops import crop_box
from tests.datasets import slow_photos

SMALL = PhotoAugment(crops=(Crop(32, 1, (0.14, 1.0)), Crop(16, 2, (0.08, 0.14), rows_grad=False)))


def only(size: int = 16, **switched_on: Any) -> PhotoAugment:
    off = dict.fromkeys(("flip", "jitter_probability", "grey", "blur_probability"), 0.0)
    return PhotoAugment(crops=(Crop(size, 1, (0.5, 1.0)),), **{**off, **switched_on})


def photo(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    """Smooth coloured noise."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return (fine[0] * 255).byte().permute(1, 2, 0).contiguous().numpy()


def view_of(recipe: PhotoAugment, image: np.ndarray, key: np.uint64, view: int = 0) -> np.ndarray:
    return recipe(image, recipe.draws(np.asarray(key)).tolist(), view)


def slow_twin(recipe: PhotoAugment) -> slow_photos.PhotoAugment:
    """The same recipe without RandAugment, in numpy."""
    return slow_photos.PhotoAugment(
        tuple(slow_photos.Crop(crop.size, crop.count, crop.scale, crop.rows_grad) for crop in recipe.crops),
        *(recipe.flip, recipe.jitter, recipe.jitter_probability, recipe.grey),
        *(recipe.blur_probability, recipe.blur_sigma),
    )


def recipe_of(kind: str) -> PhotoAugment:
    """What the config's kind makes, with one small crop."""
    config = schema.load("configs/photos.json", [f'data.augment={{"kind":"{kind}"}}'])
    made = make_augmentation(config.data.augment.model_dump(), config.data.image_size, channels=3)
    assert isinstance(made, PhotoAugment)
    return replace(made, crops=(Crop(32, 1, made.crops[0].scale),))


KINDS = ("photos", "simclr", "mocov2", "instdisc", "randaug", "null")


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_of_every_recipe_is_within_a_grey_level_of_the_slow_twin_given_the_same_draws(kind: str) -> None:
    image, recipe = photo(), replace(recipe_of(kind), rand_augment=None)
    for key in keyed(0, 0, np.arange(60)):
        expected_3SS = 255 * slow_twin(recipe)(image, key, 0)
        difference = view_of(recipe, image, key).transpose(2, 0, 1) - expected_3SS
        # A rounding, and where colour is removed another one.
        assert np.abs(difference).max() <= 1.01


def test_whole_views_on_noise_are_within_a_grey_level_too() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for key in keyed(5, 0, np.arange(60)):
        difference = view_of(SMALL, image, key).transpose(2, 0, 1) - 255 * slow_twin(SMALL)(image, key, 0)
        assert np.abs(difference).max() <= 1.01


def test_torchvision_on_uint8_gets_darker_with_every_operation_and_is_not_what_a_whole_recipe_is_compared_with() -> (
    None
):
    """It cuts fractions off after each operation, and the next one multiplies what is lost."""
    image, away = photo(), []
    for key in keyed(0, 0, np.arange(60)):
        u = SMALL.draws(np.asarray(key)).tolist()
        top, left, height, width = crop_box(u, 60, 80, (0.14, 1.0))
        x = tv.resized_crop(
            torch.from_numpy(image).permute(2, 0, 1), top, left, height, width, [32, 32], antialias=True
        )
        factors = [0.2 + 1.6 * u[draw] for draw in (photos._BRIGHTNESS, photos._CONTRAST, photos._SATURATION)]
        x = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(x, factors[0]), factors[1]), factors[2])
        in_order = only(32, jitter_probability=1.0, jitter=(0.8, 0.8, 0.8, 0.0))
        in_order = replace(in_order, crops=SMALL.crops)
        u[photos._ORDER : photos._ORDER + 4] = [0.1, 0.2, 0.3, 0.4]
        away.append(in_order(image, u, 0).transpose(2, 0, 1).astype(int) - x.numpy())
    assert np.mean(away) > 0.3
    assert 1 < np.abs(away).max() <= 5


def assert_uniform(values_B: np.ndarray, least: float, most: float) -> None:
    ideal_B = least + (most - least) * (np.arange(len(values_B)) + 0.5) / len(values_B)
    # The largest gap between two distribution functions exceeds 1.95 / sqrt(n) with probability 1e-3.
    assert np.abs(np.sort(values_B) - ideal_B).max() < (most - least) * 1.95 / np.sqrt(len(values_B))


def assert_share(share: float, probability: float, count: int) -> None:
    assert abs(share - probability) < 4.5 * np.sqrt(probability * (1 - probability) / count)


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
    share = np.mean([not np.array_equal(view_of(plain, image, key), view_of(changed, image, key)) for key in keys_B])
    assert_share(float(share), probability, 1000)


def test_removed_colour_leaves_three_equal_channels() -> None:
    view_SS3 = view_of(only(grey=1), photo(), keyed(0, np.arange(1))[0])
    assert np.array_equal(view_SS3[..., 0], view_SS3[..., 1])
    assert np.array_equal(view_SS3[..., 0], view_SS3[..., 2])
    assert view_SS3.std() > 3


def test_same_view_whatever_else_is_in_the_batch() -> None:
    images = [photo(60, 80, seed) for seed in range(5)] + [photo(90, 50, 7)]
    whole = SMALL.views(images, 3, 4, np.arange(6))
    part = SMALL.views([images[5], images[2]], 3, 4, np.array([5, 2]))
    for view in range(3):
        assert torch.equal(part[view], whole[view][[5, 2]])


def test_seed_step_instance_and_view_each_change_the_view() -> None:
    image = [photo()]
    base, small, other_view = SMALL.views(image, 3, 5, np.array([9]))
    assert (small.int() - other_view.int()).abs().max() > 13
    for words in ((4, 5, np.array([9])), (3, 6, np.array([9])), (3, 5, np.array([8]))):
        assert (base.int() - SMALL.views(image, *words)[0].int()).abs().max() > 13


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


def test_rand_augment_changes_views_and_takes_no_draw_from_the_rest() -> None:
    image, plain = photo(), only()
    strong = only(rand_augment=RandAugment())
    keys_B = keyed(0, np.arange(200))
    np.testing.assert_array_equal(plain.draws(keys_B), strong.draws(keys_B)[:, : photos._DRAWS])
    same = [np.array_equal(view_of(plain, image, key), view_of(strong, image, key)) for key in keys_B]
    # Two layers, each applied with probability 1/2; a few operations change nothing at magnitude 10.
    assert 0.2 < np.mean(same) < 0.5


def test_images_in_read_only_memory_are_fine() -> None:
    image = photo()
    image.flags.writeable = False
    assert SMALL.views([image], 0, 0, np.array([0]))[0].shape == (1, 3, 32, 32)


def test_official_views_are_one_large_and_three_small_without_row_gradient() -> None:
    views = PhotoAugment().views([photo(300, 400)], 0, 0, np.array([0]))
    assert [tuple(view.shape) for view in views] == [(1, 3, 160, 160)] + [(1, 3, 96, 96)] * 3
    assert PhotoAugment().rows_grad_V == (True, False, False, False)
    for view in views:
        assert view.dtype == torch.uint8


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
        def __call__(self, image_HW3: np.ndarray, draws_P: Sequence[float], view: int) -> np.ndarray:
            asked.append(-1)
            return super().__call__(image_HW3, draws_P, view)

    def one_by_one() -> Iterator[np.ndarray | None]:
        for number, image in enumerate(images):
            asked.append(number)
            yield None if number == 1 else image

    views = Watched(SMALL.crops).views(one_by_one(), 3, 5, ids_B)
    assert asked == [0, -1, -1, -1, 1, 2, -1, -1, -1]
    for view, whole in zip(views, SMALL.views(images, 3, 5, ids_B), strict=True):
        assert not view[1].any()
        assert torch.equal(view[[0, 2]], whole[[0, 2]])
