"""GaussianBlur of `augment`: PIL's three box blurs along the rows, then three along the columns, in
24-bit fixed point.

    box: ⌊(inner · Σ of the levels nearer than radius + outer · the two beyond + 2²³) / 2²⁴⌋,
    with the outermost pixels continued

Each box is a pass of its own, from one buffer into another; its radius differs between images and
is 0 or 1 up to a deviation of 2 pixels. Bytes per blurred image: reads 18·H·W, writes 18·H·W;
nothing is read or written of the others. Source: Pillow 12.3, src/libImaging/BoxBlur.c; Gwosdek et
al., SSVM 2011.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.augment_kernels.ops import BLUR, EXACT, active_op, sqrt_reference
from fastdeit.kernels.launch_configs import blocks_of, find_launch


def _box_weights_reference(sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the integer radius of the boxes and the weights of an inner and of an outermost pixel
    in 2^-24, int64 (B,) each; sigma: float64."""
    variance = sigma.float() * sigma.float() / 3
    length = sqrt_reference(12.0 * variance.double() + 1.0).float()
    whole = ((length.double() - 1.0) / 2.0).floor().float()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    radius = whole + part / (6 * (variance - (whole + 1) * (whole + 1)))
    inner = (torch.full_like(radius, 1 << 24) / (radius * 2 + 1)).long()
    count = radius.long()
    return count, inner, ((1 << 24) - (count * 2 + 1) * inner) >> 1


def _box_reference(
    lines: torch.Tensor, count: torch.Tensor, inner: torch.Tensor, outer: torch.Tensor
) -> torch.Tensor:
    """Blur int64 (B, lines, pixels) with one box along the last axis."""
    place = torch.arange(lines.shape[2], device=lines.device)

    def beside(steps: torch.Tensor) -> torch.Tensor:
        return lines.gather(2, (place + steps).clamp(0, lines.shape[2] - 1).expand_as(lines))

    ends = beside(-count - 1) + beside(count + 1)
    window = lines.clone()
    for steps in range(1, int(count.max()) + 1):
        window += torch.where(
            steps <= count,
            beside(torch.full_like(count, -steps)) + beside(torch.full_like(count, steps)),
            0,
        )
    return (window * inner + ends * outer + (1 << 23)) >> 24


def blur_reference(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Apply ImageFilter.GaussianBlur(sigma) to uint8 (B, H, W, 3); sigma: float64 (B,), 0: no
    change."""
    weights = [weight.view(-1, 1, 1) for weight in _box_weights_reference(sigma)]
    planes = images.permute(0, 3, 1, 2).long()
    for _ in range(2):  # the rows, then, transposed, the columns
        lines = planes.flatten(1, 2)
        for _ in range(3):
            lines = _box_reference(lines, *weights)
        planes = lines.view(planes.shape).mT.contiguous()
    return planes.permute(0, 2, 3, 1).to(torch.uint8)


@triton.jit
def _box_weights(sigma):
    """Return the reference's values as scalars; inner and outer fit 32 bits without sign."""
    variance = tl.div_rn(sigma * sigma, 3.0)
    length = tl.sqrt(12.0 * variance.to(tl.float64) + 1.0).to(tl.float32)
    whole = tl.floor((length.to(tl.float64) - 1.0) / 2.0).to(tl.float32)
    part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance)
    radius = whole + tl.div_rn(part, 6.0 * (variance - (whole + 1.0) * (whole + 1.0)))
    inner = tl.div_rn(16777216.0, radius * 2.0 + 1.0).to(tl.int32)
    count = radius.to(tl.int32)
    outer = (16777216 - (count * 2 + 1) * inner) >> 1
    return count, inner, outer


@triton.jit(do_not_specialize=["layers", "layer", "allowed", "last", "stride"])
def _augment_box_kernel(
    in_ptr,
    ops_ptr,
    args_ptr,
    out_ptr,
    layers,
    layer,
    allowed,
    size,
    last,
    stride,
    BLOCK: tl.constexpr,
):
    """Blur BLOCK bytes of one image by one box, if its operation is a blur; grid: images, blocks of
    bytes. stride: bytes between neighbours on a line; last: index of the last one."""
    image = tl.program_id(0).to(tl.int64)
    if active_op(ops_ptr, image, layer, layers, allowed) == BLUR:
        count, inner, outer = _box_weights(
            tl.load(args_ptr + (image * layers + layer) * 2).to(tl.float32)
        )
        offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = offs < size
        place = offs // stride % (last + 1)
        line_ptr = in_ptr + image * size + offs - place * stride
        window = tl.full((BLOCK,), 0, tl.uint32)
        step = -count
        while step <= count:
            near = tl.minimum(tl.maximum(place + step, 0), last)
            window += tl.load(line_ptr + near * stride, mask=mask, other=0)
            step += 1
        before = tl.maximum(place - count - 1, 0)
        after = tl.minimum(place + count + 1, last)
        ends = tl.load(line_ptr + before * stride, mask=mask, other=0).to(tl.uint32)
        ends += tl.load(line_ptr + after * stride, mask=mask, other=0)
        # at most 255 · 2²⁴ + 2²³, which fits 32 bits only without a sign
        total = window * inner.to(tl.uint32) + ends * outer.to(tl.uint32) + 8388608
        tl.store(out_ptr + image * size + offs, (total >> 24).to(tl.uint8), mask=mask)


def launch_blur(
    images: torch.Tensor,
    ops: torch.Tensor,
    args: torch.Tensor,
    layer: int,
    allowed: int,
    out: torch.Tensor,
) -> None:
    """Write the blurred images into out, uint8 (B, H, W, 3); the others in it do not change. The
    other arguments are those of `augment`, for one layer."""
    batch, height, width, _ = images.shape
    spare = torch.empty_like(images)
    size = height * width * 3
    launch = find_launch("augment_blur", images.device, bits=8)
    grid = (batch, blocks_of(size, launch["BLOCK"]))
    source = images
    for step in range(6):
        target = out if step % 2 else spare
        along = (width - 1, 3) if step < 3 else (height - 1, 3 * width)
        _augment_box_kernel[grid](
            source, ops, args, target, ops.shape[1], layer, allowed, size, *along, **launch, **EXACT
        )
        source = target
