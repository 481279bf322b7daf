"""Weighted k-nearest-neighbour classification with FAISS; the only module that imports faiss.

Each of a query's k nearest gallery features (cosine) votes for its label with weight exp(similarity / temperature); the
label with the largest sum wins, ties going to the label of the nearer neighbour. The search is exact. Votes are compared in slices
of what limits.py says, whatever k is.
"""

import faiss
import numpy as np

from engine.evaluation.limits import PAIR_BYTES, QUERIES_AT_ONCE, VOTE_BYTES


def neighbours(gallery_MD: np.ndarray, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of unit-length float32 features: (similarity float32 [Q, k] descending, index int64 [Q, k])."""
    index = faiss.IndexFlatIP(gallery_MD.shape[1])
    index.add(np.ascontiguousarray(gallery_MD))
    similarity_Qk, index_Qk = index.search(np.ascontiguousarray(queries_QD), min(k, len(gallery_MD)))
    return similarity_Qk, index_Qk


def vote(similarity_Qk: np.ndarray, labels_Qk: np.ndarray, temperature: float) -> np.ndarray:
    """The winning label of each query, int64 [Q].

    >>> vote(np.array([[0.9, 0.8, 0.8]]), np.array([[7, 3, 3]]), temperature=1.0)
    array([3])
    """
    winners = np.empty(len(labels_Qk), dtype=np.int64)
    k = labels_Qk.shape[1]
    at_once = min(QUERIES_AT_ONCE, max(1, VOTE_BYTES // (PAIR_BYTES * max(1, k * k))))
    for start in range(0, len(labels_Qk), at_once):
        part = slice(start, start + at_once)
        similarity, labels = similarity_Qk[part].astype(np.float64), labels_Qk[part]
        # Measured from the nearest neighbour, so that no temperature can overflow.
        weight = np.exp((similarity - similarity[:, :1]) / temperature)
        if at_once == 1:
            winners[start] = _winner(weight[0], labels[0])
            continue
        votes = (weight[:, None, :] * (labels[:, :, None] == labels[:, None, :])).sum(axis=2)
        winners[part] = labels[np.arange(len(labels)), votes.argmax(axis=1)]
    return winners


def _winner(weight_k: np.ndarray, labels_k: np.ndarray) -> int:
    """The same for one query with many neighbours: a sum for each label instead of each neighbour, added up in the same order."""
    _, first = np.unique(labels_k, return_index=True)
    first.sort()  # the nearest neighbour of each label, nearest first
    votes = np.empty(len(first))
    at_once = max(1, VOTE_BYTES // (PAIR_BYTES * len(labels_k)))
    for start in range(0, len(first), at_once):
        part = slice(start, start + at_once)
        votes[part] = (weight_k * (labels_k[first[part], None] == labels_k)).sum(axis=1)
    return int(labels_k[first[votes.argmax()]])
