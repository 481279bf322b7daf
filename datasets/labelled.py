"""Labelled images in two parts: those that a classifier is trained on, and those that it is tested on.

Tested is what training never saw, where the source has such a part: the val split of a folder or of zips, the test set of digits and of
Fashion-MNIST, the faces of the held-out families of glyphs, other synthetic images. Elsewhere a share of each label is set aside by a key
(strata.py). The network's training then saw these images, without their labels; the words say so.

Classes are the labels with enough images in the first part, ascending, numbered 0, 1, ... Of the tested images those of other
labels are left out, and counted in the words. Letters that look alike but are different characters are different classes here: nobody can
tell them apart, and nothing is merged.

A classifier that was trained before brings its classes, by their names where labels have names. It also brings the names of the images that
it was trained on, where the tested ones are a share: the share may be another today, and such images are not tested.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.catalog import FASHION_MNIST_ROOT
from datasets.fair_sample import fair_sample
from datasets.source import Source
from datasets.strata import share_of_each
from datasets.synthetic import MOST_IMAGES, Synthetic

# Fixed, so that every probe is asked the same questions: figures of two runs compare whatever their seeds.
_TEST_KEY = 20205
_SYNTHETIC_TESTED = 2000


class Classes(NamedTuple):
    """
    labels_C   int64, the label of each class as its source had it
    names_C    what the source called them; None: its labels are numbers that mean the same everywhere, as digits and characters do
    trained_M  int64, ascending: `name_hashes` of the images that were trained on; None: nothing is known of them
    """

    labels_C: np.ndarray
    names_C: list[str] | None
    trained_M: np.ndarray | None

    def labels_in(self, source: Source) -> np.ndarray:
        """int64 [C], the label of each class as `source` has it; below -1 where it has none of this name."""
        if self.names_C is None:
            return self.labels_C
        number_of = {name: number for number, name in enumerate(_label_names(source) or [])}
        return np.array([number_of.get(name, -2 - place) for place, name in enumerate(self.names_C)], dtype=np.int64)


@dataclass(frozen=True)
class Part:
    """M images of a source. instances_M: int64, ascending. classes_M: int64, the number of each image's class."""

    source: Source
    instances_M: np.ndarray
    classes_M: np.ndarray

    def __len__(self) -> int:
        return len(self.instances_M)


@dataclass(frozen=True)
class Parts:
    """
    labels_C     int64, the label of each class as the source has it
    trained_on   which images are trained on, in words
    tested_on    which are tested
    """

    train: Part
    test: Part
    labels_C: np.ndarray
    trained_on: str
    tested_on: str

    @property
    def words(self) -> str:
        """On one line."""
        return f"trained on {self.trained_on}, tested on {self.tested_on}"

    def classes(self) -> Classes:
        """As a classifier that was trained on `train` is to keep them. It takes the name of each image, some seconds a million."""
        source, names = self.train.source, _label_names(self.train.source)
        names_C = None if names is None else [names[label] for label in self.labels_C]
        return Classes(self.labels_C, names_C, np.sort(name_hashes(source, self.train.instances_M)))

    def example(self, label: int) -> str:
        """What the first image of a class that is tested is called; `label` is the number of the class."""
        return self.test.source.instance_name(int(self.test.instances_M[np.argmax(self.test.classes_M == label)]))


def labelled_parts(
    source: Source,
    tested: Source | None,
    *,
    least_images: int,
    limit: int | None,
    test_share: float,
    classes: Classes | None = None,
) -> Parts:
    """
    tested         the images that are tested, with labels as `source` numbers them; None: a share of `source`'s own
    least_images   a label with fewer images to train on is no class
    limit          most images to train on; of more a fair sample by label is taken; None: all
    classes        of a classifier that was trained before; then no label is left out for its number of images
    Raises ValueError where there are no labels, fewer than two classes, or nothing to test.
    """
    labels_N = _labels_of(source)
    trained = np.flatnonzero(labels_N >= 0)
    if tested is None:
        trained, asked, whose = _share(source, trained, labels_N, test_share, classes and classes.trained_M)
        tested, tested_labels_N = source, labels_N
    else:
        tested_labels_N = _labels_of(tested)
        asked = np.flatnonzero(tested_labels_N >= 0)
        whose = f"others of {tested.name} that training did not see"
    if classes is None:
        labels, counts = np.unique(labels_N[trained], return_counts=True)
        labels_C = labels[counts >= least_images]
    else:
        labels_C = classes.labels_in(tested)
    if len(labels_C) < 2:
        raise ValueError(
            f"{len(labels_C)} labels of {source.name} have {least_images} images or more to train on, and a classifier needs two; "
            "lower linear.least_images, or label more images"
        )
    trained = trained[np.isin(labels_N[trained], labels_C)]
    if limit is not None:
        trained = trained[fair_sample(labels_N[trained], trained, limit)]
    known = asked[np.isin(tested_labels_N[asked], labels_C)]
    if not len(known):
        raise ValueError(
            f"none of the {len(asked)} labelled images of {tested.name} that would be tested has a label that is trained on; "
            "give both parts the same labels, or lower linear.least_images"
        )
    lacking = f" ({len(asked) - len(known)} of other labels left out)" if len(known) < len(asked) else ""
    return Parts(
        Part(source, trained, _numbers(labels_N[trained], labels_C)),
        Part(tested, known, _numbers(tested_labels_N[known], labels_C)),
        labels_C,
        trained_on=f"{len(trained)} images of {source.name}",
        tested_on=f"{len(known)} {whose}{lacking}; {len(labels_C)} classes",
    )


def _share(
    source: Source, trained: np.ndarray, labels_N: np.ndarray, test_share: float, seen_M: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, str]:
    """(instances that are trained on, instances that are tested, which these are in words), of the labelled ones.

    seen_M: `name_hashes` of images that are not tested
    """
    aside = share_of_each(labels_N[trained], trained, test_share, _TEST_KEY)
    trained, asked = trained[~aside], trained[aside]
    share = f"{test_share:.0%} of each label"
    if seen_M is None:
        return trained, asked, f"others, {share} (training saw both, without labels)"
    is_seen = np.isin(name_hashes(source, asked), seen_M)
    if is_seen.all():
        raise ValueError(
            f"the classifier was trained on all {len(asked):,} images of {source.name} that would be tested, {share}; "
            "raise linear.test_share, or give other images"
        )
    left_out = f" but {is_seen.sum():,} that the classifier was trained on" * bool(is_seen.any())
    return trained, asked[~is_seen], f"images of {source.name}, {share}{left_out}"


def name_hashes(source: Source, instances_M: np.ndarray) -> np.ndarray:
    """int64 [M], 64 bits of a hash of each image's name and, where it is a file, its size, whatever its number is."""
    size_of = getattr(source, "file_bytes", lambda _: 0)
    names = (f"{source.instance_name(instance)} {size_of(instance)}" for instance in instances_M.tolist())
    digests = (hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)


def _numbers(labels_M: np.ndarray, labels_C: np.ndarray) -> np.ndarray:
    """The number of each image's class; all labels are among `labels_C`."""
    order = np.argsort(labels_C)
    return order[np.searchsorted(labels_C, labels_M, sorter=order)]


def _label_names(source: Source) -> list[str] | None:
    """What is behind the labels 0, 1, ...; None where the labels speak for themselves."""
    return getattr(source, "label_names", None)


def other_source(source: Source, *, root: str | None, image_size: int, held_out: Sequence[str]) -> Source | None:
    """The source of the images that are tested; None where `source` has no such part."""
    directory = Path(os.path.expanduser(root)) if root else None
    if source.name == "glyphs":
        return _held_out_glyphs(directory, image_size, held_out)
    if source.name == "digits":
        from datasets.digits import Digits

        return Digits("test")
    if source.name == "fashion_mnist":
        from datasets.fashion_mnist import FashionMnist

        return FashionMnist(directory or FASHION_MNIST_ROOT, "test")
    if source.name == "synthetic":
        return Synthetic(_SYNTHETIC_TESTED, image_size, MOST_IMAGES)
    from datasets.indexed import IndexedImages

    return source.beside() if isinstance(source, IndexedImages) else None


def _held_out_glyphs(fonts: Path | None, image_size: int, held_out: Sequence[str]) -> Source | None:
    """The glyphs of the families that training leaves out, which are labelled alike: by their characters."""
    if not held_out:
        return None
    from datasets.glyphs import Glyphs, families, find_faces

    return Glyphs(fonts, image_size, [family for family in families(find_faces(fonts)) if family not in held_out])


def _labels_of(source: Source) -> np.ndarray:
    labels_N = source.labels()
    if labels_N is None:
        raise ValueError(
            f"{source.name} has no labels, which a linear probe needs; set data.labels, or for synthetic images a lower data.limit"
        )
    return labels_N
