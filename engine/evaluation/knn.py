"""Weighted k-nearest-neighbour classification with FAISS; the only module that imports faiss.

Each of a query's k nearest gallery features (cosine) votes for its label with weight exp(similarity / temperature); the
label with the largest sum wins, ties going to the label of the nearer neighbour. The search is exact. Queries are searched together as
far as their neighbours fit into what limits.py says, 671,088 with k = 20, and votes are compared in slices: beyond that no memory grows
with the number of queries. FAISS's products depend in the last bit on how many queries are searched together, so few cuts are made.

Where faiss finds a GPU the search runs there, on the first one, as far as FAISS has it (k up to 2,048). Where there is
a GPU the protocol says which of them searched, and why (`searched_on`).
The two add in another order, so a figure may differ where similarities are equal to rounding.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch

from engine.evaluation.limits import (
    GPU_NEIGHBOURS,
    GPU_SCRATCH_BYTES,
    NEIGHBOUR_BYTES,
    PAIR_BYTES,
    QUERIES_AT_ONCE,
    SEARCH_BYTES,
    VOTE_BYTES,
)


class Asked(NamedTuple):
    """How many neighbours vote, and how steeply their weight falls."""

    k: int
    temperature: float


class Share(NamedTuple):
    """Of the queries: whose label has the most votes, or is among the five that have most. top5: None where k is below 5."""

    top1: float
    top5: float | None


def shares(
    gallery_MD: np.ndarray, labels_M: np.ndarray, queries_QD: np.ndarray, truth_Q: np.ndarray, asked: Sequence[Asked]
) -> list[Share]:
    """The share of queries that are right, for each way to ask. Features are of unit length, float32; Q is at least 1.

    The first way is searched by itself, so that its figure does not depend on what else is asked; all others are searched together.
    """
    index = _index(gallery_MD, max(one.k for one in asked))
    right = np.zeros((len(asked), 2), dtype=np.int64)
    for first, ways in ((0, asked[:1]), (1, asked[1:])):
        if not ways:
            continue
        largest = min(max(one.k for one in ways), len(gallery_MD))
        for part in _parts(len(queries_QD), largest):
            similarity_Bk, index_Bk = index.search(np.ascontiguousarray(queries_QD[part]), largest)
            labels_Bk = labels_M[index_Bk]
            for number, one in enumerate(ways, first):
                place_B = places(similarity_Bk[:, : one.k], labels_Bk[:, : one.k], truth_Q[part], one.temperature)
                right[number] += (place_B < 1).sum(), (place_B < 5).sum()
    count = len(queries_QD)
    return [
        Share(float(top1 / count), float(top5 / count) if one.k >= 5 else None)
        for (top1, top5), one in zip(right.tolist(), asked, strict=True)
    ]


def neighbours(gallery_MD: np.ndarray, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of unit-length float32 features: (similarity float32 [Q, k] descending, index int64 [Q, k])."""
    k = min(k, len(gallery_MD))
    similarity_Qk, index_Qk = _index(gallery_MD, k).search(np.ascontiguousarray(queries_QD), k)
    return similarity_Qk, index_Qk


def vote(similarity_Qk: np.ndarray, labels_Qk: np.ndarray, temperature: float) -> np.ndarray:
    """The winning label of each query, int64 [Q].

    >>> vote(np.array([[0.9, 0.8, 0.8]]), np.array([[7, 3, 3]]), temperature=1.0)
    array([3])
    """
    winners = np.empty(len(labels_Qk), dtype=np.int64)
    for part, labels_Bn, votes_Bn in _tallies(similarity_Qk, labels_Qk, temperature):
        winners[part] = labels_Bn[np.arange(len(labels_Bn)), votes_Bn.argmax(axis=1)]
    return winners


def places(similarity_Qk: np.ndarray, labels_Qk: np.ndarray, truth_Q: np.ndarray, temperature: float) -> np.ndarray:
    """How many labels have more votes than the right one, int64 [Q]: 0 where it wins, and k where no neighbour has it.

    >>> places(np.array([[0.9, 0.8, 0.8]]), np.array([[7, 3, 3]]), np.array([7]), temperature=1.0)
    array([1])
    """
    found_Q = np.full(len(labels_Qk), labels_Qk.shape[1], dtype=np.int64)
    for part, labels_Bn, votes_Bn in _tallies(similarity_Qk, labels_Qk, temperature):
        is_right_Bn = labels_Bn == truth_Q[part][:, None]
        there = np.flatnonzero(is_right_Bn.any(axis=1))
        own_B1 = is_right_Bn[there].argmax(axis=1)[:, None]  # its nearest neighbour, which has all of its votes
        votes_Bn = votes_Bn[there]
        of_right_B1 = np.take_along_axis(votes_Bn, own_B1, axis=1)
        is_nearer_Bn = np.arange(votes_Bn.shape[1]) < own_B1
        before_Bn = (votes_Bn > of_right_B1) | ((votes_Bn == of_right_B1) & is_nearer_Bn)
        found_Q[part.start + there] = before_Bn.sum(axis=1)
    return found_Q


def searched_on(k: int) -> str:
    """Where `shares` searches for so many neighbours, for the protocol; empty on a machine without a GPU."""
    if _is_on_gpu(k):
        return ", searched on the GPU"
    if _has_gpu():
        return f", searched on the CPU, since FAISS finds at most {GPU_NEIGHBOURS:,} neighbours on a GPU"
    return ", searched on the CPU, since this faiss finds no GPU (faiss-gpu does)" * torch.cuda.is_available()


def _has_gpu() -> bool:
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def _is_on_gpu(k: int) -> bool:
    return _has_gpu() and k <= GPU_NEIGHBOURS


def _index(gallery_MD: np.ndarray, k: int) -> Any:
    index: Any = faiss.IndexFlatIP(gallery_MD.shape[1])
    if _is_on_gpu(k):
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(GPU_SCRATCH_BYTES)
        index = faiss.index_cpu_to_gpu(resources, 0, index)
    index.add(np.ascontiguousarray(gallery_MD))
    return index


def _parts(count: int, k: int) -> Iterator[slice]:
    """Queries that are searched together."""
    at_once = max(1, SEARCH_BYTES // (NEIGHBOUR_BYTES * k))
    for start in range(0, count, at_once):
        yield slice(start, start + at_once)


def _tallies(
    similarity_Qk: np.ndarray, labels_Qk: np.ndarray, temperature: float
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """For some queries after the others: (which, labels [B, n], their votes [B, n]), labels in the order of their nearest neighbours.

    A label's votes are told once, at its nearest neighbour; elsewhere they are -inf.
    """
    k = labels_Qk.shape[1]
    at_once = min(QUERIES_AT_ONCE, max(1, VOTE_BYTES // (PAIR_BYTES * max(1, k * k))))
    for start in range(0, len(labels_Qk), at_once):
        part = slice(start, start + at_once)
        similarity, labels = similarity_Qk[part].astype(np.float64), labels_Qk[part]
        # Measured from the nearest neighbour, so that no temperature can overflow.
        weight = np.exp((similarity - similarity[:, :1]) / temperature)
        if at_once == 1:
            first_n, votes_n = _tally(weight[0], labels[0])
            yield part, labels[:, first_n], votes_n[None]
            continue
        is_same = labels[:, :, None] == labels[:, None, :]
        is_first = is_same.argmax(axis=2) == np.arange(k)
        votes = (weight[:, None, :] * is_same).sum(axis=2)
        yield part, labels, np.where(is_first, votes, -np.inf)


def _tally(weight_k: np.ndarray, labels_k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for one query with many neighbours: a sum for each label instead of each neighbour, added up in the same order.

    (the nearest neighbour of each label [n], nearest first; the votes of these labels [n])
    """
    _, first = np.unique(labels_k, return_index=True)
    first.sort()
    votes = np.empty(len(first))
    at_once = max(1, VOTE_BYTES // (PAIR_BYTES * len(labels_k)))
    for start in range(0, len(first), at_once):
        part = slice(start, start + at_once)
        votes[part] = (weight_k * (labels_k[first[part], None] == labels_k)).sum(axis=1)
    return first, votes
