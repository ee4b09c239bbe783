"""Correction of Triton's interpreter, which is silently wrong for bf16 (3.6 and 3.9 alike).

It stores bf16 as raw 16-bit integers: a cast from fp32 drops the low bits instead of rounding, and
a dot multiplies the bit patterns. `correct()` replaces both; every test that interprets a kernel in
bf16 calls it when its module is loaded. test_interpreter.py fails when the correction does not act,
and when Triton no longer needs it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

_convert_float = interpreter._convert_float
_create_dot = interpreter.InterpreterBuilder.create_dot


def _round_to_bf16(values: np.ndarray) -> np.ndarray:
    """fp32 → bf16 bits, to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(
        np.uint16
    )


def _widen(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    wide = (handle.data.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return interpreter.TensorHandle(wide, tl.float32)


def _corrected_convert(values, from_dtype, to_dtype, rounding):
    if from_dtype == tl.float32 and to_dtype == tl.bfloat16:
        return _round_to_bf16(values)
    return _convert_float(values, from_dtype, to_dtype, rounding)


def _corrected_dot(self, a, b, *rest):
    return _create_dot(self, _widen(a), _widen(b), *rest)


def correct() -> None:
    """Put the correction in place; does no harm twice, nor when kernels are compiled."""
    interpreter._convert_float = _corrected_convert
    interpreter.InterpreterBuilder.create_dot = _corrected_dot


@contextmanager
def uncorrected() -> Iterator[None]:
    """The interpreter as Triton ships it."""
    interpreter._convert_float = _convert_float
    interpreter.InterpreterBuilder.create_dot = _create_dot
    try:
        yield
    finally:
        correct()


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New uninitialised tensors hold NaN, so that an element which a kernel leaves out shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before)
