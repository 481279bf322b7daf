"""Synthetic images: of any number, the same for ever, with labels that are there to be found; features without a network."""

import tracemalloc

import numpy as np
import pytest

from datasets.catalog import make_probe, open_source
from datasets.given import GivenFeatures
from datasets.grey import GreyAugment
from datasets.synthetic import CLASSES, MOST_IMAGES, Synthetic

FAR = [0, 1, 10**6, 10**9, MOST_IMAGES - 1]


def opened(count, **options):
    settings = {"root": None, "image_size": 32, "held_out": (), "labels": None} | options
    return open_source("synthetic", limit=count, **settings)


def test_an_image_is_that_of_its_number_however_many_there_are():
    largest = opened(MOST_IMAGES)
    for number in FAR:
        image = largest.image(number)
        assert image.dtype == np.uint8 and image.shape == (32, 32) and np.ptp(image) > 100
        np.testing.assert_array_equal(image, opened(number + 1).image(number))
    assert len({largest.image(number).tobytes() for number in [*FAR, *range(2, 500)]}) == len(FAR) + 498


def test_a_source_of_any_size_takes_no_memory():
    tracemalloc.start()
    source = opened(MOST_IMAGES)
    assert len(source) == MOST_IMAGES and source.labels() is None and len(source.fingerprint()) == 64
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()


def test_the_first_images_of_a_longer_source_are_those_of_the_shorter_one():
    assert opened(1000).fingerprint(300) == opened(300).fingerprint() != opened(1000).fingerprint()
    assert opened(300).fingerprint() != opened(300, image_size=16).fingerprint()


def test_labels_are_the_same_one_by_one_and_all_at_once_and_about_equally_many():
    source = opened(20_000)
    labels = source.labels()
    np.testing.assert_array_equal(labels[[7, 0, 9]], source.labels_of(np.array([7, 0, 9])))
    counts = np.bincount(labels, minlength=CLASSES)
    assert len(counts) == CLASSES and (abs(counts - 2000) < 6 * np.sqrt(2000)).all()


def test_the_label_can_be_seen():
    """Round shapes have less edge than petals of the same area, rings more than what is filled: five numbers tell most labels."""
    source = opened(3000)
    features = []
    for number in range(3000):
        bright = (source.image(number) > 200).astype(float)
        y, x = np.argwhere(bright).T - np.argwhere(bright).mean(axis=0)[:, None]
        edge = np.abs(np.diff(bright, axis=0)).sum() + np.abs(np.diff(bright, axis=1)).sum()
        radius = np.hypot(x, y)
        turns = [abs(np.exp(1j * count * np.arctan2(y, x)).mean()) for count in (2, 3, 4, 5)]
        features.append([edge / np.sqrt(bright.sum()), radius.std() / radius.mean(), *turns])
    features = np.array(features)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    labels = source.labels()
    nearest = [int(((features[:2500] - one) ** 2).sum(axis=1).argmin()) for one in features[2500:]]
    assert (labels[nearest] == labels[2500:]).mean() > 0.6  # chance is 0.1


def test_the_evaluation_asks_for_images_that_no_training_can_see():
    augmentation, asked = GreyAugment(size=32, view_count=1), {"root": None, "image_size": 32, "held_out": ()}
    asked |= {"gallery": "", "limit": 10_000, "query_limit": 10_000}
    probe = make_probe(opened(10**9), augmentation, **asked)
    assert probe.gallery.count == 2000 and [queries.count for queries in probe.queries] == [500]
    assert probe.classes == CLASSES
    np.testing.assert_array_equal(probe.queries[0].labels_M, Synthetic(500, 32, MOST_IMAGES).labels())
    few = make_probe(opened(20), augmentation, **asked)
    assert few is None  # of 20 images some labels are not there


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("synthetic", {}, "data.limit is null; set it to how many"),
        ("synthetic", {"limit": 10**12 + 1}, "at most 10"),
        ("synthetic", {"limit": 5, "root": "/tmp"}, "set it to null"),
        ("synthetic", {"limit": 5, "labels": "folders"}, "data.labels is for folders"),
        ("digits", {"limit": 5}, "data.limit is for fashion_mnist and synthetic"),
    ],
)
def test_keys_that_mean_nothing_here_are_refused(name, options, said):
    settings = {"root": None, "image_size": 32, "limit": None, "held_out": (), "labels": None} | options
    with pytest.raises(ValueError, match=said):
        open_source(name, **settings)


def test_given_features_are_of_unit_length_and_keyed_by_seed_step_instance_and_view():
    given, ids = GivenFeatures(16, (True, True)), np.array([4, 10**12 - 1, 0, 7])

    def asked_for(seed=0, step=3, ids=ids):
        return [view.numpy() for view in given.views(iter([]), seed, step, ids)]

    first, second = asked_for()
    assert first.dtype == np.float32 and first.shape == (4, 16)
    np.testing.assert_allclose(np.linalg.norm([first, second], axis=2), 1, rtol=1e-6)
    np.testing.assert_array_equal(asked_for(ids=ids[[2, 0]])[0], first[[2, 0]])  # whatever else is in the batch
    assert asked_for(ids=ids[:0])[0].shape == (0, 16)
    for other in (second, asked_for(seed=1)[0], asked_for(step=4)[0], asked_for(ids=ids + 1)[0]):
        assert (np.abs(other - first).max(axis=1) > 0.01).all()


def test_the_views_of_an_instance_lie_around_its_direction():
    """cos(z, d) is near 1 / sqrt(1 + spread^2), and the mean of many views is the direction."""
    given, ids = GivenFeatures(64, (True,), spread=1.0), np.arange(20)
    views_TBD = np.stack([given.views([], 5, step, ids)[0].numpy() for step in range(400)])
    mean_BD = views_TBD.mean(axis=0)
    mean_BD /= np.linalg.norm(mean_BD, axis=1, keepdims=True)
    cosines = np.einsum("tbd,bd->tb", views_TBD, mean_BD)
    assert abs(cosines.mean() - np.sqrt(0.5)) < 0.01
    between = mean_BD @ mean_BD.T - np.eye(20)
    assert np.abs(between).max() < 0.6 and abs(between.mean()) < 0.05
