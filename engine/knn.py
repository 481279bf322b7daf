"""Weighted k-nearest-neighbour classification with FAISS; the only module that imports faiss.

Each of a query's k nearest gallery features (cosine) votes for its label with weight exp(similarity / temperature); the
label with the largest sum wins, ties going to the label of the nearer neighbour. The search is exact.
"""

import faiss
import numpy as np

_QUERIES_AT_ONCE = 256  # votes are compared pairwise: k * k numbers a query


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
    for start in range(0, len(labels_Qk), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        similarity, labels = similarity_Qk[part].astype(np.float64), labels_Qk[part]
        # Measured from the nearest neighbour, so that no temperature can overflow.
        weight = np.exp((similarity - similarity[:, :1]) / temperature)
        votes = (weight[:, None, :] * (labels[:, :, None] == labels[:, None, :])).sum(axis=2)
        winners[part] = labels[np.arange(len(labels)), votes.argmax(axis=1)]
    return winners
