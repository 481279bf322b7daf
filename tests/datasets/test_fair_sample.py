"""The sample of labelled images: equal shares, a function of numbers and labels alone, and stable when images are appended."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datasets.fair_sample import fair_sample

LABELS = st.lists(st.integers(-3, 9), max_size=80).map(lambda labels: np.array(labels, np.int64))


@given(LABELS, st.integers(1, 90))
def test_each_label_gets_an_equal_share_and_what_a_small_one_lacks_goes_to_the_others(
    labels: np.ndarray, limit: int
) -> None:
    drawn = fair_sample(labels, 7 + np.arange(len(labels)), limit)
    assert len(drawn) == min(limit, len(labels))
    assert (np.diff(drawn) > 0).all()
    there = {label: int((labels == label).sum()) for label in set(labels.tolist())}
    taken = {label: int((labels[drawn] == label).sum()) for label in there}
    for label, count in taken.items():
        if count < there[label]:
            assert max(taken.values()) <= count + 1


@given(LABELS, st.integers(1, 90), st.randoms())
def test_which_images_are_drawn_does_not_depend_on_their_order(labels: np.ndarray, limit: int, random) -> None:
    ids = 100 + 3 * np.arange(len(labels))
    order = np.array(random.sample(range(len(labels)), len(labels)), np.int64)
    drawn = ids[fair_sample(labels, ids, limit)]
    np.testing.assert_array_equal(np.sort(ids[order][fair_sample(labels[order], ids[order], limit)]), drawn)


@given(st.integers(1, 9), st.integers(0, 400), st.integers(1, 40))
def test_of_images_that_are_appended_none_brings_an_older_one_into_the_sample(
    classes: int, appended: int, share: int
) -> None:
    labels = np.arange(60 * classes + appended) % classes
    old = 60 * classes
    before = set(fair_sample(labels[:old], np.arange(old), share * classes).tolist())
    after = set(fair_sample(labels, np.arange(len(labels)), share * classes).tolist())
    assert {one for one in after if one < old} <= before
    assert len(before - after) == len({one for one in after if one >= old})


def test_a_sorted_set_is_not_cut_at_its_first_labels() -> None:
    labels = np.repeat(np.arange(1000), 50)
    drawn = fair_sample(labels, np.arange(50_000), 10_000)
    np.testing.assert_array_equal(np.bincount(labels[drawn]), np.full(1000, 10))
    # Nor at the first images of each label: a fifth is drawn, and of the first ten of a label as many as of its others.
    assert 1800 < np.count_nonzero(drawn % 50 < 10) < 2200


def test_with_fewer_images_than_labels_large_labels_are_not_preferred() -> None:
    labels = np.repeat(np.arange(200), np.where(np.arange(200) < 100, 1, 50))
    drawn = fair_sample(labels, np.arange(len(labels)), 100)
    assert len(set(labels[drawn].tolist())) == 100
    assert 30 < np.count_nonzero(labels[drawn] < 100) < 70
