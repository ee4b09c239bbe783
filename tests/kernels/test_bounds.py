"""Addresses past the end of a tensor are refused, read or written, unless a mask excludes them.

.venv/bin/python -m pytest tests/kernels/test_bounds.py, about 1 s
"""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from tests.kernels.bounds import bounded_memory
from tests.kernels.interpreter import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here")


@triton.jit
def _copy_kernel(x_ptr, out_ptr, READ: tl.constexpr, WRITTEN: tl.constexpr, BLOCK: tl.constexpr):
    """Copy BLOCK elements, of which READ are read and WRITTEN are written; grid: one program."""
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < READ, other=0.0)
    tl.store(out_ptr + offs, x, mask=offs < WRITTEN)


def copy(read: int, written: int) -> None:
    """Launch the kernel for tensors of 5 elements, the first of them in the middle of a storage."""
    x = torch.zeros(16)[4:9]
    with bounded_memory():
        _copy_kernel[(1,)](x, torch.zeros(5), READ=read, WRITTEN=written, BLOCK=8)


def test_a_mask_excludes_what_is_past_the_end() -> None:
    copy(5, 5)
    copy(0, 3)


@pytest.mark.parametrize(("read", "written"), [(6, 5), (5, 6)], ids=["read", "written"])
def test_an_element_past_the_end_is_refused(read: int, written: int) -> None:
    with pytest.raises(InterpreterError, match="an address is in no tensor of the launch"):
        copy(read, written)
