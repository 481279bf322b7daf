"""Keyed integer hashing: the one source of randomness in this room.

A number is drawn by hashing what it is for, (seed, step, instance, view, draw), never by advancing a generator: so any
draw can be asked for directly, in any order, by any worker. The mixer is the finaliser of SplitMix64 (Steele, Lea and
Flood 2014): two xor-shift-multiply rounds, a bijection of 64-bit integers. It is not cryptographic; it does not need to be.

All functions work on numpy uint64 arrays and wrap silently, as unsigned integers do.
"""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MASK = 0xFFFFFFFFFFFFFFFF


def mix64(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, elementwise on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix(x: int) -> int:
    """mix64 of one number in range(2**64)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def keyed(*words: int | np.ndarray) -> np.ndarray:
    """Hash a sequence of integers (or integer arrays, broadcast together) to uint64; order matters.

    keyed(seed, step, ids_B, view) -> uint64 [B]. Negative integers are taken modulo 2^64.
    """
    number = 0  # as long as all words are integers, for one of which numpy would take ten times as long
    for place, word in enumerate(words):
        if isinstance(word, np.ndarray):
            return _keyed_by_arrays(number, words[place:])
        number = _mix(((number ^ (int(word) & _MASK)) + int(_GAMMA)) & _MASK)
    return np.array(number, dtype=np.uint64)


def _keyed_by_arrays(number: int, words: tuple[int | np.ndarray, ...]) -> np.ndarray:
    """The hash of words that go on after those that made `number`."""
    state = np.array([number], dtype=np.uint64)
    for word in words:
        word_array = np.asarray(word if isinstance(word, np.ndarray) else word & _MASK)
        state = mix64((state ^ word_array.astype(np.uint64)) + _GAMMA)
    return state


def uniform(keys: np.ndarray, draws: int) -> np.ndarray:
    """`draws` numbers in [0, 1) for each key: uint64 [...] -> float64 [..., draws], multiples of 2^-53."""
    counters = np.arange(1, draws + 1, dtype=np.uint64) * _GAMMA
    bits = mix64(mix64(np.asarray(keys)[..., None]) + counters)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffle(key: int, count: int) -> np.ndarray:
    """A permutation of range(count), int64: the order of the hashes of its elements. O(count) memory."""
    hashes = keyed(key, np.arange(count))
    return np.argsort(hashes, kind="stable")
