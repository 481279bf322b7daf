"""Random views for evaluations: the augmentation's own, by keys of their own, whatever is asked with what."""

import numpy as np
import pytest
import torch

from datasets.batch import UnreadableImage
from datasets.drawn_views import SEED, drawn_views
from datasets.grey import GreyAugment
from datasets.photos import PhotoAugment
from datasets.views.crops import Crop

DRAWS = (0, 1)
KINDS = {
    "grey": (GreyAugment(size=12, view_count=1), (16, 16)),
    "photos": (PhotoAugment((Crop(16, 1, (0.3, 1.0)), Crop(8, 2, (0.1, 0.3)))), (30, 24, 3)),
}


class Images:
    """Number 2 cannot be decoded; whoever decodes is written down."""

    channels = 1

    def __init__(self, shape):
        self.shape, self.decoded = shape, []

    def __len__(self):
        return 9

    def image(self, instance):
        self.decoded.append(instance)
        if instance == 2:
            raise UnreadableImage("2", "torn")
        return np.random.default_rng(instance).integers(0, 256, self.shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_is_the_augmentations_own_under_a_key_of_instance_and_draw(kind):
    augmentation, shape = KINDS[kind]
    source = Images(shape)
    images, readable_B = drawn_views(source, augmentation, np.array([5, 2, 7]), DRAWS).load(0, 6)
    np.testing.assert_array_equal(readable_B, [True, True, False, False, True, True])
    assert source.decoded == [5, 2, 7]  # each once
    for place, (instance, draw) in {0: (5, 0), 1: (5, 1), 4: (7, 0), 5: (7, 1)}.items():
        alone = augmentation.views([source.image(instance)], SEED, 0, np.array([2 * instance + draw]))[0]
        torch.testing.assert_close(images[place], alone[0], rtol=0, atol=0)
    assert not torch.equal(images[0], images[1]) and not images[2:4].any()


@pytest.mark.parametrize("kind", KINDS)
def test_views_do_not_depend_on_what_else_is_asked(kind):
    augmentation, shape = KINDS[kind]
    whole = drawn_views(Images(shape), augmentation, np.array([5, 2, 7, 1]), DRAWS).load(0, 8)
    seconds = drawn_views(Images(shape), augmentation, np.array([1, 7]), (1,)).load(0, 2)
    torch.testing.assert_close(seconds.images, whole.images[[7, 5]], rtol=0, atol=0)
    parts = [
        drawn_views(Images(shape), augmentation, np.array([5, 2, 7, 1]), DRAWS).load(*part) for part in ((0, 3), (3, 8))
    ]
    torch.testing.assert_close(torch.cat([part.images for part in parts]), whole.images, rtol=0, atol=0)
    np.testing.assert_array_equal(np.concatenate([part.readable_B for part in parts]), whole.readable_B)
