"""The evaluator of every run: kNN beside raw pixels, or RankMe alone where nothing is labelled (engine/evaluation/evaluate.py)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch

from datasets.batch import ImageSet, Probe
from datasets.shown import few
from engine.evaluation.evaluate import Embed, Evaluation, Protocol, evaluate, raw_pixels, record
from engine.evaluation.evaluator import Evaluator
from engine.evaluation.examples import embedding_sample, neighbour_rows
from engine.ranks.ranks import Channel
from engine.results.pictures import EmbeddingSample, NeighbourRow
from engine.trunk.network import Network, embed


class KnnEvaluator(Evaluator):
    """
    probe     labelled images; None: only RankMe, of `sample`
    sample    of the training images
    protocol  how it is asked
    """

    def __init__(self, probe: Probe | None, sample: ImageSet, protocol: Protocol, ranks: Channel) -> None:
        self.probe, self.sample, self.protocol, self.ranks = probe, sample, protocol, ranks
        self._raw: dict[str, float | None] | None = None  # what pixels alone give, once it was measured
        self._latest: Evaluation | None = None

    def evaluate(
        self, network: Callable[[], torch.nn.Module], stopped: Callable[[], object] = lambda: None
    ) -> dict[str, Any] | None:
        gallery, queries = (self.probe.gallery, self.probe.queries) if self.probe else (self.sample, [])
        if self._raw is None:
            pixels = None
            if self.probe:
                once = replace(self.protocol, more=())
                pixels = evaluate(raw_pixels, gallery, queries, once, self.ranks, stopped)
            self._raw = pixels.figures if pixels else {}
        features = embedder(network(), self.protocol.features)
        result = evaluate(features, gallery, queries, self.protocol, self.ranks, stopped)
        if not result:
            return None
        self._latest = result
        return record(result, self.probe, [gallery, *queries], self._raw, self.protocol)

    def text(self, what: str, line: dict[str, Any]) -> str:
        return describe(what, line)

    def headline(self) -> dict[str, float | None]:
        latest = self._latest
        return {
            "knn_top1": latest.figures.get("knn_top1") if latest else None,
            **({"knn_top5": latest.figures["knn_top5"]} if latest and "knn_top5" in latest.figures else {}),
            "rankme": latest.rankme if latest else None,
        }

    @property
    def bytes(self) -> int:
        latest = self._latest
        return latest.gallery_MD.nbytes + sum(one.nbytes for one in latest.queries.values()) if latest else 0

    def neighbours(self) -> list[NeighbourRow]:
        return neighbour_rows(self.probe, self._latest) if self.probe and self._latest else []

    def embeddings(self) -> EmbeddingSample | None:
        return embedding_sample(self.probe, self.sample, self._latest) if self._latest else None


def embedder(network: torch.nn.Module, features: str) -> Embed:
    """images -> unit-length features of the network."""
    return lambda images: embed(cast(Network, network), images, features)


def describe(what: str, line: dict[str, Any]) -> str:
    """An evaluation for people: every figure beside raw pixels and chance, and the protocol it was made by."""
    if not line["figures"]:
        return "\n".join([f"{what}:{_rankme_text(line)[1:]}", *_left_out_text(line)])
    lines = [f"{what}: kNN, right answers (raw pixels; chance {line['chance']:.2%})"]
    for name, share in line["figures"].items():
        pixels = line["raw_pixels"].get(name)
        lines.append(f"  {name:40} {_text(share, '6.1%')}  ({_text(pixels, '.1%')})")
    for one in line.get("grid", []):
        five = f", {_text(one['top5'], '.1%')} among five" if one["top5"] is not None else ""
        lines.append(f"  k = {one['k']}, temperature {one['temperature']:g}: {_text(one['top1'], '.1%')}{five}")
    return "\n".join([*lines, f"  {line['protocol']}", *_left_out_text(line), _rankme_text(line)])


def _left_out_text(line: dict[str, Any]) -> list[str]:
    return [
        f"  {one['left_out']:,} of {one['of']:,} images of {one['set']} are left out, since they could not be decoded or have no finite "
        f"features: {few(one['first'], one['left_out'])}"
        for one in line.get("left_out", [])
    ]


def _rankme_text(line: dict[str, Any]) -> str:
    return f"  RankMe {_text(line['rankme'], '.1f')} of {line['rankme_dim']}"


def _text(figure: float | None, format: str) -> str:
    """A figure, or that there is none: nothing could be read of what it is about."""
    return "none" if figure is None else f"{figure:{format}}"
