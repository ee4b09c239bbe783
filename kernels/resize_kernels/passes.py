"""The two passes of `resize`: weighted sums along the lines of a crop, then across them.

    level = ⌊(Σ weight · level + 2²¹) / 2²²⌋, limited to 0 to 255

The first pass computes the lines that the second one takes, and no others. A line is a row of the
crop, or a column where the columns come first. Lines lie in one buffer, 3 · S bytes each, padded to
a multiple of 16, so that the second pass reads whole vectors. Integers alone: no order of the sums
can change a bit. Source: Pillow 12.3, src/libImaging/Resample.c (ImagingResampleHorizontal_8bpc,
ImagingResampleVertical_8bpc).
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.launch_configs import blocks_of, find_launch
from fastdeit.kernels.resize_kernels.weights import (
    BITS,
    BOTTOM,
    COLUMNS,
    COLUMNS_FIRST,
    IN_SIZE,
    LINE,
    LINE_STEP,
    PASS,
    PASSES,
    START,
    STEP,
    TOP,
    WEIGHTS,
    weights_reference,
)

HALF = tl.constexpr(1 << (BITS - 1))
MOST_PROGRAMS = 64
"""The largest number of programs of the first pass along the lines of a crop. Every crop has as
many programs as the crop with the most lines, so beyond this number a program takes several blocks
of lines."""


def weigh_reference(
    image: torch.Tensor, axis: int, out_size: int, places: torch.Tensor
) -> torch.Tensor:
    """Return the outputs at `places` of one pass along an axis of uint8 (h, w, 3)."""
    last = image.shape[axis] - 1
    first, weights = weights_reference(last + 1, out_size, places)
    total = torch.full((), 1 << (BITS - 1), dtype=torch.int32, device=image.device)
    for tap, weight in enumerate(weights.unbind(1)):
        near = image.index_select(axis, (first + tap).clamp(max=last)).int()
        total = total + near * (weight.view(-1, 1, 1) if axis == 0 else weight.view(-1, 1))
    return (total >> BITS).clamp(0, 255).to(torch.uint8)


@triton.jit
def _level(total):
    return tl.minimum(tl.maximum(total >> 22, 0), 255).to(tl.uint8)  # BITS


@triton.jit
def _resize_first_kernel(
    packed_ptr,
    table_ptr,
    inputs_ptr,
    weights_ptr,
    lines_ptr,
    S,
    pitch,
    BLOCK: tl.constexpr,
    BLOCK_LINES: tl.constexpr,
):
    """Resize the lines of one crop along themselves, BLOCK pixels of each; only lines that the
    second pass takes. grid: crops, blocks of pixels, programs; with P programs, each takes every
    P-th block of lines."""
    crop = tl.program_id(0).to(tl.int64)
    table_ptr += crop * COLUMNS
    step = tl.load(table_ptr + STEP).to(tl.int32)
    line_step = tl.load(table_ptr + LINE_STEP).to(tl.int32)
    last = tl.load(table_ptr + PASSES + IN_SIZE).to(tl.int32) - 1
    top = tl.load(table_ptr + TOP).to(tl.int32)
    bottom = tl.load(table_ptr + BOTTOM).to(tl.int32)
    packed_ptr += tl.load(table_ptr + START)
    lines_ptr += tl.load(table_ptr + LINE) * pitch
    # one dimension, so that neighbouring threads have neighbouring pixels with every Triton
    place = tl.arange(0, BLOCK * BLOCK_LINES)
    offs = tl.program_id(1) * BLOCK + place % BLOCK
    # a pixel or line that does not exist is computed as the last one and not written
    pixel = tl.minimum(offs, S - 1)
    inputs_ptr += (crop * 2 * S + pixel) * 2
    first = tl.load(inputs_ptr)
    taps = tl.max(tl.load(inputs_ptr + 1))
    weights_ptr += tl.load(table_ptr + PASSES + WEIGHTS) + pixel
    top += tl.program_id(2) * BLOCK_LINES
    while top < bottom:
        line = top + place // BLOCK
        line_ptr = packed_ptr + tl.minimum(line, bottom - 1) * line_step
        red = tl.full((BLOCK * BLOCK_LINES,), HALF, tl.int32)
        green = tl.full((BLOCK * BLOCK_LINES,), HALF, tl.int32)
        blue = tl.full((BLOCK * BLOCK_LINES,), HALF, tl.int32)
        tap = 0
        while tap < taps:
            weight = tl.load(weights_ptr + tap * S)
            in_ptr = line_ptr + tl.minimum(first + tap, last) * step
            red += tl.load(in_ptr).to(tl.int32) * weight
            green += tl.load(in_ptr + 1).to(tl.int32) * weight
            blue += tl.load(in_ptr + 2).to(tl.int32) * weight
            tap += 1
        out_ptr = lines_ptr + line.to(tl.int64) * pitch + offs * 3
        inside = (offs < S) & (line < bottom)
        tl.store(out_ptr, _level(red), mask=inside)
        tl.store(out_ptr + 1, _level(green), mask=inside)
        tl.store(out_ptr + 2, _level(blue), mask=inside)
        top += tl.num_programs(2) * BLOCK_LINES


@triton.jit
def _resize_second_kernel(
    lines_ptr,
    table_ptr,
    inputs_ptr,
    weights_ptr,
    out_ptr,
    S,
    size,
    pitch,
    BLOCK: tl.constexpr,
    BLOCK_LINES: tl.constexpr,
):
    """Resize the lines of one crop across: BLOCK bytes of BLOCK_LINES outputs; size: 3 * S.
    grid: crops, blocks of outputs, blocks of bytes."""
    crop = tl.program_id(0).to(tl.int64)
    table_ptr += crop * COLUMNS
    last = tl.load(table_ptr + BOTTOM).to(tl.int32) - 1
    lines_ptr += tl.load(table_ptr + LINE) * pitch
    out_ptr += crop * S * size
    line = tl.program_id(1) * BLOCK_LINES + tl.arange(0, BLOCK_LINES)
    offs = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    # as in the first pass
    output = tl.minimum(line, S - 1)
    inputs_ptr += ((crop * 2 + 1) * S + output) * 2
    first = tl.load(inputs_ptr)
    taps = tl.max(tl.load(inputs_ptr + 1))
    weights_ptr += tl.load(table_ptr + PASSES + PASS + WEIGHTS) + output
    total = tl.full((BLOCK_LINES, BLOCK), HALF, tl.int32)
    within = (offs < pitch)[None, :]
    tap = 0
    while tap < taps:
        weight = tl.load(weights_ptr + tap * S)
        near = tl.minimum(first + tap, last).to(tl.int64) * pitch
        level = tl.load(lines_ptr + near[:, None] + offs[None, :], mask=within, other=0)
        total += level.to(tl.int32) * weight[:, None]
        tap += 1
    inside = (line < S)[:, None] & (offs < size)[None, :]
    if tl.load(table_ptr + COLUMNS_FIRST) != 0:
        row = offs // 3 * size + offs % 3
        tl.store(out_ptr + line[:, None] * 3 + row[None, :], _level(total), mask=inside)
    else:
        tl.store(out_ptr + line[:, None] * size + offs[None, :], _level(total), mask=inside)


def launch_passes(
    packed: torch.Tensor,
    table: torch.Tensor,
    inputs: torch.Tensor,
    weights: torch.Tensor,
    lines: tuple[int, int],
    out: torch.Tensor,
) -> None:
    """Write the resized crops into out, uint8 (B, S, S, 3).

    packed: as for `resize`; table: of `resize`; inputs, weights: of `launch_weights`; lines: the
    number of lines of all crops, and the largest of one crop.
    """
    crops, size = out.shape[:2]
    pitch = blocks_of(3 * size, 16) * 16
    between = packed.new_empty(lines[0] * pitch)
    launch = find_launch("resize_first", packed.device, bits=8)
    programs = min(blocks_of(lines[1], launch["BLOCK_LINES"]), MOST_PROGRAMS)
    grid = (crops, blocks_of(size, launch["BLOCK"]), programs)
    _resize_first_kernel[grid](packed, table, inputs, weights, between, size, pitch, **launch)
    launch = find_launch("resize_second", packed.device, bits=8)
    grid = (
        crops,
        blocks_of(size, launch["BLOCK_LINES"]),
        blocks_of(3 * size, launch["BLOCK"]),
    )
    _resize_second_kernel[grid](
        between, table, inputs, weights, out, size, 3 * size, pitch, **launch
    )
