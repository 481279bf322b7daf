"""Samples for the report: a few queries with what the features hold to be nearest, and features for the map."""

import numpy as np

from datasets.batch import ImageSet, Probe
from engine.evaluation.evaluate import Evaluation
from engine.evaluation.knn import neighbours
from engine.results.pictures import EmbeddingSample, NeighbourRow

_QUERIES, _NEIGHBOURS, _MAP_POINTS = 12, 8, 1500


def neighbour_rows(probe: Probe, result: Evaluation) -> list[NeighbourRow]:
    """Twelve queries, evenly spread over the first two query sets, each with its eight nearest gallery images."""
    gallery, labels = probe.gallery, probe.gallery.labels_M
    assert labels is not None
    rows = []
    searched = readable(result.gallery_MD)
    shown = probe.queries[:2]
    for query in shown:
        assert query.labels_M is not None
        features_QD = result.queries[query.name]
        for number in spread(readable(features_QD), _QUERIES // len(shown)):
            similarity_1k, places_1k = neighbours(
                result.gallery_MD[searched], features_QD[number : number + 1], _NEIGHBOURS
            )
            index_1k = searched[places_1k]
            found: list[tuple[np.ndarray, str, bool | None, float]] = [
                (picture(gallery, int(i)), gallery.names(int(i)), bool(labels[i] == query.labels_M[number]), float(s))
                for i, s in zip(index_1k[0], similarity_1k[0], strict=True)
            ]
            rows.append(NeighbourRow(picture(query, int(number)), f"{query.names(int(number))} ({query.name})", found))
    return rows


def embedding_sample(probe: Probe | None, sample: ImageSet, result: Evaluation) -> EmbeddingSample:
    """Points for the map: the first query set where there is one, with its labels, else the sample of training images."""
    chosen = probe.queries[0] if probe else sample
    features_MD = result.queries[chosen.name] if probe else result.gallery_MD
    numbers = spread(readable(features_MD), _MAP_POINTS)
    labels = None if chosen.labels_M is None else chosen.labels_M[numbers]
    images = [picture(chosen, int(number)) for number in numbers]
    return EmbeddingSample(features_MD[numbers], labels, images, [chosen.names(int(number)) for number in numbers])


def readable(features_MD: np.ndarray) -> np.ndarray:
    """Numbers of the images that could be decoded, int64."""
    return np.flatnonzero(np.isfinite(features_MD).all(axis=1))


def spread(numbers: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of them, evenly spread."""
    return numbers[np.linspace(0, len(numbers) - 1, min(count, len(numbers))).astype(int)]


def picture(images: ImageSet, number: int) -> np.ndarray:
    """One image as uint8 [H, W] or [H, W, 3]."""
    pixels = images.load(number, number + 1).images[0].movedim(0, 2).numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
