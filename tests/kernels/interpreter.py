"""A correction of Triton's interpreter, which computes bf16 wrongly without an error (3.6 and 3.9).

The interpreter stores bf16 as raw 16-bit integers: a cast from fp32 drops the low bits instead of
rounding, and a dot product multiplies the bit patterns. `correct()` replaces both. Every test
module that interprets a kernel in bf16 calls it at import. test_interpreter.py fails when the
correction has no effect, and when Triton no longer needs it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from tests.kernels.bounds import bounded_memory

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

_convert_float = interpreter._convert_float
_create_dot = interpreter.InterpreterBuilder.create_dot
_patch_lang = interpreter._patch_lang


def _round_to_bf16(values: np.ndarray) -> np.ndarray:
    """Return the bf16 bits of fp32 values, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    high = bits >> np.uint32(16)
    rounded = (bits + np.uint32(0x7FFF) + (high & np.uint32(1))) >> np.uint32(16)
    quiet_nan = high | np.uint32(0x40)
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


def _widen(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
    """Return a bf16 operand as fp32, and any other as it is."""
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
    """Install the correction; has no effect on compiled kernels, and none when called again."""
    interpreter._convert_float = _corrected_convert
    interpreter.InterpreterBuilder.create_dot = _corrected_dot


@contextmanager
def uncorrected() -> Iterator[None]:
    """Restore Triton's own interpreter inside the `with` block."""
    interpreter._convert_float = _convert_float
    interpreter.InterpreterBuilder.create_dot = _create_dot
    try:
        yield
    finally:
        correct()


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill new uninitialised tensors with NaN, so that an element no kernel has written shows, and
    refuse addresses outside of a kernel's tensors."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan().all()
        with bounded_memory():
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def hasten() -> None:
    """Make the interpreter faster, with equal results. Replace the functions of `triton.language`
    once a launch, not in each call of a device function; compute no integer operation again in 64
    bits, which takes half the time, and which only an interpreter that debugs compares
    (`far_programs`)."""
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    interpreter._patch_lang = _patch_once


def _patch_once(fn: Any) -> Any:
    modules = [value for value in fn.__globals__.values() if value is tl or value is tl.core]
    is_replaced = not any(tl.core.is_builtin(module.load) for module in modules)
    return interpreter._LangPatchScope() if is_replaced else _patch_lang(fn)
