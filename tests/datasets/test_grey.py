"""Grey augmentation: per-image randomness to the bit, and each operation against what it claims to be.

Geometry is measured by augmenting ramps: an image whose value is its own x (or y) coordinate shows, at every output
pixel, where in the source that pixel was read.
"""

import pickle

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from datasets import grey
from datasets.grey import GreyAugment, _blur, _change_thickness, _smooth_field
from datasets.keyed import keyed

NAMES = ("degrees", "shift", "shear", "elastic", "thickness", "blur", "flip", "contrast")
OFF = {"scale": (1, 1)} | dict.fromkeys(NAMES, 0)
ALL_ON = GreyAugment(flip=0.5, view_count=2)


def only(size: int = 32, **switched_on: object) -> GreyAugment:
    return GreyAugment(size=size, **{**OFF, **switched_on})


def random_images(count: int, side: int = 32) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side), dtype=np.uint8))


def keys(count: int) -> np.ndarray:
    return keyed(0, 1, np.arange(count), 0)


def read_places(augment: GreyAugment, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(source places, output places) of the central 12 x 12 pixels: float64 [count, 144, 2] and [144, 2], -1 to 1."""
    side = augment.size
    centres_S = (2 * torch.arange(side) + 1) / side - 1
    # A quarter of the range, so that no ramp is cut at 0 or 1.
    ramp_SS = (0.5 + 0.25 * centres_S).expand(side, side)
    x_B1SS = augment.on_floats(ramp_SS.expand(count, 1, side, side), keys(count))
    y_B1SS = augment.on_floats(ramp_SS.T.expand(count, 1, side, side), keys(count))
    middle = slice(side // 2 - 6, side // 2 + 6)
    read_BP2 = torch.stack([x_B1SS, y_B1SS], dim=-1)[:, 0, middle, middle].reshape(count, -1, 2)
    column, row = torch.meshgrid(centres_S[middle], centres_S[middle], indexing="xy")
    return (read_BP2.double().numpy() - 0.5) * 4, torch.stack([column, row], -1).reshape(-1, 2).double().numpy()


def affine_maps(augment: GreyAugment, count: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """The affine map of each image, output place -> source place, fitted: [count, 2, 2] and offsets [count, 2]."""
    read_BP2, place_P2 = read_places(augment, count)
    design_P3 = np.column_stack([place_P2, np.ones(len(place_P2))])
    fits_B32 = np.linalg.pinv(design_P3) @ read_BP2
    np.testing.assert_allclose(design_P3 @ fits_B32, read_BP2, atol=3e-5)
    return fits_B32[:, :2].transpose(0, 2, 1), fits_B32[:, 2]


def assert_uniform(values_B: np.ndarray, least: float, most: float) -> None:
    ideal_B = least + (most - least) * (np.arange(len(values_B)) + 0.5) / len(values_B)
    # The largest gap between two distribution functions exceeds 1.95 / sqrt(n) with probability 1e-3.
    assert np.abs(np.sort(values_B) - ideal_B).max() < (most - least) * 1.95 / np.sqrt(len(values_B))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 33, 100, 256])
def test_same_pixels_in_a_batch_of_any_size(count: int) -> None:
    images, ids_B = random_images(257), np.arange(257)
    whole = ALL_ON.views(images, 3, 5, ids_B)
    for start in (0, 257 - count):
        part = ALL_ON.views(images[start : start + count], 3, 5, ids_B[start : start + count])
        for view in range(2):
            assert torch.equal(part[view], whole[view][start : start + count])


def test_a_large_batch_is_made_in_parts_of_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    images, ids = random_images(50), np.arange(50)
    whole = ALL_ON.views(images, 0, 1, ids)
    made, on_floats = [], GreyAugment.on_floats
    monkeypatch.setattr(GreyAugment, "on_floats", lambda *them: (made.append(len(them[1])), on_floats(*them))[1])
    monkeypatch.setattr(grey, "_PIXELS_AT_ONCE", 4 * 32 * 32 - 1)
    parts = ALL_ON.views(images, 0, 1, ids)
    assert max(made) == 3 and sum(made) == 2 * 50
    assert all(torch.equal(*pair) for pair in zip(whole, parts, strict=True))


def test_same_pixels_in_any_order() -> None:
    images, order = random_images(50), np.random.default_rng(1).permutation(50)
    straight = ALL_ON.views(images, 3, 5, np.arange(50))[0]
    shuffled = ALL_ON.views([images[i] for i in order], 3, 5, order)[0]
    assert torch.equal(shuffled, straight[torch.from_numpy(order)])


@pytest.mark.parametrize("threads", [2, 3])
def test_same_pixels_for_any_number_of_threads(threads: int) -> None:
    images, ids_B = random_images(301), np.arange(301)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ALL_ON.views(images, 3, 5, ids_B)[0]
        torch.set_num_threads(threads)
        together = ALL_ON.views(images, 3, 5, ids_B)[0]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, together)


def test_seed_step_instance_and_view_each_change_the_view() -> None:
    images = random_images(1)
    base, other_view = ALL_ON.views(images, 3, 5, np.array([9]))
    others = [
        ALL_ON.views(images, *words)[0]
        for words in ((4, 5, np.array([9])), (3, 6, np.array([9])), (3, 5, np.array([8])))
    ]
    for other in (other_view, *others):
        assert (base.int() - other.int()).abs().max() > 25


def test_a_view_does_not_depend_on_how_many_views_there_are() -> None:
    images, ids_B = random_images(4), np.arange(4)
    assert torch.equal(
        GreyAugment(view_count=3).views(images, 0, 0, ids_B)[0], GreyAugment().views(images, 0, 0, ids_B)[0]
    )


def test_all_off_is_the_identity_to_the_bit() -> None:
    images = random_images(5)
    (view_B1SS,) = only().views(images, 0, 0, np.arange(5))
    assert torch.equal(view_B1SS[:, 0], torch.from_numpy(np.stack(images)))


@pytest.mark.parametrize("side", [28, 20, 48])
def test_all_off_is_bilinear_resizing(side: int) -> None:
    images_B1HW = torch.rand(3, 1, side, side, generator=torch.Generator().manual_seed(0))
    views_B1SS = only().on_floats(images_B1HW, keys(3))
    expected_B1SS = interpolate(images_B1HW, size=(32, 32), mode="bilinear", align_corners=False)
    # The outermost pixels blend with the background of 0.
    torch.testing.assert_close(views_B1SS[..., 1:-1, 1:-1], expected_B1SS[..., 1:-1, 1:-1], atol=1e-5, rtol=0)


def test_half_the_size_averages_blocks_of_four() -> None:
    images_B1HW = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(only().on_floats(images_B1HW, keys(3)), avg_pool2d(images_B1HW, 2), atol=1e-6, rtol=0)


def test_rotation_is_rigid_and_uniform() -> None:
    maps_B22, offsets_B2 = affine_maps(only(degrees=20))
    np.testing.assert_allclose(
        maps_B22 @ maps_B22.transpose(0, 2, 1), np.broadcast_to(np.eye(2), (2000, 2, 2)), atol=1e-4
    )
    np.testing.assert_allclose(offsets_B2, 0, atol=1e-5)
    assert_uniform(np.rad2deg(np.arctan2(maps_B22[:, 0, 1], maps_B22[:, 0, 0])), -20, 20)


def test_shift_moves_both_ways_uniformly_by_a_fraction_of_the_side() -> None:
    maps_B22, offsets_B2 = affine_maps(only(shift=0.1))
    np.testing.assert_allclose(maps_B22, np.broadcast_to(np.eye(2), (2000, 2, 2)), atol=1e-4)
    # The side is 2 in these coordinates.
    assert_uniform(offsets_B2[:, 0], -0.2, 0.2)
    assert_uniform(offsets_B2[:, 1], -0.2, 0.2)
    assert abs(np.corrcoef(offsets_B2.T)[0, 1]) < 4.5 / np.sqrt(2000)


def test_scale_is_log_uniform_and_above_one_enlarges() -> None:
    maps_B22, _ = affine_maps(only(scale=(0.75, 1.5)))
    np.testing.assert_allclose(maps_B22[:, 0, 0], maps_B22[:, 1, 1], atol=1e-4)
    np.testing.assert_allclose(maps_B22[:, [0, 1], [1, 0]], 0, atol=1e-4)
    assert_uniform(-np.log(maps_B22[:, 0, 0]), np.log(0.75), np.log(1.5))


def test_shear_slants_along_x_alone() -> None:
    maps_B22, _ = affine_maps(only(shear=0.3))
    np.testing.assert_allclose(maps_B22[:, [0, 1, 1], [0, 0, 1]], np.broadcast_to([1, 0, 1], (2000, 3)), atol=1e-4)
    assert_uniform(maps_B22[:, 0, 1], -0.3, 0.3)


def test_flip_mirrors_x_with_its_probability() -> None:
    maps_B22, _ = affine_maps(only(flip=0.3))
    np.testing.assert_allclose(np.abs(maps_B22), np.broadcast_to(np.eye(2), (2000, 2, 2)), atol=1e-4)
    np.testing.assert_allclose(maps_B22[:, 1, 1], 1, atol=1e-4)
    assert abs((maps_B22[:, 0, 0] < 0).mean() - 0.3) < 4.5 * np.sqrt(0.3 * 0.7 / 2000)


def test_all_geometry_together_is_shift_after_rotation_after_shear_after_scale_after_mirror() -> None:
    maps_B22, offsets_B2 = affine_maps(only(degrees=15, shift=0.05, scale=(0.9, 1.2), shear=0.2, flip=0.5), 200)
    # A mirror comes first of all, on the source's side: undo it where the map changes orientation.
    mirror_B = np.sign(np.linalg.det(maps_B22))
    assert set(mirror_B) == {-1, 1}
    maps_B22[:, 0] *= mirror_B[:, None]
    offsets_B2[:, 0] *= mirror_B
    forward_B22 = np.linalg.inv(maps_B22)
    # Forward: s R K. Its columns s R e_x and s R (k e_x + e_y) give scale and angle, and the shear.
    scale_B = np.hypot(forward_B22[:, 0, 0], forward_B22[:, 1, 0])
    angle_B = np.arctan2(forward_B22[:, 1, 0], forward_B22[:, 0, 0])
    shear_B = np.einsum("bi,bi->b", forward_B22[:, :, 0], forward_B22[:, :, 1]) / scale_B**2
    assert (scale_B > 0.899).all()
    assert (scale_B < 1.201).all()
    assert (np.abs(angle_B) < np.deg2rad(15.1)).all()
    assert (np.abs(shear_B) < 0.201).all()
    np.testing.assert_allclose(np.linalg.det(forward_B22), scale_B**2, rtol=1e-3)
    shift_B2 = -np.einsum("bij,bj->bi", forward_B22, offsets_B2)
    assert np.abs(shift_B2).max() < 0.1001
    assert np.abs(shift_B2).max() > 0.09


def test_elastic_displacement_is_bounded_smooth_and_a_third_of_the_bound_in_size() -> None:
    read_BP2, place_P2 = read_places(only(elastic=0.1), 500)
    moved_BP2 = (read_BP2 - place_P2) / 2
    assert np.abs(moved_BP2).max() < 0.1
    assert 0.025 < np.sqrt((moved_BP2**2).mean()) < 0.04
    # Neighbouring pixels move alike: the change from pixel to pixel is far under the displacement.
    field_B = moved_BP2.reshape(500, 12, 12, 2)
    assert np.sqrt((np.diff(field_B, axis=1) ** 2).mean()) < 0.2 * np.sqrt((moved_BP2**2).mean())
    assert abs(moved_BP2.mean()) < 0.002


def test_thickness_blends_towards_maximum_and_minimum() -> None:
    images_B1SS = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    amounts_B = torch.tensor([1.0, 0.4, 0.0, -0.4, -1.0, -0.7]).reshape(-1, 1, 1, 1)
    largest = max_pool2d(images_B1SS, 3, stride=1, padding=1)
    smallest = -max_pool2d(-images_B1SS, 3, stride=1, padding=1)
    towards = torch.where(amounts_B > 0, largest, smallest)
    expected = images_B1SS + amounts_B.abs() * (towards - images_B1SS)
    torch.testing.assert_close(_change_thickness(images_B1SS, amounts_B), expected, atol=1e-6, rtol=0)


def test_strokes_grow_as_often_as_they_shrink() -> None:
    bar = np.zeros((32, 32), dtype=np.uint8)
    bar[8:24, 14:18] = 255
    (views_B1SS,) = only(thickness=0.6).views([bar] * 1000, 0, 0, np.arange(1000))
    ink_B = views_B1SS.sum(dim=(1, 2, 3)) / 255
    assert abs((ink_B > 64).float().mean() - 0.5) < 4.5 * 0.5 / np.sqrt(1000)
    assert ink_B.max() > 64 + 0.59 * 44  # the border of a 16 x 4 bar has 44 pixels
    assert ink_B.min() < 64 - 0.59 * 36  # and its rim 36


@pytest.mark.parametrize("largest_sigma", [0.5, 0.7, 1.0, 2.0])
def test_blur_has_the_variance_that_was_asked_for(largest_sigma: float) -> None:
    sigma_B = np.linspace(0, largest_sigma, 5)
    point_B1SS = torch.zeros(5, 1, 33, 33)
    point_B1SS[:, :, 16, 16] = 1
    blurred_BSS = _blur(point_B1SS, sigma_B, largest_sigma)[:, 0].double().numpy()
    offset_S = np.arange(33) - 16
    np.testing.assert_allclose(blurred_BSS.sum(axis=(1, 2)), 1, atol=1e-5)
    for axis in (1, 2):
        np.testing.assert_allclose(blurred_BSS.sum(axis=axis) @ offset_S**2, sigma_B**2, atol=1e-4)
    assert blurred_BSS.min() >= 0


def test_contrast_and_brightness_are_a_line_through_mid_grey() -> None:
    levels = np.array([[64, 191]], dtype=np.uint8).repeat(16, axis=1).repeat(32, axis=0)
    (views_B1SS,) = only(contrast=0.4).views([levels] * 2000, 0, 0, np.arange(2000))
    dark_B, light_B = views_B1SS[:, 0, 16, 4].numpy() / 255, views_B1SS[:, 0, 16, 28].numpy() / 255
    gain_B = (light_B - dark_B) * 255 / (191 - 64)
    assert_uniform(gain_B, 0.6, 1.4)
    assert_uniform((light_B + dark_B) / 2 - 0.5, -0.2, 0.2)


def test_views_stay_in_the_unit_interval_and_are_rounded_once() -> None:
    strong = GreyAugment(degrees=180, scale=(0.3, 3), elastic=0.3, thickness=1, blur=1, flip=0.5, contrast=1)
    images_B1SS = torch.from_numpy(np.stack(random_images(500))[:, None])
    floats_B1SS = strong.on_floats(images_B1SS.float() / 255, keys(500))
    assert floats_B1SS.min() >= 0
    assert floats_B1SS.max() <= 1
    views_B1SS = strong(images_B1SS, keys(500))
    assert views_B1SS.dtype == torch.uint8
    assert (views_B1SS - 255 * floats_B1SS).abs().max() <= 0.5001


def test_the_elastic_field_is_a_sum_of_splines_over_control_points() -> None:
    control_B2NN = np.random.default_rng(0).uniform(-0.1, 0.1, (3, 2, 6, 6))
    # The cubic B-spline around 0, and the places of pixels and control points in its units.
    spline = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
    weights_NS = np.nan_to_num(spline((np.arange(32) + 0.5) / 32 * 3 - (np.arange(6)[:, None] - 1)))
    expected = np.einsum("bcij,iy,jx->bcyx", control_B2NN, weights_NS, weights_NS)
    np.testing.assert_allclose(_smooth_field(control_B2NN, 32).numpy(), expected, atol=1e-7)


def test_the_callers_images_are_left_alone() -> None:
    images_B1HW = torch.from_numpy(np.stack(random_images(4))[:, None])
    before = images_B1HW.clone()
    ALL_ON(images_B1HW, keys(4))
    only(contrast=0.5)(images_B1HW, keys(4))
    assert torch.equal(images_B1HW, before)


def test_no_images_give_views_without_images() -> None:
    views = GreyAugment(size=24, view_count=2).views([], 0, 0, np.array([], dtype=np.int64))
    assert [tuple(view.shape) for view in views] == [(0, 1, 24, 24)] * 2


def test_a_copy_sent_to_another_process_augments_alike() -> None:
    images, ids_B = random_images(3), np.arange(3)
    copy = pickle.loads(pickle.dumps(ALL_ON))
    assert torch.equal(copy.views(images, 0, 0, ids_B)[1], ALL_ON.views(images, 0, 0, ids_B)[1])
    assert ALL_ON.rows_grad_V == (True, True)


@pytest.mark.parametrize("there", [[0, 1, 3], [2], []])
def test_an_image_that_is_not_there_is_black_and_changes_no_other(there: list[int]) -> None:
    images, ids_B = random_images(4), np.array([8, 3, 5, 1])
    some = (image if number in there else None for number, image in enumerate(images))
    away = [number for number in range(4) if number not in there]
    for view, whole in zip(ALL_ON.views(some, 0, 7, ids_B), ALL_ON.views(images, 0, 7, ids_B), strict=True):
        assert view.shape == whole.shape
        assert torch.equal(view[there], whole[there])
        assert not view[away].any()
