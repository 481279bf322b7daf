"""The search in parts, votes and places beside a slow twin; a grid that leaves the headline as it is; a GPU that faiss finds."""

import faiss
import numpy as np
import pytest

from engine.evaluation import knn
from engine.evaluation.evaluate import Protocol, evaluate, raw_pixels, record
from engine.evaluation.knn import Asked, places, searched_on, shares, vote
from engine.ranks.ranks import Channel
from tests.engine.evaluation.noisy_images import images

WAYS = [Asked(5, 0.07), Asked(1, 0.07), Asked(20, 0.2), Asked(90, 1.0)]


def features(gallery=150, queries=130, dim=8, classes=9, seed=0):
    """(gallery, its labels, queries, theirs): float32 of unit length, with labels that can be guessed."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, dim))
    labels = [random.integers(0, classes, count) for count in (gallery, queries)]
    rows = [centres[of] + 1.5 * random.normal(size=(len(of), dim)) for of in labels]
    units = [(one / np.linalg.norm(one, axis=1, keepdims=True)).astype(np.float32) for one in rows]
    return units[0], labels[0], units[1], labels[1]


def slow_ranking(similarity, labels, temperature):
    """Labels of a query by their votes, one neighbour after the other; of equal votes the nearer label first."""
    votes = {}
    for one, label in zip(similarity.astype(np.float64), labels.tolist(), strict=True):
        votes[label] = votes.get(label, 0.0) + np.exp((one - float(similarity[0])) / temperature)
    return sorted(votes, key=lambda label: -votes[label])  # sorted keeps the order of what is equal


def slow_share(gallery, labels, queries, truth, way, most):
    """All similarities at once."""
    right = 0
    for query, label in zip(queries, truth.tolist(), strict=True):
        similarity = gallery @ query
        nearest = np.argsort(-similarity, kind="stable")[: way.k]
        right += label in slow_ranking(similarity[nearest], labels[nearest], way.temperature)[:most]
    return right / len(queries)


@pytest.mark.parametrize("at_once", [7, 64, 1000])
def test_shares_equal_the_slow_twin_however_many_queries_are_searched_together(monkeypatch, at_once):
    monkeypatch.setattr(knn, "SEARCH_BYTES", 20 * 90 * at_once)
    found = shares(*features(), WAYS)
    for way, share in zip(WAYS, found, strict=True):
        assert share.top1 == slow_share(*features(), way, 1), way
        assert share.top5 == (slow_share(*features(), way, 5) if way.k >= 5 else None), way
    assert 0.2 < found[0].top1 < found[0].top5 < 1


def test_queries_of_an_evaluation_of_usual_size_are_searched_at_once():
    # Cut up they would be searched with other roundings: figures of before are to stay as they are.
    assert [*knn._parts(10_000, k=1000)] == [slice(0, 13_421)]
    parts = [*knn._parts(10_000, k=5000)]
    assert len(parts) == 4 and sum(min(part.stop, 10_000) - part.start for part in parts) == 10_000


@pytest.mark.parametrize("vote_bytes", [1 << 26, 1 << 13, 1 << 8])
@pytest.mark.parametrize("k", [1, 2, 20])
def test_a_label_that_five_beat_has_place_five_and_place_0_is_the_winner(monkeypatch, vote_bytes, k):
    monkeypatch.setattr(knn, "VOTE_BYTES", vote_bytes)
    random = np.random.default_rng(k)
    # Few values, so that sums are often equal and the nearer neighbour has to decide.
    similarity = -np.sort(-random.integers(0, 4, (200, k)).astype(np.float32) / 4, axis=1)
    labels, truth = random.integers(0, 12, (200, k)), random.integers(0, 12, 200)
    rankings = [slow_ranking(*query, 0.5) for query in zip(similarity, labels, strict=True)]
    wanted = [ranking.index(label) if label in ranking else k for ranking, label in zip(rankings, truth, strict=True)]
    found_Q = places(similarity, labels, truth, 0.5)
    np.testing.assert_array_equal(found_Q, wanted)
    np.testing.assert_array_equal(found_Q == 0, vote(similarity, labels, 0.5) == truth)
    assert 0 in wanted and k in wanted


def look(more=()):
    decoded = []
    protocol = Protocol(5, 0.07, "backbone", 10_000, 300, more)
    result = evaluate(
        raw_pixels, images("gallery", 300, 0, decoded), [images("queries", 100, 1, decoded)], protocol, Channel()
    )
    return result, record(result, None, [], {}, protocol)


def test_a_grid_stands_beside_the_headline_which_stays_as_it_is():
    (alone, line), (gridded, with_grid) = look(), look(tuple(WAYS[1:]))
    assert gridded.figures == alone.figures and "grid" not in line
    first, *others = with_grid["grid"]
    assert first == {"k": 5, "temperature": 0.07, "top1": alone.figures["knn_top1"], "top5": alone.figures["knn_top5"]}
    assert [(one["k"], one["temperature"]) for one in others] == WAYS[1:]
    assert others[0]["top5"] is None and 0 < others[1]["top1"] <= others[1]["top5"]


@pytest.fixture
def gpu(monkeypatch):
    """faiss as it is where it finds a GPU, as far as this looks at it; what was moved there is written down."""
    moved = []

    class Resources:
        def setTempMemory(self, count):
            moved.append(count)

    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(
        faiss, "index_cpu_to_gpu", lambda _, number, index: moved.append(number) or index, raising=False
    )
    return moved


def test_the_search_runs_on_a_gpu_that_faiss_finds_and_the_protocol_says_so(gpu):
    result, _ = look()
    assert gpu == [knn.GPU_SCRATCH_BYTES, 0]
    assert result.figures["knn_top1"] is not None
    assert str(Protocol(5, 0.07, "backbone", 1, 1)).count("searched on the GPU") == 1
    assert searched_on(2048) == ", searched on the GPU"  # the most that FAISS has there
    assert searched_on(2049) == ", searched on the CPU, since FAISS finds at most 2,048 neighbours on a GPU"


def test_a_gpu_that_faiss_does_not_see_is_told(monkeypatch):
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert "searched on the CPU, since this faiss finds no GPU" in str(Protocol(5, 0.07, "backbone", 1, 1))


def test_without_a_gpu_the_protocol_is_what_it_always_was():
    wanted = "cosine of backbone features, k = 5, vote weight exp(similarity / 0.07); at most 1 gallery images, 2 queries a set"
    assert str(Protocol(5, 0.07, "backbone", 1, 2)) == wanted
