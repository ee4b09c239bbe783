"""Mixup and CutMix as in mix.py, with the result cut into the patches that the student embeds.

images, lam, box and the formula: kernels/mix.py. A patch has the elements (c, ph, pw) of a
convolution's weight, so the patch embedding is one matrix product. A program reads a block of
pixels of both rows of a pair, all channels, and writes their patches; for a live teacher also the
mixed images, channels last, from the same read. Bytes per image, with s and t the element sizes in
and out: reads 3·H·W·s, writes 3·H·W·t, and 3·H·W·t more with images. Called once a micro-step for
the student.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.backend import is_fused
from fastdeit.kernels.launch_configs import blocks_of, find_launch
from fastdeit.kernels.mix import mix_plainly, mix_reference
from fastdeit.kernels.mix_kernels.pixels import mix_pixels
from fastdeit.kernels.mix_kernels.rows import (
    check_inputs,
    dtype_of,
    empty_images,
    empty_patches,
    make_dense,
    mix_block,
    shape_of,
)
from fastdeit.kernels.normalise import Pixels
from fastdeit.kernels.operators import operator

MAX_PATCH_SIZE = 32
"""The largest side of a patch, in pixels."""


def mix_patches_reference(
    images: torch.Tensor | Pixels,
    lam: torch.Tensor,
    box: torch.Tensor,
    patch_size: int,
    out_dtype: torch.dtype | None = None,
    with_images: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mix, then cut into patches, in plain torch; arguments and result as `mix_patches`."""
    mixed = mix_reference(images, lam, box, out_dtype, channels_last=True)
    return _cut(mixed, patch_size), mixed if with_images else None


def _cut(mixed: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Return the patches (B, N, C·P·P) of images (B, C, H, W), contiguous."""
    height, width = mixed.shape[2] // patch_size, mixed.shape[3] // patch_size
    # (B, C, H/P, P, W/P, P)
    grid = mixed.unflatten(3, (width, patch_size)).unflatten(2, (height, patch_size))
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2).contiguous()


@triton.jit
def _mix_patches_fwd_kernel(
    images_ptr,
    lam_ptr,
    box_ptr,
    patches_ptr,
    mixed_ptr,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    IN_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mix BLOCK pixels of both images of a pair, into patches of P · P pixels, and into images
    unless mixed_ptr is None; grid: pairs, blocks of pixels."""
    pair = tl.program_id(0).to(tl.int64)
    # a block of pixels and all of its channels; reads are in order, writes in runs of P elements
    start = tl.program_id(1) * BLOCK
    pixel = start + tl.arange(0, BLOCK)
    mask = pixel < H * W
    PLANE_IN: tl.constexpr = 1 if IN_LAST else H * W
    a_ptr = images_ptr + pair * 2 * (3 * H * W) + (pixel * 3 if IN_LAST else pixel)
    b_ptr = a_ptr + 3 * H * W
    red_a = tl.load(a_ptr, mask=mask, other=0.0).to(tl.float32)
    red_b = tl.load(b_ptr, mask=mask, other=0.0).to(tl.float32)
    green_a = tl.load(a_ptr + PLANE_IN, mask=mask, other=0.0).to(tl.float32)
    green_b = tl.load(b_ptr + PLANE_IN, mask=mask, other=0.0).to(tl.float32)
    blue_a = tl.load(a_ptr + 2 * PLANE_IN, mask=mask, other=0.0).to(tl.float32)
    blue_b = tl.load(b_ptr + 2 * PLANE_IN, mask=mask, other=0.0).to(tl.float32)
    a = (red_a, green_a, blue_a)
    b = (red_b, green_b, blue_b)
    tensors = (lam_ptr, box_ptr, patches_ptr, mixed_ptr)
    mix_block(a, b, tensors, pair, start, H, W, P, True, BLOCK)


def _mix_patches_fake(
    images: torch.Tensor,
    lam: torch.Tensor,
    box: torch.Tensor,
    patch_size: int,
    out_dtype: torch.dtype,
    with_images: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape, device = shape_of(images), images.device
    patches = empty_patches(shape, patch_size, out_dtype, device)
    batch = len(images) if with_images else 0
    return patches, empty_images((batch, *shape[1:]), out_dtype, device, channels_last=True)


@operator("mix_patches", fake=_mix_patches_fake)
def mix_patches_triton(
    images: torch.Tensor,
    lam: torch.Tensor,
    box: torch.Tensor,
    patch_size: int,
    out_dtype: torch.dtype,
    with_images: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel; as `mix_patches`, but images are an empty tensor without with_images."""
    images, in_last = make_dense(images)
    patches, mixed = _mix_patches_fake(images, lam, box, patch_size, out_dtype, with_images)
    batch, _, height, width = images.shape
    launch = find_launch("mix_patches_fwd", images.device, bits=8 * images.element_size())
    grid = (batch // 2, blocks_of(height * width, launch["BLOCK"]))
    if patches.numel():
        _mix_patches_fwd_kernel[grid](
            images,
            lam.contiguous(),
            box.contiguous(),
            patches,
            mixed if with_images else None,
            H=height,
            W=width,
            P=patch_size,
            IN_LAST=in_last,
            **launch,
        )
    return patches, mixed


def mix_patches(
    images: torch.Tensor | Pixels,
    lam: torch.Tensor,
    box: torch.Tensor,
    patch_size: int,
    out_dtype: torch.dtype | None = None,
    with_images: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mix as `mix` does, and cut the result into patches for an embedding by one matrix product; no
    gradient.

    images (or `Pixels`), lam, box: as for `mix`, H and W multiples of patch_size (1 to 32). Returns
    patches (B, N, 3·P·P) in out_dtype (default: images'), N = (H / P)·(W / P) in row order,
    elements in the order (c, ph, pw) of a convolution's weight: F.linear(patches,
    weight.flatten(1), bias) is the convolution with stride P. With with_images the mixed images (B,
    3, H, W) beside them, channels last, from the same read; else None. Raises ValueError as `mix`
    does, for other than 3 channels, and for sizes that do not divide.
    """
    check_inputs(images, lam, box, out_dtype)
    if not 1 <= patch_size <= MAX_PATCH_SIZE:
        raise ValueError(f"patch_size must be 1 to {MAX_PATCH_SIZE} (got {patch_size})")
    batch, channels, height, width = shape_of(images)
    if channels != 3 or height % patch_size or width % patch_size:
        rule = f"(B, 3, H, W), H and W multiples of {patch_size}"
        raise ValueError(f"images must be {rule} (got {(batch, channels, height, width)})")
    out_dtype = out_dtype or dtype_of(images)
    if not is_fused(lam):
        mixed = mix_plainly(images, lam, box, out_dtype, channels_last=with_images)
        return _cut(mixed, patch_size), mixed if with_images else None
    if isinstance(images, Pixels):
        patches, mixed = mix_pixels(images, lam, box, patch_size, out_dtype, with_images)
    else:
        patches, mixed = mix_patches_triton(images, lam, box, patch_size, out_dtype, with_images)
    return patches, mixed if with_images else None
