"""Loads and stores of three planes of a block of pixels within a kernel, in whole vectors even
where memory is channels last; for `mix_patches`, `mix_pixels` and `normalise`.

A thread that holds 8 neighbours of each of three planes holds 24 neighbours of the channels-last
order. Splits and joins change between the orders without moving elements between threads, so that
they are loaded and stored as three vectors of 8; a plain store would write single elements at a
stride of 3. The result is right for any distribution over threads, only slower.
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


@triton.jit
def load_channels_last(in_ptr, start, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Return BLOCK pixels of three planes, from pixel `start` of an image of SIZE pixels on, from
    channels-last memory; 0 beyond the image."""
    i = tl.arange(0, BLOCK)
    offs = (start + (i // 8) * 8) * 3 + i % 8
    head = tl.load(in_ptr + offs, mask=offs < 3 * SIZE, other=0)
    body = tl.load(in_ptr + offs + 8, mask=offs + 8 < 3 * SIZE, other=0)
    tail = tl.load(in_ptr + offs + 16, mask=offs + 16 < 3 * SIZE, other=0)
    r0, g0, b0, r1, g1, b1, r2, g2 = _split8(head, BLOCK)
    b2, r3, g3, b3, r4, g4, b4, r5 = _split8(body, BLOCK)
    g5, b5, r6, g6, b6, r7, g7, b7 = _split8(tail, BLOCK)
    red = _join8(r0, r1, r2, r3, r4, r5, r6, r7, BLOCK)
    green = _join8(g0, g1, g2, g3, g4, g5, g6, g7, BLOCK)
    blue = _join8(b0, b1, b2, b3, b4, b5, b6, b7, BLOCK)
    return red, green, blue


@triton.jit
def store_planes(out_ptr, red, green, blue, start, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Write BLOCK pixels of an image of SIZE pixels, from pixel `start` on, as planes."""
    pixel = start + tl.arange(0, BLOCK)
    tl.store(out_ptr + pixel, red, mask=pixel < SIZE)
    tl.store(out_ptr + SIZE + pixel, green, mask=pixel < SIZE)
    tl.store(out_ptr + 2 * SIZE + pixel, blue, mask=pixel < SIZE)
