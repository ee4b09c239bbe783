"""Stores from planes to channels-last memory within a kernel, in whole vectors; part of
`mix_patches`.

A thread that has loaded 8 neighbours of each of three planes holds 24 neighbours of the
channels-last order. Splits and joins put them in that order without moving them between threads, so
that they are stored as three vectors of 8; a plain store would write single elements at a stride of
3. The result is right for any distribution over threads, only slower.
"""

import triton
import triton.language as tl


@triton.jit
def _split8(x, BLOCK: tl.constexpr):
    """Return elements i, i + 8, i + 16, ... of x as a block each, for i = 0 to 7."""
    even, odd = tl.split(tl.reshape(x, (BLOCK // 8, 2, 2, 2)))
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x1, x5 = tl.split(x15)
    x2, x6 = tl.split(x26)
    x3, x7 = tl.split(x37)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def _join8(x0, x1, x2, x3, x4, x5, x6, x7, BLOCK: tl.constexpr):
    """Undo `_split8`."""
    even = tl.join(tl.join(x0, x4), tl.join(x2, x6))
    odd = tl.join(tl.join(x1, x5), tl.join(x3, x7))
    return tl.reshape(tl.join(even, odd), (BLOCK,))


@triton.jit
def store_channels_last(out_ptr, red, green, blue, start, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Write BLOCK pixels of three planes, from pixel `start` of an image of SIZE pixels on, as
    channels-last memory."""
    r0, r1, r2, r3, r4, r5, r6, r7 = _split8(red, BLOCK)
    g0, g1, g2, g3, g4, g5, g6, g7 = _split8(green, BLOCK)
    b0, b1, b2, b3, b4, b5, b6, b7 = _split8(blue, BLOCK)
    i = tl.arange(0, BLOCK)
    offs = (start + (i // 8) * 8) * 3 + i % 8
    tl.store(out_ptr + offs, _join8(r0, g0, b0, r1, g1, b1, r2, g2, BLOCK), mask=offs < 3 * SIZE)
    tl.store(
        out_ptr + offs + 8, _join8(b2, r3, g3, b3, r4, g4, b4, r5, BLOCK), mask=offs + 8 < 3 * SIZE
    )
    tl.store(
        out_ptr + offs + 16,
        _join8(g5, b5, r6, g6, b6, r7, g7, b7, BLOCK),
        mask=offs + 16 < 3 * SIZE,
    )
