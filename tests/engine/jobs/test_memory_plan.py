"""What the loader and the evaluation hold is in the plan: by the numbers that they go by, and no less than what was measured."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from configs import schema
from datasets.batch import ImageSet, ImagesUnavailable, Probe, UnreadableImage
from datasets.loader import batches_held
from datasets.schedule import Schedule
from engine.evaluation import knn
from engine.evaluation.evaluate import Protocol, evaluate
from engine.jobs import memory_plan, parts, sizes
from engine.ranks.ranks import Channel
from tests.conftest import TINY


@dataclass
class Images:
    """N of sizes that differ, of which some cannot be decoded."""

    shapes: list[tuple[int, ...]]
    channels: int = 3
    count: int = 100
    error: dict[int, Exception] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

    def image(self, instance: int) -> np.ndarray:
        self.asked.append(instance)
        if instance in self.error:
            raise self.error[instance]
        return np.zeros(self.shapes[instance % len(self.shapes)], np.uint8)


def config(**sections: dict[str, Any]) -> schema.Config:
    tree = {**TINY, "output": "nowhere"}
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}  # type: ignore[dict-item]
    return schema.Config.model_validate_json(json.dumps(tree))


PHOTOS = {"source": "folder", "root": "/photos", "augment": {"kind": "photos", "crops": [{"size": 32}]}}
SCHEDULE = Schedule(seed=0, size=2000, window=640, stride=320, batch=64, block=16, lanes=4)


def probe(gallery: int, *queries: int) -> Probe:
    """What asks so many images, none of which is looked at."""

    def images(name: str, count: int) -> ImageSet:
        return ImageSet(name, count, lambda start, stop: torch.empty(0))

    return Probe(images("gallery", gallery), [images("queries", count) for count in queries], "", 10)


def host(
    config: schema.Config, source: object, ranks: int = 1, probe: Probe | None = None, **options: bool
) -> dict[str, int]:
    return sizes.planned_bytes(
        config,
        SCHEDULE,
        source,
        parts.network_of(config),
        [32],
        ranks,
        probe,
        **options,  # type: ignore[arg-type]
    )["host"]


def grey(count: int = 100) -> Images:
    return Images([(20, 30)], 1, count)


def test_images_that_are_kept_are_planned_to_the_byte_where_all_are_alike() -> None:
    plan = host(config(data={"cache": True}), grey())
    assert plan["decoded images that are kept"] == 100 * (20 * 30 + 250)
    assert host(config(data={"cache": True}), grey(), ranks=4)["decoded images that are kept"] == 25 * (20 * 30 + 250)
    assert not [item for item in host(config(), grey()) if "kept" in item]


def test_images_of_a_folder_that_are_kept_are_estimated_and_it_is_said() -> None:
    source = Images([(30, 40, 3), (10, 20, 3)], error={0: UnreadableImage("a.jpg", "truncated")})
    plan = host(config(data={**PHOTOS, "cache": True}), source)
    asked = [source.shapes[instance % 2] for instance in source.asked if instance]
    mean = sum(height * width * 3 for height, width, _ in asked) / len(asked)
    assert plan[f"decoded images that are kept (estimated from {len(asked)} of them)"] == round(100 * (mean + 250))
    assert len(source.asked) == 8


def test_a_folder_of_which_nothing_can_be_read_has_no_estimate_and_a_disk_that_is_gone_is_no_image() -> None:
    unreadable = {instance: UnreadableImage("a.jpg", "truncated") for instance in range(100)}
    plan = host(config(data={**PHOTOS, "cache": True}), Images([(1, 1, 3)], error=unreadable))  # type: ignore[arg-type]
    assert [item for item in plan if "unknown" in item]
    gone = {instance: ImagesUnavailable("a.jpg", "Stale file handle") for instance in range(100)}
    with pytest.raises(ImagesUnavailable):
        host(config(data=PHOTOS), Images([(1, 1, 3)], error=gone))  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_each_worker_holds_one_photo_or_one_batch_of_grey_images(workers: int) -> None:
    processes = max(1, workers)
    photos = host(config(data={**PHOTOS, "workers": workers}), Images([(3000, 4000, 3)]))
    assert photos["images while they are decoded (estimated from 8 of them)"] == processes * 36_000_000 * 6
    assert host(config(data={"workers": workers}), grey())["images while they are decoded"] == processes * 64 * 600 * 6
    two = host(config(data={"workers": workers}), grey(), ranks=2)
    assert two["images while they are decoded"] == processes * 32 * 600 * 6


@pytest.mark.parametrize(("workers", "pinned", "held"), [(0, False, 1), (0, True, 1), (3, False, 7), (3, True, 9)])
def test_batches_that_are_ready_are_those_that_the_loader_holds(workers: int, pinned: bool, held: int) -> None:
    plan = host(config(data={"workers": workers}), grey(), pinned=pinned)
    assert plan["batches ready"] == held * 4 * 32 * 32 * 64
    assert batches_held(workers, pinned) == held


def test_the_evaluation_is_planned_by_its_limits() -> None:
    asked = {"k": 7, "limit": 50, "query_limit": 30}
    plan = host(config(evaluate=asked), grey(1000), probe=probe(1000, 1000))
    width = 16 * 4
    assert plan["evaluation: features of gallery and queries"] == 4 * width * (7 * 50 + 3 * 30)
    assert plan["evaluation: raw pixels of gallery and queries"] == 4 * 16 * 16 * (6 * 50 + 2 * 30)
    assert plan["evaluation: neighbours and their votes"] == 30 * 7 * 20 + memory_plan.VOTE_BYTES
    assert plan["evaluation: a batch of images"] == 4 * 256 * 16 * 16
    head = host(config(evaluate={**asked, "features": "head"}), grey(1000), probe=probe(1000, 1000))
    assert head["evaluation: features of gallery and queries"] == 4 * 16 * (7 * 50 + 3 * 30)


def test_the_evaluation_is_planned_for_the_images_that_there_are() -> None:
    few = host(config(evaluate={"k": 7}), grey(1000), probe=probe(20, 10, 4))
    more = host(config(evaluate={"k": 7}), grey(1000), probe=probe(200, 100, 40))
    name = "evaluation: features of gallery and queries"
    assert more[name] == 10 * few[name]


def test_without_labels_there_are_no_queries_to_plan() -> None:
    plan = host(config(data=PHOTOS, evaluate={"limit": 10_000}), Images([(30, 40, 3)], count=9000))
    assert not [item for item in plan if "raw" in item or "neighbours" in item]
    assert plan["evaluation: features of gallery and queries"] == 4 * 64 * 7 * 2000
    labelled = host(config(data={**PHOTOS, "labels": "folders"}), Images([(30, 40, 3)]), probe=probe(90, 10))
    assert [item for item in labelled if "raw" in item]


def measured(do: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_an_evaluation_takes_is_no_more_than_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, queries, width, k = 3000, 500, 64, 400
    random = np.random.default_rng(0)
    features = random.standard_normal((gallery, width)).astype(np.float32)
    labels = random.integers(0, 9, gallery)

    def images(name: str, count: int) -> ImageSet:
        return ImageSet(name, count, lambda start, stop: torch.from_numpy(features[start:stop]), labels[:count])

    def look() -> object:
        protocol = Protocol(k, 0.07, "backbone", gallery, queries)
        return evaluate(lambda batch: batch, images("gallery", gallery), [images("q", queries)], protocol, Channel())

    items = memory_plan.evaluation_items(
        gallery=gallery, query_sets=1, queries=queries, width=width, k=k, channels=1, side=8
    )
    planned = items["evaluation: features of gallery and queries"] + items["evaluation: neighbours and their votes"]
    look()
    assert planned / 10 < measured(look) < planned


@pytest.mark.parametrize("classes", [3, 5000])
def test_votes_of_five_thousand_neighbours_take_what_is_planned_for_them(classes: int) -> None:
    random = np.random.default_rng(0)
    similarity = -np.sort(-random.random((2, 5000), dtype=np.float32), axis=1)
    labels = random.integers(0, classes, (2, 5000))
    assert measured(lambda: knn.vote(similarity, labels, 0.07)) < memory_plan.VOTE_BYTES * 1.2


def slow_vote(similarity: np.ndarray, labels: np.ndarray, temperature: float) -> int:
    """Of one query, all pairs at once, as the formula says."""
    weight = np.exp((similarity.astype(np.float64) - similarity[0].astype(np.float64)) / temperature)
    return int(labels[(weight[None, :] * (labels[:, None] == labels[None, :])).sum(axis=1).argmax()])


@pytest.mark.parametrize("vote_bytes", [1 << 26, 1 << 15, 1 << 8])
@pytest.mark.parametrize("k", [1, 2, 20, 200])
@pytest.mark.parametrize("classes", [2, 30])
def test_slices_of_votes_change_no_winner(
    monkeypatch: pytest.MonkeyPatch, vote_bytes: int, k: int, classes: int
) -> None:
    monkeypatch.setattr(knn, "VOTE_BYTES", vote_bytes)
    random = np.random.default_rng(k + classes)
    # Few values, so that sums are often equal and the nearer neighbour has to decide.
    similarity = -np.sort(-random.integers(0, 4, (300, k)).astype(np.float32) / 4, axis=1)
    labels = random.integers(0, classes, (300, k)) - 5
    expected = [slow_vote(*query, 0.5) for query in zip(similarity, labels, strict=True)]
    np.testing.assert_array_equal(knn.vote(similarity, labels, 0.5), expected)
