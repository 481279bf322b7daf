"""What an evaluation takes of the host, on the rank that compares (engine/evaluation/evaluate.py).

The features of gallery and queries are made batch by batch, of the pixels first where that was not done yet, then of the network. Then

    singular values    of the gallery: what is readable of it; a part of it in float64, and matrices of its smaller side
    index              a query set after the other: what is readable of both, the gallery once more in faiss's index; neighbours, votes

Not all of it is there at the same time: the largest stage counts, told as the index and as what another stage takes beyond it. Features of
the evaluation before are kept until the next is whole. What the network takes for a batch of images is told apart (activations.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.evaluation.limits import (
    GPU_SCRATCH_BYTES,
    NEIGHBOUR_BYTES,
    PAIR_BYTES,
    PAIRS_AT_ONCE,
    QUERIES_AT_ONCE,
    RAW_SIDE,
    SEARCH_BYTES,
    SPECTRUM_ROWS,
    VOTE_BYTES,
)
from engine.planning import components as names
from engine.planning.components import DEVICE, EVALUATION, HOST, PHASES, Component, passing
from engine.planning.rows import FLOAT_BYTES


@dataclass(frozen=True)
class EvaluationSizes:
    """
    gallery    images that are searched       queries    images of each set that asks; none: RankMe alone
    width      of the features                k          neighbours that vote, the most of them that is asked
    channels, side   of the images, pixels    repeated   whether there is one before the last
    views      images of which two random views are compared, and as many others that look for their rows
    both       width of the features that are compared, of backbone and head together
    on_gpu     the run is on a GPU, where faiss searches if it can
    """

    gallery: int
    queries: Sequence[int]
    width: int
    k: int
    channels: int
    side: int
    repeated: bool
    views: int = 0
    both: int = 0
    on_gpu: bool = False


def evaluation_components(sizes: EvaluationSizes) -> list[Component]:
    """Memory of rank 0. On a GPU faiss has its index there as well, the larger of those of pixels and features, if it can."""
    images = sizes.gallery + sum(sizes.queries)
    kept = images * sizes.width * FLOAT_BYTES
    # What is made batch by batch is joined at its end: the largest set is there twice.
    joined = max([sizes.gallery, *sizes.queries]) * sizes.width * FLOAT_BYTES
    search = _search_bytes(sizes, sizes.width)
    raw = sizes.channels * min(sizes.side, RAW_SIDE) ** 2
    # Before the network's features are there.
    pixels = images * raw * FLOAT_BYTES + max(_spectrum_bytes(sizes.gallery, raw), _search_bytes(sizes, raw)) - kept
    spectrum = _spectrum_bytes(sizes.gallery, sizes.width)
    others = max(joined, spectrum, pixels if sizes.queries else 0, _views_bytes(sizes))
    only = (EVALUATION,)
    found = [
        passing(HOST, names.FEATURES, kept, PHASES if sizes.repeated else only, joined),
        passing(HOST, names.INDEX, search, only, sizes.gallery * sizes.width * FLOAT_BYTES),
        passing(HOST, names.OTHER_STAGES, max(0, others - search), only, sizes.gallery * sizes.width * 8),
    ]
    if sizes.on_gpu and sizes.queries:
        index = sizes.gallery * max(sizes.width, raw) * FLOAT_BYTES + GPU_SCRATCH_BYTES
        found.append(passing(DEVICE, names.INDEX, index, only))
    if sizes.repeated:
        found.append(passing(HOST, names.FEATURES_BEFORE, kept, only, joined))
    return found


def _spectrum_bytes(gallery: int, width: int) -> int:
    """A copy of the gallery, some of it in float64 (all of it where it is wide), and three square matrices of the smaller side."""
    in_float64 = min(gallery, SPECTRUM_ROWS) if gallery >= width else gallery
    return gallery * width * FLOAT_BYTES + 8 * (in_float64 * width + 3 * min(gallery, width) ** 2)


def _views_bytes(sizes: EvaluationSizes) -> int:
    """The features of both views while they are joined, and in float64; pairs of them, or of views and rows, at a time."""
    pairs = min(PAIRS_AT_ONCE, sizes.views**2) if sizes.views else 0
    return 2 * sizes.views * sizes.both * (2 * FLOAT_BYTES + 8) + 3 * 8 * pairs


def _search_bytes(sizes: EvaluationSizes, width: int) -> int:
    """faiss's index, what is readable of gallery and queries, similarity, index and label of each neighbour, and the votes."""
    if not sizes.queries:
        return 0
    largest, k = max(sizes.queries), min(sizes.k, sizes.gallery)
    rows = (2 * sizes.gallery + largest) * width * FLOAT_BYTES
    votes = min(VOTE_BYTES, min(QUERIES_AT_ONCE, largest) * k * k * PAIR_BYTES)
    searched = min(largest, max(1, SEARCH_BYTES // (NEIGHBOUR_BYTES * k)))
    return rows + searched * k * NEIGHBOUR_BYTES + votes
