"""Evaluation is the same whatever the number of ranks is, to the bit, and each rank decodes its share of the images alone."""

from dataclasses import replace

import numpy as np
import pytest

from datasets.batch import Probe
from engine.evaluation.evaluate import Protocol, evaluate, raw_pixels, record, singular_values
from engine.evaluation.nearest import describe
from engine.ranks.ranks import Channel
from tests.engine.evaluation.noisy_images import images
from tests.on_ranks import on_ranks

PROTOCOL = Protocol(k=5, temperature=0.07, features="backbone", limit=10_000, query_limit=300)


def look(ranks, labelled=True):
    decoded = []
    gallery = images("gallery", 700, 0, decoded, labelled)
    queries = [images("queries", 400, 1, decoded), images("few", 20, 2, decoded)] if labelled else []
    result = evaluate(raw_pixels, gallery, queries, PROTOCOL, ranks)
    told = None if result is None else (result.figures, result.rankme, result.gallery_MD, result.queries)
    return decoded, told


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_ranks_finds_the_same_and_shares_the_decoding(count, labelled):
    decoded, alone = look(Channel(), labelled)
    (parts, told), *others = on_ranks(count, look, labelled)
    assert told[:2] == alone[:2]
    np.testing.assert_array_equal(told[2], alone[2])
    assert told[3].keys() == alone[3].keys()
    for name, features in alone[3].items():
        np.testing.assert_array_equal(told[3][name], features)
    for other, nothing in others:
        assert nothing is None
        parts = parts + other
    assert sorted(parts) == sorted(decoded)  # each batch once


def test_an_image_that_cannot_be_decoded_is_no_neighbour_and_no_query():
    _, (figures, rankme, gallery_MD, queries) = look(Channel())
    assert np.isnan(gallery_MD[3]).all() and np.isfinite(rankme)
    right = figures["few"] * 19
    assert abs(right - round(right)) < 1e-9  # a share of 19, not of 20
    assert len(queries["queries"]) == PROTOCOL.query_limit


def test_images_that_are_left_out_are_counted_and_named():
    gallery, queries = images("gallery", 700, 0, []), images("few", 20, 2, [])
    result = evaluate(raw_pixels, gallery, [queries], PROTOCOL, Channel())
    line = record(result, Probe(gallery, [queries], "asked", 2), [gallery, queries], {}, PROTOCOL)
    assert line["left_out"] == [
        {"set": "gallery", "left_out": 1, "of": 700, "first": ["3"]},
        {"set": "few", "left_out": 1, "of": 20, "first": ["3"]},
    ]
    assert "1 of 20 images of few are left out, since they could not be decoded" in describe("it", line)
    whole = record(replace(result, left_out={"gallery": [], "few": []}), None, [gallery, queries], {}, PROTOCOL)
    assert "left_out" not in whole


@pytest.mark.parametrize("shape", [(9000, 24), (40, 24), (24, 24), (20, 300), (1, 8)])
def test_singular_values_are_those_of_a_decomposition_of_tall_and_of_wide_features(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal(shape).astype(np.float32) * np.geomspace(1, 1e-3, shape[1], dtype=np.float32)
    for features_MD in (features, np.repeat(features[:1], len(features), axis=0)):  # and collapsed to a line
        expected = np.linalg.svd(features_MD.astype(np.float64), compute_uv=False)[::-1]
        found = singular_values(features_MD)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-8 * expected[-1])
