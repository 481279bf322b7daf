"""A fair sample of labelled images: as many of each label as equal shares give, drawn by a key of each image.

The first images of a folder that is sorted by class have few of the classes. So a set that is larger than its limit is sampled:

    turn of an image    its place among the images of its label, by key: 0, 1, 2, ...
    sample              the `limit` images of the lowest turns; within the last turn, labels in the order of a key of theirs

So each label gets its share, and what a small one has too few of goes to the others. The key of an image is a hash of its number and
a fixed seed. It depends neither on the run nor on how many images there are. When images are appended to known labels, those of the
sample stay, but for the few that an image with a lower key displaces, and for the last turn. A new label takes a share from all others.

Left out: to sample without an array of all labels. For 1.28 million images it takes half a second of one core, and 50 bytes an image.
"""

import numpy as np

from datasets.keyed import keyed

# Fixed, so that every run is asked the same questions: figures of two runs compare whatever their seeds.
_IMAGE_SEED, _LABEL_SEED = 20203, 20204


def fair_sample(labels_M: np.ndarray, ids_M: np.ndarray, limit: int) -> np.ndarray:
    """Which of M images are in the sample: ascending places in the arrays, int64 [min(M, limit)]. With M <= limit it is all of them.

    labels_M   integers of any value      ids_M   what an image is known by: its instance, or its code point
    """
    count = len(labels_M)
    if count <= limit:
        return np.arange(count)
    by_label = np.lexsort((keyed(_IMAGE_SEED, ids_M), labels_M))
    sorted_M = labels_M[by_label]
    firsts = np.flatnonzero(np.r_[True, sorted_M[1:] != sorted_M[:-1]])
    turns_M = np.arange(count) - np.repeat(firsts, np.diff(np.r_[firsts, count]))
    order = np.lexsort((keyed(_LABEL_SEED, sorted_M), turns_M))
    return np.sort(by_label[order[:limit]])
