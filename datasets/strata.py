"""Parts of labelled images by keys: of each label its share, or so many.

    turn of an image    its place among the images of its label, by a hash of (key, image): 0, 1, 2, ...
    part                the images whose turn is below the count that the label gives

A part depends on labels, numbers and the key alone, neither on a run nor on the order of the images. With one key a smaller part
lies inside every larger one.
"""

import numpy as np

from datasets.keyed import keyed


def share_of_each(labels_M: np.ndarray, ids_M: np.ndarray, share: float, key: int, least: int = 0) -> np.ndarray:
    """bool [M]: of each label round(share x its images), at least `least` of them, and never the last one of all.

    labels_M   integers of any value     ids_M   what an image is known by
    A label with one image alone gives none, unless `least` asks for it.
    """
    count_M = _counts(labels_M)
    wanted_M = np.maximum(np.minimum(np.floor(share * count_M + 0.5).astype(np.int64), count_M - 1), least)
    return _turns(labels_M, ids_M, key) < wanted_M


def so_many_of_each(labels_M: np.ndarray, ids_M: np.ndarray, count: int, key: int) -> np.ndarray:
    """bool [M]: `count` images of each label, all of them where it has fewer."""
    return _turns(labels_M, ids_M, key) < count


def _turns(labels_M: np.ndarray, ids_M: np.ndarray, key: int) -> np.ndarray:
    """int64 [M]."""
    by_label = np.lexsort((ids_M, keyed(key, ids_M), labels_M))
    sorted_M = labels_M[by_label]
    firsts = np.flatnonzero(np.r_[True, sorted_M[1:] != sorted_M[:-1]][: len(sorted_M)])
    turns_M = np.empty(len(labels_M), np.int64)
    turns_M[by_label] = np.arange(len(labels_M)) - np.repeat(firsts, np.diff(np.r_[firsts, len(labels_M)]))
    return turns_M


def _counts(labels_M: np.ndarray) -> np.ndarray:
    """int64 [M]: how many images have the label of image i."""
    _, place_M, count_C = np.unique(labels_M, return_inverse=True, return_counts=True)
    return count_C[place_M]
