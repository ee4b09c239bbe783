"""Order-free 64-bit hash of the planned samples of a step: two runs with the same digest had the
same samples in the same steps.

Each sample has a hash over all that is planned for it, its step and its ordinal. The digest of
several samples is the sum of their hashes modulo 2^64. So it does not depend on ranks,
micro-batches and order, and the digests of two groups of samples add up to that of all.

The hash: sum of odd constants times the 32-bit words of the fields, modulo 2^64 (multilinear
hashing, Lemire and Kaser, "Strongly universal string hashing is fast", The Computer Journal 57(11),
2014), then the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), which is a bijection.
So two samples that differ in one word always differ in their hash. It is made to find mistakes, and
does not protect against a search for collisions.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from fastdeit.plan.philox import random_words
from fastdeit.plan.plan import SampleParams

_KEY = (0x64696765, 0x73740001)  # of the constants; another key gives other digests
_WORD = 4  # bytes
_FINALISER = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def sample_digests(
    steps: np.ndarray, epoch: int, ordinals: np.ndarray, draws: SampleParams, keep: np.ndarray
) -> np.ndarray:
    """Return uint64 (B,): the hash of each sample.

    steps: int64 (B,), the optimizer step of the run that each is in, from 0; ordinals: int64 (B,);
    keep: bool (B, depth, 2).
    """
    planned = [getattr(draws, field.name) for field in dataclasses.fields(draws)]
    words = _words((steps, np.full_like(steps, epoch), ordinals, *planned, keep))
    mixed = np.einsum("i,ij->j", _constants(len(words)), words)
    for shift, factor in _FINALISER:
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed


def add_digests(*digests: np.ndarray | int) -> int:
    """Return the digest of all samples together: the sum of hashes or digests, modulo 2^64."""
    return sum(int(np.sum(digest, dtype=np.uint64)) for digest in digests) % 2**64


def show_digest(digest: int) -> str:
    """Return a digest as sixteen hexadecimal digits."""
    return f"{digest:016x}"


def _words(fields: Sequence[np.ndarray]) -> np.ndarray:
    """Return uint64 (n, B) holding 32-bit words: the bits of all fields, one column a sample."""
    parts = [_bits(field) for field in fields]
    words = np.empty((sum(part.shape[1] for part in parts), len(parts[0])), np.uint64)
    first = 0
    for part in parts:
        words[first : first + part.shape[1]] = part.T
        first += part.shape[1]
    return words


def _bits(field: np.ndarray) -> np.ndarray:
    """Return uint32 (B, n): the bits of each row, then zeros up to a whole word."""
    octets = np.ascontiguousarray(field).reshape(len(field), -1).view(np.uint8)
    if octets.shape[1] % _WORD == 0:
        return octets.view("<u4")
    words = -(-octets.shape[1] // _WORD)
    padded = np.zeros((len(octets), words * _WORD), np.uint8)
    padded[:, : octets.shape[1]] = octets
    return padded.view("<u4")


@functools.cache
def _constants(count: int) -> np.ndarray:
    """Return uint64 (count,), odd: a factor for each word."""
    low, high, *_ = random_words(*_KEY, np.arange(count), purpose=0)
    return high << np.uint64(32) | low | np.uint64(1)
