"""Weights of `resize`: PIL's bicubic filter with antialias, in 22-bit fixed point.

Output i of an axis shows the input at c = (i + ½)·s, with s the inputs per output; it sums the
inputs nearer than 2·max(s, 1), each times f((j - c + ½) / max(s, 1)), divided by the sum of these
values, with

    f(x) = (1.5·|x| - 2.5)·x² + 1 for |x| < 1, -½·(|x|³ - 5·x² + 8·|x| - 4) for |x| < 2, else 0

All of it in double precision and in PIL's order of operations, then rounded to 2^-22. Source:
Pillow 12.3, src/libImaging/Resample.c (precompute_coeffs, normalize_coeffs_8bpc).
"""

import math

import torch
import triton
import triton.language as tl

from fastdeit.kernels.augment_kernels.ops import EXACT
from fastdeit.kernels.launch_configs import blocks_of, find_launch

BITS = 22
"""The bits of a weight's fraction: 32 less 8 for the byte and 2 for the sign and the overshoot."""

# columns of the kernels' table: a crop's first byte, the bytes from one input of the first pass to
# the next and from one line to the next, the lines that the second pass takes, where line 0 would
# be among those of all crops, and whether the first pass runs along the columns
START, STEP, LINE_STEP, TOP = (tl.constexpr(column) for column in range(4))
BOTTOM, LINE, COLUMNS_FIRST = (tl.constexpr(column) for column in range(4, 7))
# then, for each pass, the sizes before and after it, where the window begins, whether it is
# mirrored, and where its weights begin
PASSES, PASS, COLUMNS = tl.constexpr(7), tl.constexpr(5), tl.constexpr(17)
IN_SIZE, OUT_SIZE, ORIGIN, BACKWARDS, WEIGHTS = (tl.constexpr(column) for column in range(5))


def places_reference(
    start: int, count: int, size: int, flip: bool, device: torch.device
) -> torch.Tensor:
    """Return the places start, start + 1, ... reflected into 0 to size - 1, int64 (count,),
    backwards if `flip`; the outermost is not repeated."""
    steps = torch.arange(count, device=device)
    period = max(2 * (size - 1), 1)
    place = ((start + (steps.flip(0) if flip else steps)).abs()) % period
    return torch.minimum(place, period - place)


def _bicubic_reference(x: torch.Tensor) -> torch.Tensor:
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


def weights_reference(
    in_size: int, out_size: int, places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first input of the n outputs at `places`, int64 (n,), and the weights of the
    inputs from it on, int32 (n, taps)."""
    scale = in_size / out_size
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    centre = (places.double() + 0.5) * scale
    first = (centre - support + 0.5).long().clamp(min=0)
    count = (centre + support + 0.5).long().clamp(max=in_size) - first
    taps = torch.arange(math.ceil(support) * 2 + 1, device=places.device)
    distance = (taps + first[:, None] - centre[:, None] + 0.5) * (1.0 / stretch)
    value = torch.where(taps < count[:, None], _bicubic_reference(distance), 0.0)
    total = torch.zeros_like(centre)
    for column in value.unbind(1):  # one after the other, as the sum is rounded at each step
        total = total + column
    share = value / total[:, None]
    return first, (share * (1 << BITS) + torch.where(share < 0, -0.5, 0.5)).int()


@triton.jit
def _value(tap, first, count, centre, share):
    """Return the filter's value for an input; 0 for one that the output does not take."""
    x = tl.abs((tap + first).to(tl.float64) - centre + 0.5) * share
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    value = tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
    return tl.where(tap < count, value, 0.0)


@triton.jit
def _resize_weights_kernel(table_ptr, inputs_ptr, weights_ptr, S, size, BLOCK: tl.constexpr):
    """Compute the weights of BLOCK outputs, of any pass of any crop; grid: blocks of outputs. size:
    the number of outputs."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    row = offs // S
    place = offs % S
    table_ptr += row // 2 * COLUMNS + PASSES + row % 2 * PASS
    in_size = tl.load(table_ptr + IN_SIZE, mask=mask, other=1)
    out_size = tl.load(table_ptr + OUT_SIZE, mask=mask, other=1)
    backwards = tl.load(table_ptr + BACKWARDS, mask=mask, other=0) != 0
    weights_ptr += tl.load(table_ptr + WEIGHTS, mask=mask, other=0) + place
    place = tl.where(backwards, S - 1 - place, place)
    place = tl.abs(tl.load(table_ptr + ORIGIN, mask=mask, other=0) + place)
    period = tl.maximum(2 * (out_size - 1), 1)
    place = tl.minimum(place % period, period - place % period)
    scale = in_size.to(tl.float64) / out_size.to(tl.float64)
    stretch = tl.maximum(scale, 1.0)
    support = 2.0 * stretch
    centre = (place.to(tl.float64) + 0.5) * scale
    first = tl.maximum((centre - support + 0.5).to(tl.int32), 0)
    count = tl.minimum((centre + support + 0.5).to(tl.int32), in_size.to(tl.int32)) - first
    tl.store(inputs_ptr + offs * 2, first, mask=mask)
    tl.store(inputs_ptr + offs * 2 + 1, count, mask=mask)
    # a pass reads as many weights of each output as the output with the most has; the others are 0
    reserved = tl.ceil(support).to(tl.int32) * 2 + 1
    taps = tl.max(tl.where(mask, reserved, 0))
    share = 1.0 / stretch
    total = tl.zeros((BLOCK,), tl.float64)
    tap = 0
    while tap < taps:
        total += _value(tap, first, count, centre, share)
        tap += 1
    tap = 0
    while tap < taps:
        value = _value(tap, first, count, centre, share) / total * 4194304.0  # 2^BITS
        weight = (value + tl.where(value < 0.0, -0.5, 0.5)).to(tl.int32)
        tl.store(weights_ptr + tap * S, weight, mask=mask & (tap < reserved))
        tap += 1


def launch_weights(table: torch.Tensor, size: int, taps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the passes need: the first input of each output and their number, int32 (B, 2, S,
    2), and the weights, int32 (taps, S). size: S; taps: the number of taps of all passes
    together."""
    inputs = table.new_empty(len(table), 2, size, 2, dtype=torch.int32)
    weights = table.new_empty(taps, size, dtype=torch.int32)
    outputs = 2 * len(table) * size
    launch = find_launch("resize_weights", table.device, bits=8)
    grid = (blocks_of(outputs, launch["BLOCK"]),)
    _resize_weights_kernel[grid](table, inputs, weights, size, outputs, **launch, **EXACT)
    return inputs, weights
