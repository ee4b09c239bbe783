"""Mixup and CutMix of a batch of pairs, between the data pipeline and both models.

    box empty:  out_i = lam_i · x_i + (1 - lam_i) · x_partner                 (Mixup)
    otherwise:  out_i = x_partner inside the box, x_i outside                 (CutMix; lam only enters the target)

The partner of row i is row i ^ 1, so one program reads both rows of a pair once and writes both results.
images: (B, 3, H, W) fp32, bf16 or fp16, normalised and erased, contiguous or channels last; lam: (B,) fp32; box: (B, 4)
int32 y0, x0, y1, x1, equal for the rows of a pair. out: the dtype and layout asked for; math in fp32.
Bytes per image, with s and t the element sizes in and out: reads 3·H·W·s, writes 3·H·W·t (0.6 MB at 224, 16 bit).
Source: Zhang et al. 2018 (1710.09412), Yun et al. 2019 (1905.04899).
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.configs import config

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _empty_like_output(images: torch.Tensor, out_dtype: torch.dtype, channels_last: bool) -> torch.Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(images.shape, dtype=out_dtype, device=images.device, memory_format=layout)


def mix_reference(
    images: torch.Tensor,
    lam: torch.Tensor,
    box: torch.Tensor,
    out_dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> torch.Tensor:
    """Mix in plain torch, fp32 inside; arguments and result as `mix`."""
    x = images.float()
    partner = x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    share = lam.view(-1, 1, 1, 1)
    y0, x0, y1, x1 = box.view(-1, 4, 1, 1, 1).unbind(1)  # each (B, 1, 1, 1)
    rows = torch.arange(x.shape[2], device=x.device).view(-1, 1)
    columns = torch.arange(x.shape[3], device=x.device)
    inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
    cut = torch.where(inside, partner, x)
    mixed = torch.where((y1 > y0) & (x1 > x0), cut, share * x + (1 - share) * partner)
    return _empty_like_output(images, out_dtype or images.dtype, channels_last).copy_(mixed)


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
    pair = tl.program_id(0).to(tl.int64)
    # elements run in the order of the output, so that the stores are always whole lines
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
    lam_a = tl.load(lam_ptr + pair * 2)
    lam_b = tl.load(lam_ptr + pair * 2 + 1)
    y0 = tl.load(box_ptr + pair * 8)
    x0 = tl.load(box_ptr + pair * 8 + 1)
    y1 = tl.load(box_ptr + pair * 8 + 2)
    x1 = tl.load(box_ptr + pair * 8 + 3)

    y = pixel // W
    x = pixel % W
    inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
    is_cut = (y1 > y0) & (x1 > x0)
    out_a = tl.where(is_cut, tl.where(inside, b, a), lam_a * a + (1.0 - lam_a) * b)
    out_b = tl.where(is_cut, tl.where(inside, a, b), lam_b * b + (1.0 - lam_b) * a)
    tl.store(out_ptr + first + offs, out_a.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptr + second + offs, out_b.to(out_ptr.dtype.element_ty), mask=mask)


def _is_channels_last(images: torch.Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def mix_triton(
    images: torch.Tensor,
    lam: torch.Tensor,
    box: torch.Tensor,
    out_dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> torch.Tensor:
    """Launch the kernel; arguments and result as `mix`. Takes CPU tensors under TRITON_INTERPRET=1."""
    _check(images, lam, box, out_dtype)
    in_last = _is_channels_last(images)
    images = images if in_last else images.contiguous()
    out = _empty_like_output(images, out_dtype or images.dtype, channels_last)
    batch, channels, height, width = images.shape
    launch = config("mix_fwd", images.device, bits=8 * images.element_size())
    grid = (batch // 2, triton.cdiv(channels * height * width, launch["BLOCK"]))
    if batch:
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


@torch.library.custom_op("fastdeit::mix", mutates_args=())
def _mix_op(
    images: torch.Tensor, lam: torch.Tensor, box: torch.Tensor, out_dtype: torch.dtype, channels_last: bool
) -> torch.Tensor:
    run = mix_triton if images.is_cuda else mix_reference
    return run(images, lam, box, out_dtype, channels_last)


@_mix_op.register_fake
def _mix_fake(
    images: torch.Tensor, lam: torch.Tensor, box: torch.Tensor, out_dtype: torch.dtype, channels_last: bool
) -> torch.Tensor:
    return _empty_like_output(images, out_dtype, channels_last)


def _check(images: torch.Tensor, lam: torch.Tensor, box: torch.Tensor, out_dtype: torch.dtype | None) -> None:
    batch = images.shape[0]
    if images.ndim != 4 or batch % 2:
        raise ValueError(f"images must be (B, C, H, W) with B even, got {tuple(images.shape)}")
    if lam.shape != (batch,) or box.shape != (batch, 4):
        raise ValueError(f"lam {tuple(lam.shape)} and box {tuple(box.shape)} must be ({batch},) and ({batch}, 4)")
    if lam.dtype != torch.float32 or box.dtype != torch.int32:
        raise ValueError(f"lam must be float32 and box int32, got {lam.dtype} and {box.dtype}")
    if not {images.dtype, out_dtype or images.dtype} <= set(DTYPES):
        raise ValueError(f"images are mixed in {DTYPES}, not from {images.dtype} to {out_dtype}")


def mix(
    images: torch.Tensor,
    lam: torch.Tensor,
    box: torch.Tensor,
    out_dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> torch.Tensor:
    """Mix each row with its partner, row i ^ 1; the inputs are left as they are, no gradient.

    images: (B, 3, H, W) fp32, bf16 or fp16, B even. lam: (B,) fp32. box: (B, 4) int32 y0, x0, y1, x1; empty: Mixup.
    Returns (B, 3, H, W) in out_dtype (default: images') and contiguous or channels-last memory.
    Raises ValueError on an odd batch, another dtype or a shape that does not fit.
    """
    _check(images, lam, box, out_dtype)
    return _mix_op(images, lam, box, out_dtype or images.dtype, channels_last)
