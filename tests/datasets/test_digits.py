import importlib.util

import numpy as np
import pytest

from datasets import digits
from datasets.digits import Digits
from datasets.source import Source


def test_train_and_test_together_are_the_whole_set() -> None:
    whole = Digits()
    sources: list[Source] = [whole, Digits("train"), Digits("test")]
    assert [len(source) for source in sources] == [1797, 1437, 360]
    train, test = Digits("train"), Digits("test")
    for instance in (0, 1436):
        assert np.array_equal(train.image(instance), whole.image(instance))
    assert np.array_equal(test.image(0), whole.image(1437))
    assert np.array_equal(np.concatenate([train.labels(), test.labels()]), whole.labels())
    assert len({source.fingerprint() for source in sources}) == 3


def test_the_training_digits_are_the_first_of_all() -> None:
    assert Digits("all").fingerprint(1437) == Digits("train").fingerprint() == Digits("train").fingerprint(1437)
    assert Digits("all").fingerprint(1436) != Digits("train").fingerprint()


def test_values_span_the_whole_range_of_a_byte() -> None:
    source = Digits()
    images = np.stack([source.image(i) for i in range(len(source))])
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.uint8
    # 17 grey levels, from 0 to 16.
    assert len(np.unique(images)) == 17
    assert images.max() == 255
    assert np.bincount(source.labels()).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_an_image_belongs_to_the_caller() -> None:
    source = Digits()
    before = source.image(5)
    source.image(5)[:] = 7
    assert np.array_equal(source.image(5), before)


def test_images_and_labels_are_those_that_scikit_learn_loads() -> None:
    from sklearn.datasets import load_digits

    theirs, ours = load_digits(), Digits()
    images = np.stack([ours.image(i) for i in range(len(ours))])
    assert np.array_equal(images, np.rint(theirs.images * (255 / 16)))
    assert np.array_equal(ours.labels(), theirs.target)


def test_without_scikit_learn_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    digits._table.cache_clear()
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the digits are scikit-learn's, which is not installed; pip install"):
        Digits()
    monkeypatch.setattr(digits, "find_spec", importlib.util.find_spec)
    assert len(Digits()) == 1797
