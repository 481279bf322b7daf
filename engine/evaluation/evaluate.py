"""Is it learning? kNN retrieval of a probe's labels, beside chance and raw pixels; RankMe where nothing is labelled.

    knn_top1   share of queries that take the right label, mean over the query sets that are not jittered
    knn_top5   the same where five labels may be named, if k is 5 or more
    raw        the same search on the pixels themselves, each image as one vector of unit length
    rankme     exp(entropy of the normalised singular values) of the features (Garrido et al. 2023): 1 = collapsed to a line,
               D = every direction used alike; needs no labels

Features are read with the backbone in evaluation mode, without gradients; no state of the run changes. Ranks share out the images, in
batches that do not depend on their number, and rank 0 compares.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from datasets.batch import ImageSet, Loaded, Probe
from engine.evaluation.evaluator import Stopped
from engine.evaluation.knn import Asked, Share, searched_on, shares
from engine.evaluation.limits import EVALUATION_BATCH, RAW_SIDE, SPECTRUM_ROWS
from engine.ranks.ranks import Channel

Embed = Callable[[torch.Tensor], torch.Tensor]  # images uint8 [B, C, H, W] -> float32 [B, D] of unit length


@dataclass(frozen=True)
class Protocol:
    """How it is asked: `k` neighbours vote with weight exp(similarity / temperature) over "backbone" or "head" `features`.

    limit, query_limit   the most images of the gallery, and of each query set: the first ones. What sets a run has was sampled before
    more                 other ways to ask, whose figures are told in a grid beside the headline
    """

    k: int
    temperature: float
    features: str
    limit: int
    query_limit: int
    more: tuple[Asked, ...] = ()

    @property
    def asked(self) -> list[Asked]:
        """The headline's way first."""
        return [Asked(self.k, self.temperature), *self.more]

    def __str__(self) -> str:
        vote_text = f"k = {self.k}, vote weight exp(similarity / {self.temperature})"
        vote_text += searched_on(max(one.k for one in self.asked))
        return f"cosine of {self.features} features, {vote_text}; at most {self.limit} gallery images, {self.query_limit} queries a set"


@dataclass
class Evaluation:
    """figures: share right by query set, and their mean as knn_top1. The features are kept for the report's pictures.
    grid: where more was asked, what each way to ask gives, mean over the same query sets, the headline's way first.

    left_out: of each set, bool: its images without finite features; those that could not be decoded have NaN. Figures are over the others,
    and None where there are none.
    """

    figures: dict[str, float | None]
    rankme: float | None
    dim: int
    gallery_MD: np.ndarray
    queries: dict[str, np.ndarray] = field(default_factory=dict)
    grid: list[dict[str, float | None]] = field(default_factory=list)
    left_out: dict[str, np.ndarray] = field(default_factory=dict)


def evaluate(
    embed: Embed,
    gallery: ImageSet,
    queries: list[ImageSet],
    protocol: Protocol,
    ranks: Channel,
    stopped: Callable[[], object] = lambda: None,
) -> Evaluation | None:
    """Embed gallery and queries, and classify every query by its k nearest gallery images. All ranks call it; None at all but rank 0.

    With no queries (nothing is labelled) the figures are empty and RankMe of the gallery is all there is.
    stopped   asked before every batch, by all ranks together. Raises Stopped where it says yes
    """
    gallery_MD = embed_set(embed, gallery, protocol.limit, ranks, stopped)
    queries_QD = [embed_set(embed, query, protocol.query_limit, ranks, stopped) for query in queries]
    if not ranks.is_first:
        return None
    readable_M = np.isfinite(gallery_MD).all(axis=1)
    result = Evaluation({}, rankme(gallery_MD[readable_M]), gallery_MD.shape[1], gallery_MD)
    result.left_out[gallery.name] = ~readable_M
    headline: list[list[Share]] = []
    for query, features_QD in zip(queries, queries_QD, strict=True):
        assert gallery.labels_M is not None and query.labels_M is not None
        readable_Q = np.isfinite(features_QD).all(axis=1)
        result.queries[query.name] = features_QD
        result.left_out[query.name] = ~readable_Q
        if not readable_M.any() or not readable_Q.any():
            result.figures[query.name] = None
            continue
        gallery_labels = gallery.labels_M[: len(gallery_MD)][readable_M]
        truth_Q = query.labels_M[: len(features_QD)][readable_Q]
        by_way = shares(gallery_MD[readable_M], gallery_labels, features_QD[readable_Q], truth_Q, protocol.asked)
        result.figures[query.name] = by_way[0].top1
        if not query.jittered:
            headline.append(by_way)
    if queries:
        means = [_mean([by_way[number] for by_way in headline]) for number in range(len(protocol.asked))]
        result.figures["knn_top1"] = means[0]["top1"]
        if protocol.k >= 5:
            result.figures["knn_top5"] = means[0]["top5"]
        if protocol.more:
            result.grid = [{**one._asdict(), **mean} for one, mean in zip(protocol.asked, means, strict=True)]
    return result


def _mean(of_sets: list[Share]) -> dict[str, float | None]:
    """Over query sets; None where there are none."""
    top1 = [share.top1 for share in of_sets]
    top5 = [share.top5 for share in of_sets if share.top5 is not None]
    return {"top1": float(np.mean(top1)) if top1 else None, "top5": float(np.mean(top5)) if top5 else None}


def embed_set(
    embed: Embed, images: ImageSet, limit: int, ranks: Channel, stopped: Callable[[], object] = lambda: None
) -> np.ndarray:
    """Features of the first `limit` images, float32 [M, D]; empty at all ranks but the first. Each embeds every R-th batch.
    Those of an image that cannot be decoded are NaN.

    Raises Stopped where `stopped` says so; ranks that have no batch left ask with the others.
    """
    count = min(images.count, limit)
    starts = range(0, count, EVALUATION_BATCH)
    mine = []
    for first in range(0, len(starts), ranks.size):
        if stopped():
            raise Stopped
        if first + ranks.rank < len(starts):
            start = starts[first + ranks.rank]
            mine.append(embed_loaded(embed, images.load(start, min(start + EVALUATION_BATCH, count))))
    by_rank = ranks.to_first(mine)
    if not ranks.is_first:
        return np.empty((0, 0), dtype=np.float32)
    return np.concatenate([by_rank[batch % ranks.size][batch // ranks.size] for batch in range(len(starts))])


def embed_loaded(embed: Embed, loaded: Loaded) -> np.ndarray:
    """float32 [B, D]; NaN where an image cannot be decoded."""
    features_BD = embed(loaded.images).numpy()
    features_BD[~loaded.readable_B] = np.nan
    return features_BD


def raw_pixels(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Each image, uint8, as one vector of unit length: the `embed` of the baseline."""
    images_BCHW = images_BCHW.to(torch.float32) / 255
    if images_BCHW.shape[-1] > RAW_SIDE:
        images_BCHW = torch.nn.functional.adaptive_avg_pool2d(images_BCHW, RAW_SIDE)
    return torch.nn.functional.normalize(images_BCHW.flatten(1))


def rankme(features_MD: np.ndarray) -> float | None:
    """exp of the entropy of the singular values' shares; between 1 and min(M, D). None without features."""
    if not len(features_MD):
        return None
    singular = singular_values(features_MD)
    share = singular / max(singular.sum(), np.finfo(np.float64).tiny) + 1e-7  # features that are all 0: one point
    return float(np.exp(-(share * np.log(share)).sum()))


def singular_values(features_MD: np.ndarray) -> np.ndarray:
    """float64 [min(M, D)], ascending: what np.linalg.svd finds in float64, to 1e-8 of the largest.

    They are the roots of the eigenvalues of F^T F, or of F F^T if that is smaller, which takes less time than a decomposition and no
    copy of tall features in float64. What is lost is far below the 1e-7 that RankMe adds to every share.
    """
    count, width = features_MD.shape
    if count < width:
        whole = features_MD.astype(np.float64)
        gram = whole @ whole.T
    else:
        gram = np.zeros((width, width))
        for start in range(0, count, SPECTRUM_ROWS):
            part = features_MD[start : start + SPECTRUM_ROWS].astype(np.float64)
            gram += part.T @ part
    return np.sqrt(np.linalg.eigvalsh(gram).clip(min=0))


def left_out_of(result: Evaluation, sets: Sequence[ImageSet]) -> list[dict[str, Any]]:
    """Of each set that lacks some of its images: how many, of how many, and the names of the first three."""
    lacking = []
    for images in sets:
        is_left_out_M = result.left_out[images.name]
        places = np.flatnonzero(is_left_out_M)
        if len(places) and not images.jittered:
            first = [images.names(int(place)) for place in places[:3]]
            lacking.append({"set": images.name, "left_out": len(places), "of": len(is_left_out_M), "first": first})
    return lacking


def record(
    result: Evaluation,
    probe: Probe | None,
    sets: Sequence[ImageSet],
    raw: dict[str, float | None],
    protocol: Protocol,
) -> dict[str, Any]:
    """One line of evaluations.jsonl, without the step. sets: the gallery and the queries that were asked."""
    grid = {"grid": result.grid} if result.grid else {}
    left_out = left_out_of(result, sets)
    return {
        **grid,
        **({"left_out": left_out} if left_out else {}),
        "figures": result.figures,
        "chance": 1 / probe.classes if probe else None,
        "raw_pixels": raw,
        "protocol": f"{probe.protocol}; {protocol}"
        if probe
        else f"no labels: RankMe of {protocol.features} features only",
        "rankme": result.rankme,
        "rankme_dim": result.dim,
    }
