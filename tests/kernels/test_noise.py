"""The noise of an erased box: reference and kernel equal the CPU's numbers in every bit.

.venv/bin/python -m pytest tests/kernels/test_noise.py, about 6 s
"""

import functools

import numba
import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from fastdeit.data.augment import noise as cpu
from fastdeit.kernels import noise
from fastdeit.kernels.augment_kernels.ops import EXACT
from tests.kernels.interpreter import DEVICE

PIXELS = 1 << 15
EDGES = (0, 1, 0xFFFFFFFF, 1 << 32, 2**64 - 1, 1 << 63, 0xFFFFFFFF << 32)
EDGE_WORDS = [0, 1, 2**32 - 1, 2**32 - 2]
EDGE_WORDS += [(turn << 30) + step for turn in range(1, 4) for step in (-1, 0, 1)]
# u at both sides of a power of two times the root of 2, where the series' argument jumps
EDGE_WORDS += [int(2**power * 2**0.5) + step for power in range(31) for step in (-1, 0, 1)]


@triton.jit
def _normals_kernel(key_ptr, out_ptr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    pixel = tl.arange(0, BLOCK)
    red, green, blue = noise.normals(pixel, tl.load(key_ptr + row))
    out_ptr += row * 3 * BLOCK + pixel
    tl.store(out_ptr, red)
    tl.store(out_ptr + BLOCK, green)
    tl.store(out_ptr + 2 * BLOCK, blue)


@triton.jit
def _words_kernel(word_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    word = tl.load(word_ptr + i).to(tl.uint32)
    x, y = noise._direction(word)
    tl.store(out_ptr + i, noise._radius(word))
    tl.store(out_ptr + BLOCK + i, x)
    tl.store(out_ptr + 2 * BLOCK + i, y)


@functools.cache
def cpu_functions():  # type: ignore[no-untyped-def]
    """Compile the CPU's noise of a box's pixels, and its radius and direction of words."""

    def fill_rows(keys, out):  # type: ignore[no-untyped-def]
        for row in range(len(keys)):
            high, low = keys[row] >> np.uint64(32), keys[row] & np.uint64(0xFFFFFFFF)
            cpu.noise_row(np.uint64(0), high, low, out[row, 0], out[row, 1], out[row, 2])

    def transform(words, out):  # type: ignore[no-untyped-def]
        for i in range(len(words)):
            out[0, i] = cpu._radius(words[i])
            out[1, i], out[2, i] = cpu._direction(words[i])

    return numba.njit(fill_rows), numba.njit(transform)


def keys() -> np.ndarray:
    drawn = np.random.default_rng(0).integers(0, 2**64, 32 - len(EDGES), np.uint64)
    return np.concatenate([np.array(EDGES, np.uint64), drawn])


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    """fp32 (32, 3, PIXELS), computed on the CPU by the compiled augmentation."""
    out = np.empty((len(keys()), 3, PIXELS), np.float32)
    cpu_functions()[0](keys(), out)
    return torch.from_numpy(out).to(DEVICE)


def count_differences(actual: torch.Tensor, expected: torch.Tensor) -> int:
    bits = torch.int32 if expected.dtype == torch.float32 else torch.int64
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    return int((actual.view(bits) != expected.view(bits)).sum())


def test_noise_reference_has_the_bits_of_the_cpu(expected: torch.Tensor) -> None:
    pixel = torch.arange(PIXELS, device=DEVICE)
    key = torch.from_numpy(keys().view(np.int64)).to(DEVICE).view(-1, 1)
    out = noise.noise_reference(pixel, key).transpose(0, 1).contiguous()
    assert count_differences(out, expected) == 0


def test_normals_of_a_million_pixels_have_the_bits_of_the_cpu(expected: torch.Tensor) -> None:
    assert expected[:, 0].numel() >= 10**6
    key = torch.from_numpy(keys().view(np.int64)).to(DEVICE)
    out = torch.empty_like(expected)
    _normals_kernel[(len(key),)](key, out, BLOCK=PIXELS, **EXACT)
    assert count_differences(out, expected) == 0


def test_words_at_the_edges_have_the_bits_of_the_cpu() -> None:
    words = np.resize(np.array(EDGE_WORDS, np.int64), 128)
    expected = np.empty((3, 128))
    cpu_functions()[1](words.astype(np.uint64), expected)
    given = torch.from_numpy(words).to(DEVICE)
    reference = torch.stack((noise._radius_reference(given), *noise._direction_reference(given)))
    out = torch.empty(3, 128, dtype=torch.float64, device=DEVICE)
    _words_kernel[(1,)](given, out, BLOCK=128, **EXACT)
    assert np.isfinite(expected).all()
    assert count_differences(reference, torch.from_numpy(expected).to(DEVICE)) == 0
    assert count_differences(out, torch.from_numpy(expected).to(DEVICE)) == 0
