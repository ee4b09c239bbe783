"""Counter-based random numbers: a draw is a pure function of (seed, epoch, ordinal, purpose,
block).

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), vectorised
over the counters. The key is (seed, epoch); the counter is (ordinal low, ordinal high, block,
purpose). Nothing is ever "consumed": any draw is computed without the others. The integers are
exact on every machine; tests/plan/test_sampling.py has the published test vectors.

Why not `numpy.random.Philox`: it needs one object for each counter, 14.5 us a block; here a block
takes 0.13 us. NumPy's consecutive stream takes 0.026 us a block, but the ordinals of a rank are
strided, and a stream is consumed in order.
"""

from collections.abc import Callable, Sequence

import numpy as np

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

RandomStream = Callable[[np.ndarray, Sequence[tuple[int, int]]], np.ndarray]
"""A function from ordinals, int64 (B,), and (purpose, block) pairs to uint64 (pairs, 4, B) holding
32-bit words: `stream_words` of one seed and epoch."""


def philox4x32(counter: tuple[np.ndarray, ...], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Return four words of 32 random bits for each counter.

    counter: four uint64 arrays holding 32-bit words, broadcast together; key: two 32-bit integers.
    The words are four uint64 arrays, of the broadcast shape.
    """
    c0, c1, c2, c3 = (word.copy() for word in np.broadcast_arrays(*counter))
    left, right = np.empty_like(c0), np.empty_like(c0)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # without a new array: c0, c1 = high(right) ^ c1 ^ k0, low(right)
        #                      c2, c3 = high(left) ^ c3 ^ k1, low(left)
        np.multiply(c0, _MULTIPLIERS[0], out=left)
        np.multiply(c2, _MULTIPLIERS[1], out=right)
        for product, high, low, part in ((right, c0, c1, k0), (left, c2, c3, k1)):
            low ^= np.uint64(part)
            np.right_shift(product, _SHIFT, out=high)
            high ^= low
            np.bitwise_and(product, _LOW, out=low)
        k0 = (k0 + _WEYL[0]) & 0xFFFFFFFF
        k1 = (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def stream_words(
    seed: int, epoch: int, ordinals: np.ndarray, streams: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Return uint64 (len(streams), 4, B) holding 32-bit words: for each ordinal and each (purpose,
    block) four words.

    ordinals: int64 (B,), not negative; seed and epoch: 32 bits. One call for several streams costs
    less than one for each.
    """
    ordinal = np.asarray(ordinals).astype(np.uint64)
    purpose, block = np.array(streams, np.uint64).reshape(-1, 2).T[:, :, None]
    counter = (ordinal & _LOW, ordinal >> _SHIFT, block, purpose)
    return np.stack(philox4x32(counter, (seed, epoch)), axis=1)


def random_words(
    seed: int, epoch: int, ordinals: np.ndarray, purpose: int, blocks: int = 1, first: int = 0
) -> np.ndarray:
    """Return uint64 (4 * blocks, B): the words of the blocks `first`, `first + 1`, ... of one
    purpose; as `stream_words`."""
    streams = [(purpose, first + block) for block in range(blocks)]
    return stream_words(seed, epoch, ordinals, streams).reshape(4 * blocks, np.size(ordinals))


def uniform(words: np.ndarray) -> np.ndarray:
    """Return float64 in the open interval (0, 1) from 32-bit words: (word + 1/2) / 2^32, so that
    logarithms are always finite."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32


def normal(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return float64 standard normal draws from two arrays of uniforms in (0, 1) (Box and Muller,
    1958; the cosine branch)."""
    radius = np.sqrt(-2.0 * np.log(first))
    return radius * np.cos(2.0 * np.pi * second)


def quantised(x: np.ndarray) -> np.ndarray:
    """Return x in multiples of 2^-24: the last bit of a logarithm differs between machines, and the
    plan must not."""
    return np.round(x * 2.0**24) * 2.0**-24
