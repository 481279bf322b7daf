"""The evaluator of figures that need no labels: two random views of some training images, and the rows of active ones.

    alignment, uniformity, second_view_found      of the features that kNN asks about (engine/evaluation/label_free.py)
    head_rankme, head_alignment, ...              of z, where there is a head that was trained and kNN asks about the backbone
    own_row_found                                 for a method with rows; MoCo's is own_key_found, of its queue (own_rows.py)

It costs three views of each image through the network: decoding, augmentation, one forward pass without gradients. Its stage tells the
seconds. The views are drawn by fixed keys and the network is in evaluation mode, so no state of the run changes.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch

from datasets.batch import ImageSet
from engine.evaluation.evaluate import embed_set, rankme
from engine.evaluation.evaluator import Evaluator
from engine.evaluation.label_free import view_figures
from engine.evaluation.nearest import embedder
from engine.evaluation.own_rows import Found, chosen, found
from engine.methods.method import ActiveVectors
from engine.ranks.ranks import Channel
from engine.trunk.network import Network, embeddings

_WORDS = {
    "alignment": "distance of two views of an image, squared",
    "uniformity": "ln of the mean closeness of different images",
    "second_view_found": "second views found among those of all these images",
    "own_row_found": "rows found by a view of their image",
    "own_key_found": "keys found by a view of their image",
    "head_rankme": "RankMe of the head's features",
}


class ViewEvaluator(Evaluator):
    """
    views      instances and draws -> their views (datasets/drawn_views.py)
    instances  whose two views are compared, int64
    features   that kNN asks about: "backbone" or "head"
    has_head   whether the head was trained; a saved backbone has none
    active     what the method has of active images, None: it keeps no vector of an image
    """

    stage = "label_free"

    def __init__(
        self,
        views: Callable[[np.ndarray, Sequence[int]], ImageSet],
        instances: np.ndarray,
        features: str,
        ranks: Channel,
        *,
        has_head: bool = True,
        active: Callable[[], ActiveVectors | None] = lambda: None,
    ) -> None:
        self.views, self.instances, self.features, self.ranks = views, instances, features, ranks
        self.has_head, self.active = has_head, active
        self._latest: dict[str, float | None] = {}
        self._side = 0  # of the views, in pixels

    def evaluate(
        self, network: Callable[[], torch.nn.Module], stopped: Callable[[], object] = lambda: None
    ) -> dict[str, Any] | None:
        pairs = self._features(network(), self.views(self.instances, (0, 1)), stopped)
        rows, kind = self._own_rows(network(), stopped)
        if not self.ranks.is_first:
            return None
        figures: dict[str, float | None] = {}
        for name, both_XD in pairs.items():
            first_MD, second_MD = both_XD[0::2], both_XD[1::2]
            readable_M = np.isfinite(first_MD).all(axis=1) & np.isfinite(second_MD).all(axis=1)
            first_MD, second_MD = first_MD[readable_M], second_MD[readable_M]
            of_these = view_figures(first_MD, second_MD)
            if name == self.features:
                figures |= of_these
            else:
                head = {"rankme": rankme(first_MD), **of_these}
                figures |= {f"{name}_{figure}": value for figure, value in head.items()}
        among = ""
        if rows:
            figures = {f"own_{kind}_found": rows.share, **figures}
            among = f"; {rows.asked} with an active {kind} look for it among {rows.among}"
        self._latest = figures
        images = f"two random views of {self._side} pixels of each of {int(readable_M.sum())} training images{among}"
        return {**figures, "views": f"{images}; {self.features} features"}

    def text(self, what: str, line: dict[str, Any]) -> str:
        told = [f"{name.replace('_', ' ')} {line[name]:.3f}" for name in _WORDS if isinstance(line.get(name), float)]
        return f"{what}, without labels: {', '.join(told) or 'nothing could be read'}\n  {line['views']}"

    def headline(self) -> dict[str, float | None]:
        return self._latest

    def _features(
        self, network: torch.nn.Module, images: ImageSet, stopped: Callable[[], object]
    ) -> dict[str, np.ndarray]:
        """float32 [M, width] by "backbone" and "head", or without the latter; NaN where an image cannot be decoded."""
        kinds = ("backbone", "head") if self.has_head and self.features == "backbone" else (self.features,)
        widths: list[int] = []

        def both(images_BCHW: torch.Tensor) -> torch.Tensor:
            self._side = images_BCHW.shape[-1]
            parts = embeddings(cast(Network, network), images_BCHW, kinds)
            widths[:] = [part.shape[1] for part in parts]
            return torch.cat(parts, dim=1)

        whole = embed_set(both, images, images.count, self.ranks, stopped)
        if not self.ranks.is_first:
            return {}
        return dict(zip(kinds, np.split(whole, np.cumsum(widths)[:-1], axis=1), strict=True))

    def _own_rows(self, network: torch.nn.Module, stopped: Callable[[], object]) -> tuple[Found | None, str]:
        """(what was found, at rank 0; what an active vector is called), (None, "") where the method has none."""
        active = self.active()
        if active is None:
            return None, ""
        ids_Q = chosen(active, len(self.instances), self.ranks)

        z_QD = np.empty((0, active.vectors_KD.shape[1]), dtype=np.float32)
        if len(ids_Q):
            z_QD = embed_set(embedder(network, "head"), self.views(ids_Q, (1,)), len(ids_Q), self.ranks, stopped)
        if self.ranks.is_first:
            readable_Q = np.isfinite(z_QD).all(axis=1)
            z_QD, ids_Q = z_QD[readable_Q], ids_Q[readable_Q]
        return found(z_QD, ids_Q, active, self.ranks), active.kind
