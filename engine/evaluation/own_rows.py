"""Do views find the row of their own image among the active ones? For a method that keeps a vector of an image (engine/methods/method.py).

    found   share of the images asked about whose own vector is nearer to z, by cosine, than that of every other image,
            z = the head's feature of a view that training did not see

Those asked about are of the images whose vectors are active, those of the smallest keyed hashes: the same images whatever the number of
ranks is, and as far as they are still active the same at the next evaluation. Each rank compares with the vectors that it has, some rows at
a time, in float64; what travels is z and two numbers a view. A vector that is exactly as near as another is not found, so a collapsed
network finds nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from engine.evaluation.limits import PAIRS_AT_ONCE
from engine.methods.method import ActiveVectors
from engine.ranks.ranks import Channel
from engine.rows.initial_rows import philox4x32

_SEED = 20204  # of which images are asked about


def chosen(active: ActiveVectors, count: int, ranks: Channel) -> np.ndarray:
    """At most `count` images to be asked about, int64 ascending, the same on every rank. All ranks call it together."""
    parts = ranks.to_first(_lowest(active.ids_K[active.ids_K >= 0], count))
    return ranks.from_first(np.sort(_lowest(np.concatenate(parts), count)) if parts else None)


def _lowest(ids: np.ndarray, count: int) -> np.ndarray:
    ids = np.unique(ids)
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    numbers, zeros = ids.astype(np.uint64), np.zeros(len(ids), dtype=np.uint64)
    first, second, *_ = philox4x32((zeros, zeros, numbers & low, numbers >> high), (_SEED, 0))
    return ids[np.argsort((first << high) | second, kind="stable")[:count]]


@dataclass(frozen=True)
class Found:
    """share: of the images asked about, None where there were none.   asked: how many.   among: active vectors of all ranks."""

    share: float | None
    asked: int
    among: int


def found(z_QD: np.ndarray, ids_Q: np.ndarray, active: ActiveVectors, ranks: Channel) -> Found | None:
    """z of images ids_Q against the active vectors of all ranks; both are looked at on rank 0. All call it; None at all but rank 0."""
    z_QD, ids_Q = ranks.from_first((z_QD, ids_Q))
    among = len(active.ids_K) if active.there_K is None else int(active.there_K.sum())
    parts = ranks.to_first((*nearest(z_QD, ids_Q, active), among))
    if not parts:
        return None
    own_Q = np.max([own for own, _, _ in parts], axis=0)
    other_Q = np.max([other for _, other, _ in parts], axis=0)
    share = float((own_Q > other_Q).mean()) if len(ids_Q) else None
    return Found(share, len(ids_Q), sum(count for _, _, count in parts))


@torch.no_grad()
def nearest(z_QD: np.ndarray, ids_Q: np.ndarray, active: ActiveVectors) -> tuple[np.ndarray, np.ndarray]:
    """(cosine with the nearest own vector, with the nearest other one), float64 [Q] each, -inf where this rank has none."""
    vectors_KD = active.vectors_KD
    device = vectors_KD.device
    z = torch.from_numpy(z_QD).to(device, torch.float64)
    ids = torch.from_numpy(ids_Q).to(device)
    own_Q, other_Q = (torch.full((len(ids),), -torch.inf, dtype=torch.float64, device=device) for _ in range(2))
    at_once = max(1, PAIRS_AT_ONCE // max(1, len(ids)))
    for start in range(0, len(vectors_KD) if len(ids) else 0, at_once):
        part = slice(start, start + at_once)
        cosine_QC = z @ normalize(vectors_KD[part].double(), eps=1e-300).T  # rows may be very short
        is_own_QC = ids[:, None] == torch.from_numpy(active.ids_K[part]).to(device)
        is_other_QC = ~is_own_QC if active.there_K is None else ~is_own_QC & active.there_K[part]
        for best_Q, counts_QC in ((own_Q, is_own_QC), (other_Q, is_other_QC)):
            torch.maximum(best_Q, cosine_QC.masked_fill(~counts_QC, -torch.inf).amax(1), out=best_Q)
    return own_Q.cpu().numpy(), other_Q.cpu().numpy()
