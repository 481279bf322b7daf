"""Keyed hashing: known values, independence of shape, and the statistics that the rest of the room relies on."""

import numpy as np
import pytest

from datasets.keyed import keyed, mix64, shuffle, uniform


def test_mix64_is_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 1234567, as published with its reference implementation.
    gamma = np.uint64(0x9E3779B97F4A7C15)
    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * gamma
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert mix64(states).tolist() == expected


def test_mix64_can_be_undone() -> None:
    words = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    x = mix64(words)
    x = x ^ (x >> np.uint64(31)) ^ (x >> np.uint64(62))
    x = x * np.uint64(pow(0x94D049BB133111EB, -1, 2**64))
    x = x ^ (x >> np.uint64(27)) ^ (x >> np.uint64(54))
    x = x * np.uint64(pow(0xBF58476D1CE4E5B9, -1, 2**64))
    x = x ^ (x >> np.uint64(30)) ^ (x >> np.uint64(60))
    np.testing.assert_array_equal(x, words)


def test_a_key_does_not_depend_on_its_neighbours() -> None:
    ids_B = np.array([5, 0, 10**12, 7])
    together_B = keyed(3, 4, ids_B, 1)
    alone_B = [keyed(3, 4, ids_B[b : b + 1], 1)[0] for b in range(4)]
    assert together_B.tolist() == alone_B
    assert together_B.dtype == np.uint64


def test_integers_and_arrays_of_one_give_the_same_key() -> None:
    assert keyed(3, 4, 5).shape == ()
    assert int(keyed(3, 4, 5)) == int(keyed(3, np.array([4]), 5)[0])


@pytest.mark.parametrize("other", [(1, 0, 2), (0, 1, 3), (0, 1), (0, 1, 2, 0), (-1, 1, 2)])
def test_every_word_and_their_order_and_number_matter(other: tuple[int, ...]) -> None:
    assert int(keyed(0, 1, 2)) != int(keyed(*other))


def test_a_negative_integer_is_its_residue_in_arrays_too() -> None:
    assert int(keyed(-1)) == int(keyed(2**64 - 1)) == int(keyed(np.array([-1]))[0])


def test_a_million_keys_are_distinct() -> None:
    keys_B = keyed(0, np.arange(1000)[:, None], np.arange(1000)[None, :])
    assert len(np.unique(keys_B)) == 10**6


def test_a_draw_does_not_depend_on_how_many_are_asked_for() -> None:
    keys_B = keyed(0, np.arange(10))
    np.testing.assert_array_equal(uniform(keys_B, 3), uniform(keys_B, 8)[:, :3])


def test_uniform_numbers_are_uniform_and_independent() -> None:
    u_BP = uniform(keyed(0, np.arange(20_000)), 5)
    assert u_BP.dtype == np.float64
    assert u_BP.min() >= 0
    assert u_BP.max() < 1
    # Largest gap between empirical and uniform distribution; 1.95 / sqrt(n) is exceeded with probability 1e-3.
    ideal_B = (np.arange(20_000) + 0.5) / 20_000
    gaps_P = np.abs(np.sort(u_BP, axis=0) - ideal_B[:, None]).max(axis=0)
    assert gaps_P.max() < 1.95 / np.sqrt(20_000)
    # Consecutive keys, and consecutive draws of a key: correlations within 4.5 standard errors.
    error = 4.5 / np.sqrt(20_000)
    between_draws_PP = np.corrcoef(u_BP.T)
    between_keys = np.corrcoef(u_BP[:-1, 0], u_BP[1:, 0])[0, 1]
    assert np.abs(between_draws_PP - np.eye(5)).max() < error
    assert abs(between_keys) < error


def test_shuffle_is_a_permutation_keyed_by_its_key() -> None:
    order = shuffle(1, 1000)
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    np.testing.assert_array_equal(order, shuffle(1, 1000))
    # Two unrelated permutations agree in one place on average.
    assert np.count_nonzero(order == shuffle(2, 1000)) < 10
    assert np.count_nonzero(order == np.arange(1000)) < 10


def test_shuffle_of_nothing_is_nothing() -> None:
    assert shuffle(1, 0).shape == (0,)
