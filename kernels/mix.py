"""Mixup and CutMix of a batch of pairs, between the data pipeline and both models.

    box empty:  out_i = lam_i · x_i + (1 - lam_i) · x_partner                 (Mixup)
    otherwise:  out_i = x_partner inside the box, x_i outside                 (CutMix)

In CutMix lam changes only the target.

The partner of row i is row i ^ 1, so one program reads both rows of a pair once and writes both
results. images: (B, 3, H, W) fp32, bf16 or fp16, normalised and erased, contiguous or channels
last; lam: (B,) fp32; box: (B, 4) int32 y0, x0, y1, x1, equal for the rows of a pair. out: images in
the dtype and memory format given; math in fp32. Bytes per image, with s and t the element sizes in
and out: reads 3·H·W·s, writes 3·H·W·t (0.6 MB at 224, 16 bit). Called once a micro-step for a timm
model; our student takes patches (mix_patches.py), and pixels that are not normalised have a kernel
of their own (mix_kernels/pixels.py). Source: Zhang et al. 2018 (1710.09412), Yun et al. 2019
(1905.04899).
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.backend import is_fused
from fastdeit.kernels.launch_configs import blocks_of, find_launch
from fastdeit.kernels.mix_kernels.cpu import mix_on_cpu
from fastdeit.kernels.mix_kernels.pixels import mix_pixels
from fastdeit.kernels.mix_kernels.rows import (
    check_inputs,
    dtype_of,
    empty_images,
    load_pair,
    make_dense,
    mix_row,
    shape_of,
)
from fastdeit.kernels.normalise import Pixels, normalise_reference
from fastdeit.kernels.operators import operator


def mix_reference(
    images: torch.Tensor | Pixels,
    lam: torch.Tensor,
    box: torch.Tensor,
    out_dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> torch.Tensor:
    """Mix in plain torch, fp32 inside; arguments and result as `mix`."""
    out_dtype = out_dtype or dtype_of(images)
    x = _as_fp32(images)
    partner = x.unflatten(0, (x.shape[0] // 2, 2)).flip(1).flatten(0, 1)
    share = lam.view(-1, 1, 1, 1)
    y0, x0, y1, x1 = box.view(box.shape[0], 4, 1, 1, 1).unbind(1)  # each (B, 1, 1, 1)
    rows = torch.arange(x.shape[2], device=x.device).view(-1, 1)
    columns = torch.arange(x.shape[3], device=x.device)
    inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
    cut = torch.where(inside, partner, x)
    mixed = torch.where((y1 > y0) & (x1 > x0), cut, share * x + (1 - share) * partner)
    return empty_images(shape_of(images), out_dtype, x.device, channels_last).copy_(mixed)


def mix_plainly(
    images: torch.Tensor | Pixels,
    lam: torch.Tensor,
    box: torch.Tensor,
    out_dtype: torch.dtype,
    channels_last: bool,
) -> torch.Tensor:
    """Mix without a kernel, in the quickest way that gives the bits of `mix_reference`; arguments
    and result as there."""
    if lam.device.type != "cpu" or torch.compiler.is_compiling():
        return mix_reference(images, lam, box, out_dtype, channels_last)
    out = empty_images(shape_of(images), out_dtype, lam.device, channels_last)
    return mix_on_cpu(_as_fp32(images), lam, box, out)


def _as_fp32(images: torch.Tensor | Pixels) -> torch.Tensor:
    return (normalise_reference(*images) if isinstance(images, Pixels) else images).float()


@triton.jit
def _mix_fwd_kernel(
    images_ptr,
    lam_ptr,
    box_ptr,
    out_ptr,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    IN_LAST: tl.constexpr,
    OUT_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mix BLOCK elements of both images of a pair, read once; grid: pairs, blocks of elements."""
    pair = tl.program_id(0).to(tl.int64)
    # elements are in the order of the output, so that stores always fill whole lines of the cache
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < C * H * W
    if OUT_LAST:
        pixel = offs // C
        channel = offs % C
    else:
        pixel = offs % (H * W)
        channel = offs // (H * W)
    if IN_LAST == OUT_LAST:
        offs_in = offs
    elif IN_LAST:
        offs_in = pixel * C + channel
    else:
        offs_in = channel * (H * W) + pixel

    first = pair * 2 * (C * H * W)
    second = first + C * H * W
    a = tl.load(images_ptr + first + offs_in, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(images_ptr + second + offs_in, mask=mask, other=0.0).to(tl.float32)
    lam_a, lam_b, is_cut, inside = load_pair(lam_ptr, box_ptr, pair, pixel // W, pixel % W)
    out_a = mix_row(a, b, lam_a, is_cut, inside)
    out_b = mix_row(b, a, lam_b, is_cut, inside)
    tl.store(out_ptr + first + offs, out_a.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptr + second + offs, out_b.to(out_ptr.dtype.element_ty), mask=mask)


def _mix_fake(
    images: torch.Tensor,
    lam: torch.Tensor,
    box: torch.Tensor,
    out_dtype: torch.dtype,
    channels_last: bool,
) -> torch.Tensor:
    return empty_images(shape_of(images), out_dtype, images.device, channels_last)


@operator("mix", fake=_mix_fake)
def mix_triton(
    images: torch.Tensor,
    lam: torch.Tensor,
    box: torch.Tensor,
    out_dtype: torch.dtype,
    channels_last: bool,
) -> torch.Tensor:
    """Launch the kernel; arguments as checked by `mix`. Takes CPU tensors under
    TRITON_INTERPRET=1."""
    images, in_last = make_dense(images)
    out = empty_images(shape_of(images), out_dtype, images.device, channels_last)
    batch, channels, height, width = images.shape
    launch = find_launch("mix_fwd", images.device, bits=8 * images.element_size())
    grid = (batch // 2, blocks_of(channels * height * width, launch["BLOCK"]))
    if out.numel():
        _mix_fwd_kernel[grid](
            images,
            lam.contiguous(),
            box.contiguous(),
            out,
            C=channels,
            H=height,
            W=width,
            IN_LAST=in_last,
            OUT_LAST=channels_last,
            **launch,
        )
    return out


def mix(
    images: torch.Tensor | Pixels,
    lam: torch.Tensor,
    box: torch.Tensor,
    out_dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> torch.Tensor:
    """Mix each row with its partner, row i ^ 1, by Mixup (arXiv 1710.09412) or CutMix (arXiv
    1905.04899); the inputs do not change, no gradient.

    images: (B, 3, H, W) fp32, bf16 or fp16, B even, or `Pixels`, which are normalised and erased on
    the way, in fp32. lam: (B,) fp32. box: (B, 4) int32 y0, x0, y1, x1; empty: Mixup. Returns (B, 3,
    H, W) in out_dtype (default: images') and contiguous or channels-last memory. Raises ValueError
    for an odd batch, another dtype or a shape that does not fit.
    """
    check_inputs(images, lam, box, out_dtype)
    out_dtype = out_dtype or dtype_of(images)
    if not is_fused(lam):
        return mix_plainly(images, lam, box, out_dtype, channels_last)
    if isinstance(images, Pixels):
        return mix_pixels(images, lam, box, 0, out_dtype, True, channels_last)[1]
    return mix_triton(images, lam, box, out_dtype, channels_last)
