"""Figures without labels beside slow twins, one pair at a time; rows that are found, on any number of ranks."""

import math

import numpy as np
import pytest
import torch

from engine.evaluation import label_free, own_rows
from engine.evaluation.evaluate import rankme
from engine.evaluation.label_free import view_figures
from engine.evaluation.own_rows import chosen, found
from engine.methods.method import ActiveVectors
from engine.ranks.ranks import Channel
from tests.on_ranks import on_ranks

FIGURES = ("alignment", "uniformity", "second_view_found")


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def views(count=37, dim=6, noise=0.6, seed=0):
    random = np.random.default_rng(seed)
    first = unit(random.normal(size=(count, dim)))
    return first.astype(np.float32), unit(first + noise * random.normal(size=(count, dim))).astype(np.float32)


def slow_figures(first, second):
    """One pair at a time, as the formulas say."""
    count, f, g = len(first), first.astype(np.float64).tolist(), second.astype(np.float64).tolist()
    uniformity = [
        math.log(
            sum(math.exp(-2 * math.dist(a[i], a[j]) ** 2) for i in range(count) for j in range(count) if i != j)
            / (count * (count - 1))
        )
        for a in (f, g)
    ]
    nearest = [min(range(count), key=lambda j: math.dist(f[i], g[j])) for i in range(count)]
    return {
        "alignment": sum(math.dist(*pair) ** 2 for pair in zip(f, g, strict=True)) / count,
        "uniformity": sum(uniformity) / 2,
        "second_view_found": sum(i == j for i, j in enumerate(nearest)) / count,
    }


@pytest.mark.parametrize("pairs", [1, 100, 1 << 20])
def test_figures_of_views_equal_the_formulas_one_pair_at_a_time(monkeypatch, pairs):
    monkeypatch.setattr(label_free, "PAIRS_AT_ONCE", pairs)
    wanted = slow_figures(*views())
    assert 0.1 < wanted["second_view_found"] < 0.9
    # Features are float32, so their lengths are 1 to 1e-7.
    assert view_figures(*views()) == pytest.approx(wanted, rel=1e-6)


def test_a_collapsed_network_is_aligned_not_uniform_and_finds_nothing():
    point = np.tile(unit(np.ones((1, 5))), (20, 1)).astype(np.float32)
    figures = view_figures(point, point)
    assert figures["alignment"] == 0 and figures["second_view_found"] == 0
    assert figures["uniformity"] == pytest.approx(0, abs=1e-6)


def test_a_dead_network_looks_as_a_collapsed_one_does():
    nothing = np.zeros((20, 8), np.float32)
    assert view_figures(nothing, nothing) == {"alignment": 0, "uniformity": 0, "second_view_found": 0}
    assert rankme(nothing) == pytest.approx(1, abs=1e-4)


def test_noise_is_uniform_and_not_aligned():
    first, second = views(400, 32, noise=100)
    figures = view_figures(first, second)
    assert figures["alignment"] == pytest.approx(2, abs=0.1) and figures["second_view_found"] < 0.03
    assert -4 < figures["uniformity"] < -3.7


def test_too_few_images_have_no_figures():
    first, second = views(1)
    assert view_figures(first, second)["uniformity"] is None and view_figures(first, second)["alignment"] > 0
    assert view_figures(first[:0], second[:0]) == dict.fromkeys(FIGURES)


# What a rank has of 60 vectors: images 10 to 49 in places 5 to 44, of the rest two are of nobody and the others are no vectors.
DIM, IMAGES = 4, np.arange(10, 50)


def active_part(rank, size, doubled=False):
    random = np.random.default_rng(1)
    vectors = torch.from_numpy(random.normal(size=(60, DIM)).astype(np.float32))
    ids, there = np.full(60, -1), torch.zeros(60, dtype=torch.bool)
    ids[5:45], there[3:45] = IMAGES, True
    vectors[45:] = 1e3 * vectors[5]  # of no vector: it would be as near
    if doubled:
        vectors[5], there[3] = 2 * vectors[4], True  # another is exactly as near
    mine = slice(None) if size == 1 else np.arange(60) % size == rank
    return ActiveVectors("row", ids[mine], vectors[mine], there[mine])


def asked():
    random = np.random.default_rng(2)
    ids = np.sort(random.permutation(IMAGES)[:25])
    vectors = active_part(0, 1).vectors_KD.numpy()
    return unit(vectors[ids - 5] + 0.9 * random.normal(size=(25, DIM))).astype(np.float32), ids


def look(ranks, pairs):
    own_rows.PAIRS_AT_ONCE = pairs
    z_QD, ids_Q = asked() if ranks.is_first else (np.empty((0, 0)), np.empty(0))
    active = active_part(ranks.rank, ranks.size)
    return found(z_QD, ids_Q, active, ranks), chosen(active, 12, ranks)


def slow_share():
    z, ids = asked()
    vectors = active_part(0, 1).vectors_KD.numpy()[3:45].astype(np.float64)
    nearest = [int(np.argmax([one @ row / np.linalg.norm(row) for row in vectors])) for one in z]
    return float(np.mean(np.array(nearest) + 3 == ids - 5))


@pytest.mark.parametrize("pairs", [1, 70, 1 << 20])
def test_found_rows_are_those_that_are_nearest_of_all_vectors_that_there_are(monkeypatch, pairs):
    monkeypatch.setattr(own_rows, "PAIRS_AT_ONCE", own_rows.PAIRS_AT_ONCE)  # put back at the end
    told, _ = look(Channel(), pairs)
    assert told.share == slow_share() and 0.2 < told.share < 0.9
    assert (told.asked, told.among) == (25, 42)


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_ranks_finds_the_same_rows_and_asks_about_the_same_images(monkeypatch, count):
    monkeypatch.setattr(own_rows, "PAIRS_AT_ONCE", own_rows.PAIRS_AT_ONCE)
    alone = look(Channel(), 70)
    (told, ids), *others = on_ranks(count, look, 70)
    assert told == alone[0]
    assert all(nothing is None for nothing, _ in others)
    for same in (ids, *(one for _, one in others)):
        np.testing.assert_array_equal(same, alone[1])


def test_a_row_that_another_equals_is_not_found():
    z = active_part(0, 1).vectors_KD[5:6].numpy()
    assert found(unit(z), IMAGES[:1], active_part(0, 1), Channel()).share == 1
    assert found(unit(z), IMAGES[:1], active_part(0, 1, doubled=True), Channel()).share == 0


def test_of_several_vectors_of_an_image_the_nearest_counts():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    active = ActiveVectors("key", np.array([7, 7, 3]), vectors, None)
    z = np.array([[0.1, 0.9], [0.9, 0.4]], dtype=np.float32)
    assert found(unit(z), np.array([7, 7]), active, Channel()).share == 0.5


def test_with_nothing_active_nothing_is_asked():
    nothing = ActiveVectors("row", np.full(3, -1), torch.ones(3, 2), None)
    assert len(chosen(nothing, 5, Channel())) == 0
    told = found(np.empty((0, 2), dtype=np.float32), np.empty(0, dtype=np.int64), nothing, Channel())
    assert told.share is None and told.asked == 0
