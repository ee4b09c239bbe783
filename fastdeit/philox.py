"""Counter-based random numbers: every draw is a pure function of (seed, epoch, ordinal, purpose, block).

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), vectorised over the counters. The
key is (seed, epoch); the counter is (ordinal low, ordinal high, block, purpose). Nothing is ever "consumed": any draw is
computed without the others. The integers are exact on every machine; tests/test_philox.py holds the published test vectors.
"""

import numpy as np

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(counter: tuple[np.ndarray, ...], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Four words of 32 random bits for each counter.

    counter: four uint64 arrays holding 32-bit words, broadcast together; key: two 32-bit integers.
    Returns four uint64 arrays holding 32-bit words, of the broadcast shape.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (right >> _SHIFT) ^ c1 ^ np.uint64(k0), right & _LOW
        c2, c3 = (left >> _SHIFT) ^ c3 ^ np.uint64(k1), left & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def random_words(seed: int, epoch: int, ordinals: np.ndarray, purpose: int, blocks: int = 1, first: int = 0) -> np.ndarray:
    """uint64 (4 * blocks, B) holding 32-bit words: the blocks `first`, `first + 1`, ... of each ordinal's stream.

    ordinals: int64 (B,), not negative; seed and epoch: 32 bits.
    """
    place = np.asarray(ordinals).astype(np.uint64)
    block = np.arange(first, first + blocks, dtype=np.uint64)[:, None]
    counter = (place & _LOW, place >> _SHIFT, block, np.full((1, 1), purpose, np.uint64))
    return np.stack(philox4x32(counter, (seed, epoch)), axis=1).reshape(4 * blocks, place.size)


def uniform(words: np.ndarray) -> np.ndarray:
    """float64 in the open interval (0, 1) from 32-bit words: (word + 1/2) / 2^32, so that logarithms are always finite."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32


def normal(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64 standard normal draws from two arrays of uniforms in (0, 1) (Box and Muller, 1958; the cosine branch)."""
    return np.sqrt(-2.0 * np.log(first)) * np.cos(2.0 * np.pi * second)
