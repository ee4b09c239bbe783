"""Rows of a head in attention's kernels: their loads and stores, the sums of the forward, and the
width of the last block."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
TAIL = 16  # the narrowest block that a matrix product takes


def tail(N: int, block: int, bits: int) -> int:
    """Return the width of a narrow last block for the tokens past the full blocks; 0: none, the
    loop's last block is masked.

    DeiT's special tokens follow a multiple of 64 or nearly one (196 + 2, 576 + 2): a whole block
    for them would be up to a quarter of the work. Not in fp32, whose products use no tensor cores:
    a second shape fills the registers.
    """
    return TAIL if bits == 16 and 4 * TAIL <= block < N and 0 < N % block <= TAIL else 0


@triton.jit
def load_rows(
    ptr,
    rows,
    STRIDE: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    MASK: tl.constexpr,
):
    """Load rows of D elements as (rows, PAD); zeros past D, and past N with MASK."""
    columns = tl.arange(0, PAD)
    ptrs = ptr + rows[:, None] * STRIDE + columns[None, :]
    if MASK:
        x = tl.load(ptrs, mask=(rows < N)[:, None] & (columns < D)[None, :], other=0.0)
    elif D < PAD:
        x = tl.load(ptrs, mask=(columns < D)[None, :], other=0.0)
    else:
        x = tl.load(ptrs)
    return x


@triton.jit
def store_rows(
    ptr, x, rows, STRIDE: tl.constexpr, N: tl.constexpr, D: tl.constexpr, PAD: tl.constexpr
):
    """Store what `load_rows` loads, rounded to the pointer's dtype."""
    columns = tl.arange(0, PAD)
    mask = (rows < N)[:, None] & (columns < D)[None, :]
    tl.store(ptr + rows[:, None] * STRIDE + columns[None, :], x.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def attend(acc, top, total, q, k, v, keys, N: tl.constexpr, D: tl.constexpr, MASK: tl.constexpr):
    """Add a block of keys to each row's sums of weighted values and of weights, both relative to
    the row's largest score."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (LOG2_E * D**-0.5)
    if MASK:
        scores = tl.where((keys < N)[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1))
    shrink = tl.exp2(top - new_top)
    p = tl.exp2(scores - new_top[:, None])
    total = total * shrink + tl.sum(p, axis=1)
    acc = tl.dot(p.to(q.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, new_top, total
