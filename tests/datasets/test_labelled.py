"""Labelled images in two parts, and the order in which they are read."""

import numpy as np
import pytest

from datasets.digits import Digits
from datasets.glyphs import Glyphs
from datasets.labelled import Classes, labelled_parts, other_source
from datasets.passes import InColour, Passes, orders
from datasets.strata import share_of_each, so_many_of_each
from datasets.synthetic import Synthetic
from tests.datasets.toy_fonts import CHARACTERS, build_font

GIVEN = {"least_images": 1, "limit": None, "test_share": 0.2}


class Labelled:
    """A source of labels alone."""

    name = "labelled"

    def __init__(self, labels):
        self._labels = None if labels is None else np.array(labels)

    def labels(self):
        return self._labels

    def instance_name(self, instance):
        return f"image {instance}"


@pytest.mark.parametrize("share", [0.1, 0.35, 0.9, 0.999])
def test_a_share_has_its_part_of_each_label_and_leaves_one(share):
    counts = np.array([1, 2, 5, 10, 97])
    labels = np.repeat(np.arange(5), counts)
    chosen = np.bincount(labels[share_of_each(labels, np.arange(len(labels)), share, 7)], minlength=5)
    assert chosen.tolist() == np.minimum(np.floor(share * counts + 0.5), counts - 1).tolist()


def test_a_part_depends_on_the_images_and_not_on_their_order_and_lies_inside_every_larger_one():
    labels, ids = np.arange(200) % 7, np.arange(200) * 3
    order = np.random.default_rng(0).permutation(200)
    small, large = share_of_each(labels, ids, 0.2, 1), share_of_each(labels, ids, 0.5, 1)
    assert (share_of_each(labels[order], ids[order], 0.2, 1) == small[order]).all()
    assert (small <= large).all() and small.sum() < large.sum()
    assert (share_of_each(labels, ids, 0.2, 2) != small).any()
    few = so_many_of_each(labels, ids, 3, 1)
    assert np.bincount(labels[few]).tolist() == [3] * 7 and (few <= large).all()
    assert so_many_of_each(labels, ids, 1000, 1).all()
    assert share_of_each(labels, ids, 1e-6, 1, least=1).sum() == 7
    assert not len(share_of_each(labels[:0], ids[:0], 0.5, 1))


def test_a_source_without_a_part_that_is_tested_is_cut_once_by_label():
    source = Labelled([0, 1] * 50 + [-1] * 10 + [5])
    parts = labelled_parts(source, None, **{**GIVEN, "least_images": 2})
    assert parts.labels_C.tolist() == [0, 1]  # 5 has one image, and below 0 nothing is known
    assert (len(parts.train), len(parts.test)) == (80, 20)
    assert not np.intersect1d(parts.train.instances_M, parts.test.instances_M).size
    assert np.bincount(parts.test.classes_M).tolist() == [10, 10]
    assert "training saw both" in parts.words
    again = labelled_parts(source, None, **{**GIVEN, "least_images": 2, "limit": 10})
    assert np.bincount(again.train.classes_M).tolist() == [5, 5]
    assert (again.test.instances_M == parts.test.instances_M).all()
    assert parts.example(1) == f"image {parts.test.instances_M[parts.test.classes_M == 1][0]}"


def test_tested_images_of_other_labels_are_left_out_and_counted():
    parts = labelled_parts(Labelled([3, 3, 9, 9]), Labelled([9, 4, 3, -1, 9]), **GIVEN)
    assert parts.test.instances_M.tolist() == [0, 2, 4] and parts.test.classes_M.tolist() == [1, 0, 1]
    assert "(1 of other labels left out)" in parts.words
    given = labelled_parts(
        Labelled([3, 3, 9, 9]), Labelled([9, 4, 3]), **GIVEN, classes=Classes(np.array([4, 9]), None, None)
    )
    assert given.test.instances_M.tolist() == [0, 1] and given.test.classes_M.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("trained", "tested", "words"),
    [(None, [1], "has no labels"), ([1, 1], [1], "1 labels of labelled"), ([1, 2], [3], "none of the 1 labelled")],
)
def test_what_no_classifier_can_be_trained_on_is_refused(trained, tested, words):
    with pytest.raises(ValueError, match=words):
        labelled_parts(Labelled(trained), Labelled(tested), **GIVEN)


def test_what_is_tested_was_never_trained_on():
    where = {"root": None, "image_size": 16, "held_out": ()}
    assert len(other_source(Digits("train"), **where)) == 360
    tested = other_source(Synthetic(50, 16), **where)
    assert not np.array_equal(tested.image(0), Synthetic(50, 16).image(0))


def test_glyphs_are_tested_by_the_held_out_families_with_the_same_labels(tmp_path):
    for name, family in (("a", "One"), ("b", "Two"), ("c", "Two")):
        build_font(tmp_path / f"{name}.ttf", family, CHARACTERS)
    source = Glyphs(tmp_path, 16, ["Two"])
    tested = other_source(source, root=str(tmp_path), image_size=16, held_out=["Two"])
    assert [face.family for face in tested.faces] == ["Two", "Two"] and [face.family for face in source.faces] == [
        "One"
    ]
    parts = labelled_parts(source, tested, **GIVEN)
    assert (parts.labels_C[parts.test.classes_M] == tested.labels()[parts.test.instances_M]).all()
    assert other_source(source, root=str(tmp_path), image_size=16, held_out=[]) is None


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_pass_has_every_image_once_whatever_the_number_of_parts(parts):
    instances = np.arange(10) * 2 + 1
    passes, alone = Passes(instances, 4, parts, seed=5), Passes(instances, 4, 1, seed=5)
    assert passes.steps_per_pass == 3
    seen = []
    for step in range(9):
        by_part = passes.positions(step).reshape(parts, -1)
        ids = [passes.instances(part[part >= 0]) for part in by_part]
        assert (np.concatenate(ids) == alone.instances(alone.positions(step)[alone.positions(step) >= 0])).all()
        seen.append(np.concatenate(ids))
    for of_pass in range(3):
        assert sorted(np.concatenate(seen[3 * of_pass : 3 * of_pass + 3])) == instances.tolist()
    assert not np.array_equal(seen[0], seen[3])
    in_order = Passes(instances, 4)
    assert in_order.instances(in_order.positions(0)).tolist() == [1, 3, 5, 7]
    assert np.array_equal(orders(5, 10)(1), orders(5, 10)(1)) and not np.array_equal(orders(6, 10)(1), orders(5, 10)(1))


def test_grey_images_become_three_equal_channels():
    image = InColour(Digits("train")).image(3)
    assert image.shape == (8, 8, 3) and (image == Digits("train").image(3)[:, :, None]).all()
