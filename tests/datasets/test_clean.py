import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from datasets.clean import PHOTO_MARGIN, to_tensor

RNG = np.random.default_rng(0)


def test_images_of_the_right_size_keep_their_pixels() -> None:
    grey = RNG.integers(0, 256, (3, 16, 16), dtype=np.uint8)
    colour = RNG.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    assert torch.equal(to_tensor(list(grey), 16), torch.from_numpy(grey)[:, None])
    assert torch.equal(to_tensor(list(colour), 16), torch.from_numpy(colour).permute(0, 3, 1, 2))


def test_images_of_many_sizes_come_out_as_one_tensor_of_bytes() -> None:
    images = [RNG.integers(0, 2, (h, w, 3), dtype=np.uint8) * 255 for h, w in ((5, 9), (40, 33), (16, 16), (1, 300))]
    tensor = to_tensor(images, 16)
    assert tensor.shape == (4, 3, 16, 16)
    assert tensor.dtype == torch.uint8


def test_a_photograph_is_what_torchvision_resizes_and_crops() -> None:
    photo = RNG.integers(0, 256, (334, 250, 3), dtype=np.uint8)
    square = tv.center_crop(torch.from_numpy(photo).permute(2, 0, 1), [250, 250])
    expected = tv.center_crop(tv.resize(square, [256, 256], antialias=True), [224, 224])
    difference = to_tensor([photo], 224, PHOTO_MARGIN)[0].int() - expected.int()
    assert difference.abs().max() <= 1


def test_reducing_averages_instead_of_picking_pixels() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::8] = 255
    inner = to_tensor([stripes], 8)[..., 1:-1]
    assert (inner.float() - 255 / 8).abs().max() < 2


@pytest.mark.parametrize("shape", [(30, 10), (10, 30), (10, 31)])
def test_of_an_oblong_image_the_centre_square_is_kept(shape: tuple[int, int]) -> None:
    image = np.full(shape, 255, np.uint8)
    centre = tuple(slice((side - 10) // 2, (side - 10) // 2 + 10) for side in shape)
    image[centre] = 51
    assert torch.equal(to_tensor([image], 10), torch.full((1, 1, 10, 10), 51, dtype=torch.uint8))


def test_the_margin_of_photographs_cuts_the_border_away() -> None:
    photo = np.zeros((256, 256, 3), np.uint8)
    photo[16:-16, 16:-16] = 255
    white = torch.full((1, 3, 224, 224), 255, dtype=torch.uint8)
    assert torch.equal(to_tensor([photo], 224, PHOTO_MARGIN), white)
    assert not torch.equal(to_tensor([photo], 224), white)
