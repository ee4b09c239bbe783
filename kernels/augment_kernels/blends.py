"""Operations of `augment` that blend a pixel with its grey or with its neighbours' mean.

images: uint8 (B, H, W, 3), bytes of an image contiguous. Source: Pillow 12.3,
src/libImaging/Filter.c and src/PIL/ImageEnhance.py.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.augment_kernels.ops import blend, blend_reference, gray


def sharpen_reference(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Sharpen images, uint8 (B, H, W, 3), each by its factor, (B,); the border does not change."""
    out = images.clone()
    wide = images.int()
    height, width = images.shape[1:3]
    if height > 2 and width > 2:
        rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
        here = wide[:, 1:-1, 1:-1]
        total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * here
        # total / 13 rounded: 161320 / 2²² is 1 / 26, near enough for every total
        smooth = ((2 * total + 13) * 161320) >> 22
        out[:, 1:-1, 1:-1] = blend_reference(smooth, here, factor.view(-1, 1, 1, 1))
    return out


@triton.jit
def saturate(in_ptr, out_ptr, pixel, mask, factor):
    """Blend pixels of an image with their grey; pixel: their numbers, factor: fp32."""
    red = tl.load(in_ptr + pixel * 3, mask=mask, other=0).to(tl.int32)
    green = tl.load(in_ptr + pixel * 3 + 1, mask=mask, other=0).to(tl.int32)
    blue = tl.load(in_ptr + pixel * 3 + 2, mask=mask, other=0).to(tl.int32)
    level = gray(red, green, blue)
    tl.store(out_ptr + pixel * 3, blend(level, red, factor).to(tl.uint8), mask=mask)
    tl.store(out_ptr + pixel * 3 + 1, blend(level, green, factor).to(tl.uint8), mask=mask)
    tl.store(out_ptr + pixel * 3 + 2, blend(level, blue, factor).to(tl.uint8), mask=mask)


@triton.jit
def sharpen(in_ptr, out_ptr, offs, factor, height, width):
    """Sharpen the bytes of an image at offs; a byte's neighbours in its channel are 3 and 3 · width
    away."""
    mask = offs < height * width * 3
    x = (offs // 3) % width
    y = offs // (3 * width)
    inner = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
    here = tl.load(in_ptr + offs, mask=mask, other=0).to(tl.int32)
    total = 4 * here
    for row in tl.static_range(3):
        for column in tl.static_range(3):
            near = offs + ((row - 1) * width + (column - 1)) * 3
            total += tl.load(in_ptr + near, mask=inner, other=0).to(tl.int32)
    # as in the reference
    smooth = ((2 * total + 13) * 161320) >> 22
    level = tl.where(inner, blend(smooth, here, factor), here)
    tl.store(out_ptr + offs, level.to(tl.uint8), mask=mask)
