"""What the loader and the evaluation hold is in the plan: by the numbers that they go by, and no less than what was measured."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from configs import schema
from datasets.batch import ImageSet, ImagesUnavailable, Loaded, Probe, UnreadableImage
from datasets.loader import batches_held
from datasets.schedule import Schedule
from engine.evaluation import knn
from engine.evaluation.evaluate import Protocol, evaluate
from engine.evaluation.label_free import view_figures
from engine.evaluation.limits import GPU_SCRATCH_BYTES, VOTE_BYTES
from engine.jobs.planned import facts_of, planned
from engine.planning import components as names
from engine.planning.components import Plan
from engine.planning.evaluation import EvaluationSizes, evaluation_components
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

    def file_bytes(self, instance: int) -> int:
        return 1000


def config(**sections: Any) -> schema.Config:
    tree = {**TINY, "output": "nowhere"}
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return schema.Config.model_validate_json(json.dumps(tree))


PHOTOS = {"source": "folder", "root": "/photos", "augment": {"kind": "photos", "crops": [{"size": 32}]}}
SCHEDULE = Schedule(seed=0, size=2000, window=640, stride=320, batch=64, block=16, lanes=4)


def probe(gallery: int, *queries: int) -> Probe:
    """What asks so many images, none of which is looked at."""

    def images(name: str, count: int) -> ImageSet:
        return ImageSet(name, count, lambda start, stop: Loaded(torch.empty(0), np.empty(0, dtype=bool)))

    return Probe(images("gallery", gallery), [images("queries", count) for count in queries], "", 10)


def plan_for(
    config: schema.Config,
    source: object,
    ranks: int = 1,
    probe: Probe | None = None,
    device: str = "cpu",
    schedule: Schedule = SCHEDULE,
) -> Plan:
    facts = facts_of(
        config,
        source,
        probe,
        ranks=ranks,
        ranks_here=ranks,
        device=device,
        libraries_bytes=0,
    )
    return planned(config, schedule, facts)


def host(config: schema.Config, source: object, **options: Any) -> dict[str, int]:
    """Bytes by name, with how they are known."""
    return {
        one.name + one.how: one.bytes for one in plan_for(config, source, **options).components if one.tier == "host"
    }


def grey(count: int = 100) -> Images:
    return Images([(20, 30)], 1, count)


def test_images_that_are_kept_are_planned_to_the_byte_where_all_are_alike() -> None:
    plan = host(config(data={"cache": "part"}), grey())
    assert plan[names.KEPT] == SCHEDULE.size * (20 * 30 + 250)
    assert host(config(data={"cache": "part"}), grey(), ranks=4)[names.KEPT] == SCHEDULE.size // 4 * (20 * 30 + 250)
    assert host(config(data={"cache": "full"}), grey(), ranks=4)[names.KEPT] == SCHEDULE.size * (20 * 30 + 250)
    assert host(config(data={"cache": "full", "cache_gib": 2**-20}), grey())[names.KEPT] == 1024
    assert not [item for item in host(config(), grey()) if "kept" in item]


def test_encoded_images_that_are_kept_are_planned_by_the_sizes_of_their_files() -> None:
    plan = host(config(data={**PHOTOS, "cache": "part", "cache_of": "encoded"}), Images([(30, 40, 3)]))
    assert next(size for item, size in plan.items() if item.startswith(names.KEPT)) == SCHEDULE.size * (1000 + 250)


def test_images_of_a_folder_that_are_kept_are_estimated_and_it_is_said() -> None:
    source = Images([(30, 40, 3), (10, 20, 3)], error={0: UnreadableImage("a.jpg", "truncated")})
    plan = host(config(data={**PHOTOS, "cache": "part"}), source)
    asked = [source.shapes[instance % 2] for instance in source.asked if instance]
    mean = sum(height * width * 3 for height, width, _ in asked) / len(asked)
    assert plan[f"{names.KEPT} (estimated from {len(asked)} of them)"] == round(SCHEDULE.size * (mean + 250))
    assert len(source.asked) == 8


def test_a_folder_of_which_nothing_can_be_read_has_no_estimate_and_a_disk_that_is_gone_is_no_image() -> None:
    unreadable = {instance: UnreadableImage("a.jpg", "truncated") for instance in range(100)}
    plan = host(config(data={**PHOTOS, "cache": "part"}), Images([(1, 1, 3)], error=unreadable))
    assert [item for item in plan if "unknown" in item]
    gone = {instance: ImagesUnavailable("a.jpg", "Stale file handle") for instance in range(100)}
    with pytest.raises(ImagesUnavailable):
        host(config(data=PHOTOS), Images([(1, 1, 3)], error=gone))


@pytest.mark.parametrize("workers", [1, 3])
def test_each_worker_holds_one_photo_or_one_batch_of_grey_images(workers: int) -> None:
    def more(larger: Images, smaller: Images, **data: Any) -> int:
        """What each worker holds more of larger images."""
        asked = config(data={**data, "workers": workers})
        sizes = [plan_for(asked, source).of(names.WORKERS) for source in (larger, smaller)]
        return (sizes[0] - sizes[1]) // workers

    assert more(Images([(3000, 4000, 3)]), Images([(30, 40, 3)]), **PHOTOS) == (36_000_000 - 3600) * 6
    assert more(grey(), Images([(10, 30)], 1)) == 64 * 300 * 6


def test_without_workers_the_run_decodes_itself() -> None:
    own = plan_for(config(data={"workers": 0}), grey())
    assert own.of(names.WORKERS) == 0 and own.host_peak() == own.process_peak()
    assert own.of(names.DECODING) == 64 * 600 * 6 + 16 * 16 * 64


@pytest.mark.parametrize(("workers", "device", "held"), [(0, "cpu", 1), (0, "cuda", 1), (3, "cpu", 7), (3, "cuda", 9)])
def test_batches_that_are_ready_are_those_that_the_loader_holds(workers: int, device: str, held: int) -> None:
    plan = plan_for(config(data={"workers": workers}), grey(), device=device)
    ready = sum(one.bytes for one in plan.components if one.name.startswith(names.BATCHES))
    assert ready == held * 16 * 16 * 64
    assert batches_held(workers, device == "cuda") == held


def test_the_evaluation_is_planned_by_its_limits() -> None:
    asked = {"k": 7, "limit": 50, "query_limit": 30}
    plan = plan_for(config(evaluate=asked), grey(1000), probe=probe(1000, 1000))
    width = 16 * 4
    assert plan.of(names.FEATURES) == 4 * width * (50 + 30)
    assert plan.of(names.INDEX) == 4 * width * (2 * 50 + 30) + 30 * 7 * 20 + 30 * 7 * 7 * 9
    head = plan_for(config(evaluate={**asked, "features": "head"}), grey(1000), probe=probe(1000, 1000))
    assert head.of(names.FEATURES) == 4 * 16 * (50 + 30)


def test_the_evaluation_is_planned_for_the_images_that_there_are() -> None:
    few, more = (
        plan_for(config(evaluate={"k": 7}), grey(1000), probe=probe(20 * times, 10 * times, 4 * times))
        for times in (1, 5)
    )
    assert more.of(names.FEATURES) == 5 * few.of(names.FEATURES)


def test_without_labels_there_are_no_queries_to_plan() -> None:
    plan = plan_for(config(data=PHOTOS, evaluate={"limit": 10_000}), Images([(30, 40, 3)], count=9000))
    assert plan.of(names.INDEX) == 0 and plan.of(names.FEATURES) == 4 * 64 * 2000


def test_features_of_an_evaluation_are_kept_for_the_next_one_if_there_is_one() -> None:
    once, often = (
        plan_for(config(evaluate={"every_steps": every}), grey(1000), probe=probe(200, 100)) for every in (None, 5)
    )
    assert once.of(names.FEATURES_BEFORE) == 0 and often.of(names.FEATURES_BEFORE) == often.of(names.FEATURES)
    assert once.process_bytes("step") < often.process_bytes("step")


def test_rows_that_never_leave_their_slots_take_nothing_of_the_disk() -> None:
    full = plan_for(config(method={"active": None}), grey(2000))
    some = plan_for(config(), grey(2000))
    assert full.of(names.STORED_ROWS) == 0 < some.of(names.STORED_ROWS)


@pytest.mark.parametrize("options", [{"fold": True}, {"dtype": "bfloat16"}])
def test_rows_that_have_left_take_what_the_store_keeps_of_them(options: dict[str, Any]) -> None:
    # Without momentum a row can be folded at once, so that the pool is no larger for it.
    asked, source = {"epochs": 60, "optimizer": {"momentum": 0.0}}, grey(20_000)
    schedule = Schedule(seed=0, size=20_000, window=640, stride=320, batch=64, block=16, lanes=4)
    plain, other = (plan_for(config(store=store, **asked), source, schedule=schedule) for store in ({}, options))
    assert plain.of(names.STORED_ROWS) == 1250 * (16 * 136 + 12)
    pool = other.of(names.WINDOW) // 144  # rows, each with its slot
    assert pool < 3_000
    assert plain.of(names.STORED_ROWS) - other.of(names.STORED_ROWS) == (20_000 - pool) * 64


@pytest.mark.parametrize("stage", [0, 2])
def test_adamw_is_planned_with_two_numbers_a_weight_and_plain_sgd_with_none(stage: int) -> None:
    zero = {"zero_optimization": {"stage": stage}}
    plans = {}
    for name, optimizer in {"momentum": {}, "plain": {"momentum": 0.0}, "adamw": {"trunk": "adamw"}}.items():
        plans[name] = plan_for(config(optimizer=optimizer, deepspeed=zero), grey(2000), ranks=2)
    momentum, plain, adamw = (plans[name].of(names.TRUNK_OPTIMIZER) for name in ("momentum", "plain", "adamw"))
    assert plain == 0 < momentum and adamw == 2 * momentum
    files = {name: plan.of(names.CHECKPOINT_FILES) for name, plan in plans.items()}
    assert files["adamw"] - files["momentum"] == files["momentum"] - files["plain"] > 0
    assert plans["adamw"].of(names.SNAPSHOT) > plans["momentum"].of(names.SNAPSHOT)


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
        def load(start: int, stop: int) -> Loaded:
            return Loaded(torch.from_numpy(features[start:stop]), np.ones(stop - start, dtype=bool))

        return ImageSet(name, count, load, labels[:count])

    def look() -> object:
        protocol = Protocol(k, 0.07, "backbone", gallery, queries)
        return evaluate(lambda batch: batch, images("gallery", gallery), [images("q", queries)], protocol, Channel())

    asked = EvaluationSizes(gallery, [queries], width, k, 1, 8, repeated=False)
    items = evaluation_components(asked)
    planned = sum(one.bytes for one in items if one.name != names.OTHER_STAGES)
    look()
    assert planned / 2 < measured(look) < planned * 1.1


def test_the_plan_has_the_largest_k_that_is_asked_and_on_a_gpu_the_index_there() -> None:
    asked = {"k": 7, "limit": 50, "query_limit": 30}
    plans = [
        plan_for(config(evaluate={**asked, "more_k": more}), grey(1000), probe=probe(1000, 1000))
        for more in ([], [3, 40])
    ]
    assert plans[1].of(names.INDEX) - plans[0].of(names.INDEX) == 30 * 20 * (40 - 7) + 30 * 9 * (40**2 - 7**2)
    gpu = plan_for(config(evaluate=asked), grey(1000), probe=probe(1000, 1000), device="cuda")
    assert gpu.bytes_in("evaluation", "device") >= 4 * 16 * 16 * 50 + GPU_SCRATCH_BYTES
    on_device = [one for one in gpu.components if one.name == names.INDEX and one.tier == "device"]
    assert [one.bytes for one in on_device] == [4 * 16 * 16 * 50 + GPU_SCRATCH_BYTES]


def test_neighbours_of_any_number_of_queries_take_what_those_searched_together_take() -> None:
    def index(queries: int) -> int:
        sizes = EvaluationSizes(gallery=1000, queries=[queries], width=8, k=50, channels=1, side=8, repeated=False)
        return next(one.bytes for one in evaluation_components(sizes) if one.name == names.INDEX)

    few, some, many = (index(queries) for queries in (1000, 300_000, 3_000_000))
    assert some - few > 2**28 - 1000 * 50 * 20
    assert many - some == 2_700_000 * 8 * 4  # their features alone


def test_pairs_of_views_take_no_more_than_planned() -> None:
    count, width = 1500, 64
    random = np.random.default_rng(0)
    first, second = (random.standard_normal((count, width)).astype(np.float32) for _ in range(2))
    sizes = EvaluationSizes(10, [], width, 5, 1, 8, repeated=False, views=count, both=width)
    planned = sum(one.bytes for one in evaluation_components(sizes))
    assert planned / 3 < measured(lambda: view_figures(first, second)) < planned
    without = sum(one.bytes for one in evaluation_components(replace(sizes, views=0)))
    assert without < planned / 10


def test_views_that_are_larger_than_evaluated_images_are_planned_for() -> None:
    small, large = (
        plan_for(
            config(
                data={**PHOTOS, "augment": {"kind": "photos", "crops": [{"size": side}]}}, evaluate={"views": views}
            ),
            source,
        )
        for side, views, source in [(64, 0, Images([(30, 40, 3)])), (64, 50, Images([(30, 40, 3)]))]
    )
    # A side of 16 is evaluated, and 64 is viewed.
    assert large.of(names.EVALUATED) > 8 * small.of(names.EVALUATED)


@pytest.mark.parametrize("classes", [3, 5000])
def test_votes_of_five_thousand_neighbours_take_what_is_planned_for_them(classes: int) -> None:
    random = np.random.default_rng(0)
    similarity = -np.sort(-random.random((2, 5000), dtype=np.float32), axis=1)
    labels = random.integers(0, classes, (2, 5000))
    assert measured(lambda: knn.vote(similarity, labels, 0.07)) < VOTE_BYTES * 1.2


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
