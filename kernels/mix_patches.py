"""Mix a batch of pairs as `mix` does, and cut the result into the patches that the student embeds.

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
from fastdeit.kernels.channels_last import store_channels_last
from fastdeit.kernels.launch_configs import blocks_of, find_launch
from fastdeit.kernels.mix import (
    check_inputs,
    empty_images,
    load_pair,
    make_dense,
    mix_reference,
    mix_row,
)
from fastdeit.kernels.operators import operator

MAX_PATCH_SIZE = 32


def mix_patches_reference(
    images: torch.Tensor,
    lam: torch.Tensor,
    box: torch.Tensor,
    patch_size: int,
    out_dtype: torch.dtype | None = None,
    with_images: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mix, then cut into patches, in plain torch; arguments and result as `mix_patches`."""
    mixed = mix_reference(images, lam, box, out_dtype, channels_last=True)
    height, width = images.shape[2] // patch_size, images.shape[3] // patch_size
    # (B, C, H/P, P, W/P, P)
    grid = mixed.unflatten(3, (width, patch_size)).unflatten(2, (height, patch_size))
    patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2).contiguous()
    return patches, mixed if with_images else None


@triton.jit
def _store_patches(out_ptr, red, green, blue, mask, AREA: tl.constexpr):
    tl.store(out_ptr, red, mask=mask)
    tl.store(out_ptr + AREA, green, mask=mask)
    tl.store(out_ptr + 2 * AREA, blue, mask=mask)


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
    WITH_IMAGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    # a block of pixels and all of its channels; reads are in order, writes in runs of P elements
    start = tl.program_id(1) * BLOCK
    pixel = start + tl.arange(0, BLOCK)
    mask = pixel < H * W
    PLANE_IN: tl.constexpr = 1 if IN_LAST else H * W
    first = pair * 2 * (3 * H * W)
    second = first + 3 * H * W
    a_ptr = images_ptr + first + (pixel * 3 if IN_LAST else pixel)
    b_ptr = a_ptr + 3 * H * W
    red_a = tl.load(a_ptr, mask=mask, other=0.0).to(tl.float32)
    red_b = tl.load(b_ptr, mask=mask, other=0.0).to(tl.float32)
    green_a = tl.load(a_ptr + PLANE_IN, mask=mask, other=0.0).to(tl.float32)
    green_b = tl.load(b_ptr + PLANE_IN, mask=mask, other=0.0).to(tl.float32)
    blue_a = tl.load(a_ptr + 2 * PLANE_IN, mask=mask, other=0.0).to(tl.float32)
    blue_b = tl.load(b_ptr + 2 * PLANE_IN, mask=mask, other=0.0).to(tl.float32)

    y = pixel // W
    x = pixel % W
    lam_a, lam_b, is_cut, inside = load_pair(lam_ptr, box_ptr, pair, y, x)
    offs = ((y // P) * (W // P) + x // P) * (3 * P * P) + (y % P) * P + x % P
    # pixels of a row within one patch stay neighbours; the compiler does not see through the
    # divisions
    RUN: tl.constexpr = P & -P
    offs = tl.max_contiguous(tl.multiple_of(offs, RUN), RUN)

    dtype = patches_ptr.dtype.element_ty
    red = mix_row(red_a, red_b, lam_a, is_cut, inside).to(dtype)
    green = mix_row(green_a, green_b, lam_a, is_cut, inside).to(dtype)
    blue = mix_row(blue_a, blue_b, lam_a, is_cut, inside).to(dtype)
    _store_patches(patches_ptr + first + offs, red, green, blue, mask, P * P)
    if WITH_IMAGES:
        store_channels_last(mixed_ptr + first, red, green, blue, start, H * W, BLOCK)
    red = mix_row(red_b, red_a, lam_b, is_cut, inside).to(dtype)
    green = mix_row(green_b, green_a, lam_b, is_cut, inside).to(dtype)
    blue = mix_row(blue_b, blue_a, lam_b, is_cut, inside).to(dtype)
    _store_patches(patches_ptr + second + offs, red, green, blue, mask, P * P)
    if WITH_IMAGES:
        store_channels_last(mixed_ptr + second, red, green, blue, start, H * W, BLOCK)


def _empty_patches(
    images: torch.Tensor, patch_size: int, out_dtype: torch.dtype, with_images: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, channels, height, width = images.shape
    count = (height // patch_size) * (width // patch_size)
    patches = images.new_empty((batch, count, channels * patch_size**2), dtype=out_dtype)
    return patches, empty_images(
        images if with_images else images[:0], out_dtype, channels_last=True
    )


def _mix_patches_fake(
    images: torch.Tensor,
    lam: torch.Tensor,
    box: torch.Tensor,
    patch_size: int,
    out_dtype: torch.dtype,
    with_images: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty_patches(images, patch_size, out_dtype, with_images)


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
    patches, mixed = _empty_patches(images, patch_size, out_dtype, with_images)
    batch, _, height, width = images.shape
    launch = find_launch("mix_patches_fwd", images.device, bits=8 * images.element_size())
    grid = (batch // 2, blocks_of(height * width, launch["BLOCK"]))
    if patches.numel():
        _mix_patches_fwd_kernel[grid](
            images,
            lam.contiguous(),
            box.contiguous(),
            patches,
            mixed if with_images else patches,
            H=height,
            W=width,
            P=patch_size,
            IN_LAST=in_last,
            WITH_IMAGES=with_images,
            **launch,
        )
    return patches, mixed


def mix_patches(
    images: torch.Tensor,
    lam: torch.Tensor,
    box: torch.Tensor,
    patch_size: int,
    out_dtype: torch.dtype | None = None,
    with_images: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mix as `mix` does, and cut the result into patches for an embedding by one matrix product; no
    gradient.

    images, lam, box: as for `mix`, H and W multiples of patch_size (1 to 32). Returns
    patches (B, N, 3·P·P) in out_dtype (default: images'), N = (H / P)·(W / P) in row order,
    elements in the order (c, ph, pw) of a convolution's weight: F.linear(patches,
    weight.flatten(1), bias) is the convolution with stride P. With with_images the mixed images (B,
    3, H, W) beside them, channels last, from the same read; else None. Raises ValueError as `mix`
    does, for other than 3 channels, and for sizes that do not divide.
    """
    check_inputs(images, lam, box, out_dtype)
    if not 1 <= patch_size <= MAX_PATCH_SIZE:
        raise ValueError(f"patch_size must be 1 to {MAX_PATCH_SIZE} (got {patch_size})")
    if images.shape[1] != 3 or images.shape[2] % patch_size or images.shape[3] % patch_size:
        rule = f"(B, 3, H, W), H and W multiples of {patch_size}"
        raise ValueError(f"images must be {rule} (got {tuple(images.shape)})")
    if not is_fused(images):
        return mix_patches_reference(images, lam, box, patch_size, out_dtype, with_images)
    patches, mixed = mix_patches_triton(
        images, lam, box, patch_size, out_dtype or images.dtype, with_images
    )
    return patches, mixed if with_images else None
