"""A row before its first visit: a pure function of (seed, instance), so that it need not be stored anywhere.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) turns (counter, key) into four 32-bit
words with ten rounds of two multiplications; here the counter is (draw, 0, instance low, instance high) and the key is the
seed. A word becomes a float by a fixed map: its upper 24 bits, which float32 holds exactly. Everything is integer arithmetic
but the last multiplication, so a row is the same to the bit on every machine and for every number of ranks.

Rows are uniform in a cube, not normal: their directions need logarithms and cosines to be exactly isotropic, which libraries round
differently. In 128 dimensions the difference cannot be told (the kurtosis of a projection is within 1 % of a normal's).
"""

import numpy as np

_MULTIPLY_0, _MULTIPLY_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counters: tuple[np.ndarray, ...], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Ten rounds of Philox4x32: four words held in uint64 arrays (broadcast together) -> four words."""
    c0, c1, c2, c3 = np.broadcast_arrays(*counters)
    k0, k1 = key
    for _ in range(10):
        product_0, product_1 = c0 * _MULTIPLY_0, c2 * _MULTIPLY_1
        c0, c1, c2, c3 = (
            (product_1 >> _HALF) ^ c1 ^ np.uint64(k0),
            product_1 & _LOW,
            (product_0 >> _HALF) ^ c3 ^ np.uint64(k1),
            product_0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL_0) & 0xFFFFFFFF, (k1 + _WEYL_1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def initial_rows(seed: int, ids_B: np.ndarray, dim: int, norm: float) -> np.ndarray:
    """The first value of the rows of instances ids_B (int64 [B]), float32 [B, dim], of expected length `norm`.

    Every number is uniform in (-1, 1) times norm * sqrt(3 / dim).
    """
    draws = np.arange(-(-dim // 4), dtype=np.uint64)
    ids = np.asarray(ids_B).astype(np.uint64)[:, None]
    counters = (draws[None, :], np.zeros((1, 1), dtype=np.uint64), ids & _LOW, ids >> _HALF)
    words = np.stack(philox4x32(counters, (seed & 0xFFFFFFFF, seed >> 32)), axis=-1)
    bits = (words.reshape(len(ids_B), -1)[:, :dim] >> np.uint64(8)).astype(np.float32)
    # (2 * bits + 1) / 2^24 - 1 is exact in float32 but for its last bit, and never 0.
    uniform = (2.0 * bits.astype(np.float64) + 1.0) / 2.0**24 - 1.0
    return (uniform * (norm * np.sqrt(3.0 / dim))).astype(np.float32)
