"""`mix` and `mix_patches` of a batch that is not normalised yet: a training step on a GPU reads the
augmented crops, uint8, and writes what the model takes, in one pass.

pixels: as for `normalise`; lam, box and the formulas: kernels/mix.py, kernels/normalise.py. The
result has the bits of `mix` after `normalise` in fp32. Bytes per image, with t the element size
out: reads 3·H·W, writes 3·H·W·t, and 3·H·W·t more for patches and images; 0.45 MB at 224 in 16 bit.
With normalised images of 2 bytes in between it would be 3·H·W·(5 + t), 1.05 MB, and their memory.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.augment_kernels.ops import EXACT
from fastdeit.kernels.launch_configs import blocks_of, find_launch
from fastdeit.kernels.mix_kernels.rows import empty_images, empty_patches, mix_block
from fastdeit.kernels.normalise import MODES, Pixels, load_normalised, touches
from fastdeit.kernels.operators import operator


@triton.jit
def _mix_pixels_block(
    pixels,
    tensors,
    pair,
    start,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    MODE: tl.constexpr,
    LAST: tl.constexpr,
    ERASE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    a = load_normalised(pixels, pair * 2, start, H, W, MODE, ERASE, BLOCK)
    b = load_normalised(pixels, pair * 2 + 1, start, H, W, MODE, ERASE, BLOCK)
    mix_block(a, b, tensors, pair, start, H, W, P, LAST, BLOCK)


@triton.jit
def _mix_pixels_kernel(
    images_ptr,
    levels_ptr,
    erase_ptr,
    key_ptr,
    lam_ptr,
    box_ptr,
    patches_ptr,
    mixed_ptr,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    MODE: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_PART: tl.constexpr,
):
    """Normalise, erase and mix BLOCK pixels of both images of a pair; grid: pairs, blocks of
    pixels."""
    pair = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK
    pixels = (images_ptr, levels_ptr, erase_ptr, key_ptr)
    tensors = (lam_ptr, box_ptr, patches_ptr, mixed_ptr)
    erase_ptr += pair * 8
    if touches(erase_ptr, start, W, BLOCK) | touches(erase_ptr + 4, start, W, BLOCK):
        # in smaller blocks, as in `normalise`
        for part in range(0, BLOCK, BLOCK_PART):
            first = start + part
            _mix_pixels_block(pixels, tensors, pair, first, H, W, P, MODE, LAST, True, BLOCK_PART)
    else:
        _mix_pixels_block(pixels, tensors, pair, start, H, W, P, MODE, LAST, False, BLOCK)


def _mix_pixels_fake(
    images: torch.Tensor,
    levels: torch.Tensor,
    erase: torch.Tensor,
    key: torch.Tensor,
    mode: int,
    lam: torch.Tensor,
    box: torch.Tensor,
    patch_size: int,
    out_dtype: torch.dtype,
    with_images: bool,
    channels_last: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, height, width, _ = images.shape
    patched = (batch if patch_size else 0, 3, height, width)
    mixed = (batch if with_images else 0, 3, height, width)
    return (
        empty_patches(patched, max(patch_size, 1), out_dtype, images.device),
        empty_images(mixed, out_dtype, images.device, channels_last),
    )


@operator("mix_pixels", fake=_mix_pixels_fake)
def mix_pixels_triton(
    images: torch.Tensor,
    levels: torch.Tensor,
    erase: torch.Tensor,
    key: torch.Tensor,
    mode: int,
    lam: torch.Tensor,
    box: torch.Tensor,
    patch_size: int,
    out_dtype: torch.dtype,
    with_images: bool,
    channels_last: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel; arguments as checked by `mix` and `mix_patches`, mode: the place in MODES.

    Returns patches and images, as `mix_patches` does; with patch_size 0 the patches are an empty
    tensor, and without with_images the images. Takes CPU tensors under TRITON_INTERPRET=1.
    """
    options = (patch_size, out_dtype, with_images, channels_last)
    patches, mixed = _mix_pixels_fake(images, levels, erase, key, mode, lam, box, *options)
    batch, height, width, _ = images.shape
    launch = find_launch("mix_pixels", images.device, bits=8)
    grid = (batch // 2, blocks_of(height * width, launch["BLOCK"]))
    if images.numel():
        _mix_pixels_kernel[grid](
            images.contiguous(),
            levels.contiguous(),
            erase.contiguous(),
            key.contiguous(),
            lam.contiguous(),
            box.contiguous(),
            patches if patch_size else None,
            mixed if with_images else None,
            H=height,
            W=width,
            P=patch_size,
            MODE=mode,
            LAST=channels_last,
            **launch,
            **EXACT,
        )
    return patches, mixed


def mix_pixels(
    pixels: Pixels,
    lam: torch.Tensor,
    box: torch.Tensor,
    patch_size: int,
    out_dtype: torch.dtype,
    with_images: bool,
    channels_last: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call the operator with pixels as they come; arguments and result as `mix_pixels_triton`."""
    images, levels, erase, mode, key = pixels
    options = (patch_size, out_dtype, with_images, channels_last)
    return mix_pixels_triton(images, levels, erase, key, MODES.index(mode), lam, box, *options)
