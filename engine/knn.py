"""Weighted k-nearest-neighbour classification with FAISS; the only module that imports faiss.

Each of a query's k nearest gallery features (cosine) votes for its label with weight exp(similarity / temperature); the
label with the largest sum wins, ties going to the label of the nearer neighbour. The search is exact.
"""

import faiss
import numpy as np


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
    # Measured from the nearest neighbour, so that no temperature can overflow.
    weight_Qk = np.exp((similarity_Qk - similarity_Qk[:, :1]).astype(np.float64) / temperature)
    votes_Qk = (weight_Qk[:, None, :] * (labels_Qk[:, :, None] == labels_Qk[:, None, :])).sum(axis=2)
    return labels_Qk[np.arange(len(labels_Qk)), votes_Qk.argmax(axis=1)]
