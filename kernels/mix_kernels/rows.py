"""Functions that `mix`, `mix_patches` and `mix_pixels` share: their arguments, the formula, and
stores of a block of mixed pixels as patches and as images."""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.channels_last import store_channels_last, store_planes
from fastdeit.kernels.normalise import DTYPES, Pixels, check_pixels

Shape = tuple[int, int, int, int]
"""The sizes (B, C, H, W) of images."""


def shape_of(images: torch.Tensor | Pixels) -> Shape:
    """Return (B, C, H, W) of what is mixed."""
    if isinstance(images, Pixels):
        batch, height, width, channels = images.images.shape
    else:
        batch, channels, height, width = images.shape
    return batch, channels, height, width


def dtype_of(images: torch.Tensor | Pixels) -> torch.dtype:
    """Return the dtype of what is mixed; fp32 for pixels that are normalised on the way."""
    return torch.float32 if isinstance(images, Pixels) else images.dtype


def empty_images(
    shape: Shape, out_dtype: torch.dtype, device: torch.device, channels_last: bool
) -> torch.Tensor:
    """Allocate images (B, C, H, W), contiguous or channels last."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=out_dtype, device=device, memory_format=layout)


def empty_patches(
    shape: Shape, patch_size: int, out_dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Allocate patches (B, N, C·P·P) of images with this shape."""
    batch, channels, height, width = shape
    count = (height // patch_size) * (width // patch_size)
    size = channels * patch_size**2
    return torch.empty((batch, count, size), dtype=out_dtype, device=device)


def make_dense(images: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return the images (B, C, H, W) in one of the two memory formats that the kernels read, and
    whether it is channels last."""
    channels_last = (
        images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    )
    return (images if channels_last else images.contiguous()), channels_last


def check_inputs(
    images: torch.Tensor | Pixels,
    lam: torch.Tensor,
    box: torch.Tensor,
    out_dtype: torch.dtype | None,
) -> None:
    """Raise ValueError for an odd batch, another dtype or a shape that does not fit."""
    if isinstance(images, Pixels):
        check_pixels(images)
    elif images.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W) (got {tuple(images.shape)})")
    batch = shape_of(images)[0]
    if batch % 2:
        raise ValueError(f"images must be pairs, B even (got {shape_of(images)})")
    if lam.shape != (batch,) or box.shape != (batch, 4):
        raise ValueError(
            f"lam {tuple(lam.shape)} and box {tuple(box.shape)} must be ({batch},) and ({batch}, 4)"
        )
    if lam.dtype != torch.float32 or box.dtype != torch.int32:
        raise ValueError(f"lam must be float32 and box int32 (got {lam.dtype} and {box.dtype})")
    dtype = dtype_of(images)
    if not {dtype, out_dtype or dtype} <= set(DTYPES):
        raise ValueError(
            f"images and out_dtype must be among {DTYPES} (got {dtype} and {out_dtype})"
        )


@triton.jit
def load_pair(lam_ptr, box_ptr, pair, y, x):
    """Return lam of both rows, whether CutMix mixes the pair, and whether the pixels (y, x) are
    inside the box."""
    lam_a = tl.load(lam_ptr + pair * 2)
    lam_b = tl.load(lam_ptr + pair * 2 + 1)
    y0 = tl.load(box_ptr + pair * 8)
    x0 = tl.load(box_ptr + pair * 8 + 1)
    y1 = tl.load(box_ptr + pair * 8 + 2)
    x1 = tl.load(box_ptr + pair * 8 + 3)
    inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
    return lam_a, lam_b, (y1 > y0) & (x1 > x0), inside


@triton.jit
def mix_row(own, other, lam, is_cut, inside):
    """Return mixed elements of a row, fp32: by CutMix where `is_cut`, else by Mixup."""
    return tl.where(is_cut, tl.where(inside, other, own), lam * own + (1.0 - lam) * other)


@triton.jit
def _store_patches(
    out_ptr,
    red,
    green,
    blue,
    start,
    SIZE: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pixel = start + tl.arange(0, BLOCK)
    mask = pixel < SIZE
    y = pixel // W
    x = pixel % W
    offs = ((y // P) * (W // P) + x // P) * (3 * P * P) + (y % P) * P + x % P
    # pixels of a row within one patch are still neighbours; the compiler cannot see this through
    # the divisions
    RUN: tl.constexpr = P & -P
    offs = tl.max_contiguous(tl.multiple_of(offs, RUN), RUN)
    tl.store(out_ptr + offs, red, mask=mask)
    tl.store(out_ptr + P * P + offs, green, mask=mask)
    tl.store(out_ptr + 2 * P * P + offs, blue, mask=mask)


@triton.jit
def mix_block(
    a,
    b,
    tensors,
    pair,
    start,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mix BLOCK pixels of a pair, from pixel `start` on, and write patches, images or both.

    a, b: red, green and blue of its rows, fp32. tensors: pointers to the batch's lam, box, patches
    and images; of the last two, one may be None.
    """
    lam_ptr, box_ptr, patches_ptr, images_ptr = tensors
    pixel = start + tl.arange(0, BLOCK)
    lam_a, lam_b, is_cut, inside = load_pair(lam_ptr, box_ptr, pair, pixel // W, pixel % W)
    for side in tl.static_range(2):
        own = a if side == 0 else b
        other = b if side == 0 else a
        lam = lam_a if side == 0 else lam_b
        dtype = (images_ptr if patches_ptr is None else patches_ptr).dtype.element_ty
        red = mix_row(own[0], other[0], lam, is_cut, inside).to(dtype)
        green = mix_row(own[1], other[1], lam, is_cut, inside).to(dtype)
        blue = mix_row(own[2], other[2], lam, is_cut, inside).to(dtype)
        first = (pair * 2 + side) * (3 * H * W)
        if patches_ptr is not None:
            _store_patches(patches_ptr + first, red, green, blue, start, H * W, W, P, BLOCK)
        if images_ptr is not None:
            if LAST:
                store_channels_last(images_ptr + first, red, green, blue, start, H * W, BLOCK)
            else:
                store_planes(images_ptr + first, red, green, blue, start, H * W, BLOCK)
