"""Figures of two views of each of M images, f_i and g_i of unit length, without any label (Wang and Isola, ICML 2020).

    alignment          mean over i of |f_i - g_i|^2; 0 where the views of an image are alike
    uniformity         ln( mean over i != j of exp(-2 |f_i - f_j|^2) ), the mean of that of f and that of g; 0 where the network has
                       collapsed to a point, about -4 where features are spread over the sphere
    second_view_found  share of i whose g_i is nearer to f_i than every other g_j; by chance 1/M

A network may have either of the first two for nothing (a point is aligned, noise is uniform); a good one has both. Images that are equal
are never told apart in the third. Computed in float64, a block of pairs at a time.
"""

from collections.abc import Iterator

import numpy as np

from engine.evaluation.limits import PAIRS_AT_ONCE

_STEEPNESS = 2.0  # t of the paper


def view_figures(first_MD: np.ndarray, second_MD: np.ndarray) -> dict[str, float | None]:
    """alignment, uniformity and second_view_found of features of unit length, [M, D] each; None where there are too few images."""
    f_MD, g_MD = first_MD.astype(np.float64), second_MD.astype(np.float64)
    if len(f_MD) < 2:
        aligned = alignment(f_MD, g_MD) if len(f_MD) else None
        return {"alignment": aligned, "uniformity": None, "second_view_found": None}
    return {
        "alignment": alignment(f_MD, g_MD),
        "uniformity": (uniformity(f_MD) + uniformity(g_MD)) / 2,
        "second_view_found": second_view_found(f_MD, g_MD),
    }


def alignment(f_MD: np.ndarray, g_MD: np.ndarray) -> float:
    """In 0 to 4; lower is better where the uniformity is no worse."""
    return float(np.square(f_MD - g_MD).sum(axis=1).mean())


def uniformity(f_MD: np.ndarray) -> float:
    """In -8 to 0; lower is better where the alignment is no worse."""
    total, count = 0.0, len(f_MD)
    halves_M = np.square(f_MD).sum(axis=1) / 2  # 1/2 each, but where a feature is 0, as those of a dead network are
    for first, near_BM in _blocks(f_MD, f_MD):
        # -|f_i - f_j|^2 / 2. In place: the blocks are large.
        near_BM -= halves_M
        near_BM -= halves_M[first : first + len(near_BM), None]
        np.minimum(near_BM, 0, out=near_BM)
        near_BM *= 2 * _STEEPNESS
        terms_BM = np.exp(near_BM, out=near_BM)
        terms_BM[np.arange(len(terms_BM)), first + np.arange(len(terms_BM))] = 0
        total += float(terms_BM.sum())
    return float(np.log(total / (count * (count - 1))))


def second_view_found(f_MD: np.ndarray, g_MD: np.ndarray) -> float:
    """In 0 to 1. One that is as near as another counts as not found, so a collapsed network finds none."""
    found = 0
    for first, cosine_BM in _blocks(f_MD, g_MD):
        own = np.arange(len(cosine_BM)), first + np.arange(len(cosine_BM))
        own_B = cosine_BM[own]
        cosine_BM[own] = -np.inf
        found += int((own_B > cosine_BM.max(axis=1)).sum())
    return found / len(f_MD)


def _blocks(f_MD: np.ndarray, g_MD: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first, the cosines of f from there on with all of g [B, M]), B so that they fit."""
    at_once = max(1, PAIRS_AT_ONCE // len(g_MD))
    for first in range(0, len(f_MD), at_once):
        yield first, f_MD[first : first + at_once] @ g_MD.T
