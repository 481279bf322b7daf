"""Labelled images in two parts: those that a classifier is trained on, and those that it is tested on.

Tested is what training never saw, where the source has such a part: the val split of a folder or of zips, the test set of digits and of
Fashion-MNIST, the faces of the held-out families of glyphs, other synthetic images. Elsewhere a share of each label is set aside by a key
(strata.py). The network's training then saw these images, without their labels; the words say so.

Classes are the labels with enough images in the first part, ascending, numbered 0, 1, ... Of the tested images those of other
labels are left out, and counted in the words. Letters that look alike but are different characters are different classes here:
nobody can tell them apart, and nothing is merged.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.catalog import FASHION_MNIST_ROOT
from datasets.fair_sample import fair_sample
from datasets.source import Source
from datasets.strata import share_of_each
from datasets.synthetic import MOST_IMAGES, Synthetic

# Fixed, so that every probe is asked the same questions: figures of two runs compare whatever their seeds.
_TEST_KEY = 20205
_SYNTHETIC_TESTED = 2000


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
    labels_C   int64, the label of each class as the source has it
    words      which images are trained on and tested, on one line
    """

    train: Part
    test: Part
    labels_C: np.ndarray
    words: str

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
    labels_C: np.ndarray | None = None,
) -> Parts:
    """
    tested         the images that are tested, with labels as `source` numbers them; None: a share of `source`'s own
    least_images   a label with fewer images to train on is no class
    limit          most images to train on; of more a fair sample by label is taken; None: all
    labels_C       the classes, where they are given; then no label is left out for its number of images
    Raises ValueError where there are no labels, fewer than two classes, or nothing to test.
    """
    labels_N = _labels_of(source)
    trained = np.flatnonzero(labels_N >= 0)
    if tested is None:
        aside = share_of_each(labels_N[trained], trained, test_share, _TEST_KEY)
        trained, asked = trained[~aside], trained[aside]
        tested, tested_labels_N = source, labels_N
        whose = f"others, {test_share:.0%} of each label (training saw both, without labels)"
    else:
        tested_labels_N = _labels_of(tested)
        asked = np.flatnonzero(tested_labels_N >= 0)
        whose = f"others of {tested.name} that training did not see"
    if labels_C is None:
        labels, counts = np.unique(labels_N[trained], return_counts=True)
        labels_C = labels[counts >= least_images]
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
    words = f"trained on {len(trained)} images of {source.name}, tested on {len(known)} {whose}{lacking}; {len(labels_C)} classes"
    return Parts(
        Part(source, trained, np.searchsorted(labels_C, labels_N[trained])),
        Part(tested, known, np.searchsorted(labels_C, tested_labels_N[known])),
        labels_C,
        words,
    )


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
