"""The correction of Triton's interpreter for bf16.

.venv/bin/python -m pytest tests/kernels/test_interpreter.py, about 3 s
"""

import pytest
import torch
import triton
import triton.language as tl

from tests.kernels import interpreter

interpreter.correct()
pytestmark = pytest.mark.skipif(not interpreter.INTERPRETED, reason="kernels are compiled here")


@triton.jit
def _cast_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(out_ptr + offs, tl.load(x_ptr + offs).to(tl.bfloat16))


@triton.jit
def _dot_kernel(a_ptr, b_ptr, out_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out_ptr + offs, tl.dot(tl.load(a_ptr + offs), tl.load(b_ptr + offs)))


def cast(values: torch.Tensor) -> torch.Tensor:
    out = torch.empty(values.shape, dtype=torch.bfloat16)
    _cast_kernel[(1,)](values, out, BLOCK=values.numel())
    return out


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = torch.empty(a.shape)
    _dot_kernel[(1,)](a, b, out, BLOCK=len(a))
    return out


@pytest.fixture
def values() -> torch.Tensor:
    normal = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    ties = [1 + 2**-8, 1 + 3 * 2**-8]
    special = torch.tensor([*ties, 0.0, -0.0, torch.inf, -torch.inf, 3.4e38, 1e-40])
    return torch.cat([normal[: 1024 - len(special)], special])


def test_cast_to_bf16_rounds_to_nearest_even(values: torch.Tensor) -> None:
    assert torch.equal(cast(values), values.bfloat16())
    assert cast(torch.full((16,), torch.nan)).isnan().all()


def test_dot_of_bf16_multiplies_values() -> None:
    a, b = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(dot(a, b), a.float() @ b.float())


def test_triton_still_needs_the_correction(values: torch.Tensor) -> None:
    """Fails once Triton rounds correctly: then remove the cast from interpreter.py."""
    with interpreter.uncorrected():
        assert not torch.equal(cast(values), values.bfloat16())
