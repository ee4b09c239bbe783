"""Normalisation and RandomErasing of augmented crops, the last operations of a sample, with the
same bits as fastdeit.data.augment.sample.

    out[c] = levels[c, image[c]]                                               outside the box
    out = 0 ("const"), one normal colour ("rand"), a normal number each ("pixel")       inside

images: uint8 (B, H, W, 3), contiguous; levels: fp32 (3, 256), of `level_values`; erase: int32 (B,
4) y, x, height, width; key: int64 (B,), of the noise (noise.py). out: (B, 3, H, W) fp32, bf16 or
fp16, rounded from fp32. Bytes per image, with t the element size out: reads 3·H·W, writes 3·H·W·t
(0.5 MB at 224, 16 bit). A training step mixes from the same arguments (mix_kernels/pixels.py), so
that its normalised images are never written; this kernel is for callers that need them unmixed.
Source: timm 1.0.31, data/random_erasing.py; torchvision 0.26, ToTensor and Normalize.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastdeit.kernels.augment_kernels.ops import EXACT
from fastdeit.kernels.backend import is_fused
from fastdeit.kernels.channels_last import load_channels_last, store_channels_last, store_planes
from fastdeit.kernels.launch_configs import blocks_of, find_launch
from fastdeit.kernels.noise import noise_reference, normals
from fastdeit.kernels.operators import operator

MODES = ("const", "rand", "pixel")
"""The kinds of filling of an erased box; timm's --remode."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes of the result."""


class Pixels(NamedTuple):
    """A batch before normalisation and erasing: the first arguments of `normalise`."""

    images: torch.Tensor
    """The augmented crops, uint8 (B, H, W, 3)."""
    levels: torch.Tensor
    """The value of each level in each channel, float32 (3, 256)."""
    erase: torch.Tensor
    """The erased box of each image, int32 (B, 4): y, x, height, width; without height nothing is
    erased."""
    mode: str
    """The filling of the boxes, one of MODES."""
    key: torch.Tensor
    """The key of each image's noise, int64 (B,): the plan's 64 bits."""


def level_values(mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return what ToTensor and Normalize make of each level, float32 (3, 256) on the CPU."""
    levels = torch.arange(256, dtype=torch.float32)
    scaled = levels / torch.full_like(levels, 255)  # by a number, torch may multiply instead
    center = torch.tensor(mean, dtype=torch.float32).view(3, 1)
    return (scaled - center) / torch.tensor(std, dtype=torch.float32).view(3, 1)


def normalise_reference(
    images: torch.Tensor,
    levels: torch.Tensor,
    erase: torch.Tensor,
    mode: str,
    key: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> torch.Tensor:
    """Normalise and erase in plain torch; arguments and result as `normalise`."""
    batch, height, width, _ = images.shape
    channel = torch.arange(3, device=images.device)
    planes = levels[channel, images.long()].permute(0, 3, 1, 2)
    y0, x0, rows, columns = erase.view(batch, 4, 1, 1).unbind(1)  # each (B, 1, 1)
    y = torch.arange(height, device=images.device).view(-1, 1) - y0
    x = torch.arange(width, device=images.device) - x0
    inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    image, row, column = inside.nonzero(as_tuple=True)
    number = (y * columns + x)[inside] if mode == "pixel" else torch.zeros_like(image)
    fill = noise_reference(number.long(), key[image]).T if mode != "const" else 0.0
    planes[image, :, row, column] = fill
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return planes.to(dtype).contiguous(memory_format=layout)


@triton.jit
def touches(box_ptr, start, W, BLOCK):
    """Return True if the box y, x, height, width has a pixel among BLOCK pixels of a row-by-row
    image of width W, from `start` on."""
    y0 = tl.load(box_ptr)
    x0 = tl.load(box_ptr + 1)
    height = tl.load(box_ptr + 2)
    end = x0 + tl.load(box_ptr + 3)
    # the box's first pixel that is not before `start`
    row = start // W
    column = start % W
    y = tl.maximum(tl.where(column < end, row, row + 1), y0)
    x = tl.where(y == row, tl.maximum(column, x0), x0)
    return (end > x0) & (y < y0 + height) & (y * W + x < start + BLOCK)


@triton.jit
def _erase(red, green, blue, box_ptr, key, start, W, MODE: tl.constexpr, BLOCK: tl.constexpr):
    """Fill those of BLOCK pixels, from `start` on, that are inside the box."""
    pixel = start + tl.arange(0, BLOCK)
    y = pixel // W - tl.load(box_ptr)
    x = pixel % W - tl.load(box_ptr + 1)
    width = tl.load(box_ptr + 3)
    inside = (y >= 0) & (y < tl.load(box_ptr + 2)) & (x >= 0) & (x < width)
    if MODE == 0:
        return tl.where(inside, 0.0, red), tl.where(inside, 0.0, green), tl.where(inside, 0.0, blue)
    r, g, b = normals(y * width + x if MODE == 2 else pixel * 0, key)
    return tl.where(inside, r, red), tl.where(inside, g, green), tl.where(inside, b, blue)


@triton.jit
def load_normalised(
    pixels,
    image,
    start,
    H: tl.constexpr,
    W: tl.constexpr,
    MODE: tl.constexpr,
    ERASE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return BLOCK pixels of the image with this number, from pixel `start` on: red, green and
    blue, fp32, normalised and, with ERASE, erased. Beyond the image they are those of level 0.

    pixels: pointers to images, levels, erase and key.
    """
    images_ptr, levels_ptr, erase_ptr, key_ptr = pixels
    r, g, b = load_channels_last(images_ptr + image * (H * W * 3), start, H * W, BLOCK)
    red = tl.load(levels_ptr + r.to(tl.int32))
    green = tl.load(levels_ptr + 256 + g.to(tl.int32))
    blue = tl.load(levels_ptr + 512 + b.to(tl.int32))
    if ERASE:
        box_ptr = erase_ptr + image * 4
        if touches(box_ptr, start, W, BLOCK):
            key = tl.load(key_ptr + image)
            red, green, blue = _erase(red, green, blue, box_ptr, key, start, W, MODE, BLOCK)
    return red, green, blue


@triton.jit
def _normalise_block(
    pixels,
    out_ptr,
    image,
    start,
    H: tl.constexpr,
    W: tl.constexpr,
    MODE: tl.constexpr,
    LAST: tl.constexpr,
    ERASE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    red, green, blue = load_normalised(pixels, image, start, H, W, MODE, ERASE, BLOCK)
    dtype = out_ptr.dtype.element_ty
    red, green, blue = red.to(dtype), green.to(dtype), blue.to(dtype)
    out_ptr += image * (3 * H * W)
    if LAST:
        store_channels_last(out_ptr, red, green, blue, start, H * W, BLOCK)
    else:
        store_planes(out_ptr, red, green, blue, start, H * W, BLOCK)


@triton.jit
def _normalise_kernel(
    images_ptr,
    levels_ptr,
    erase_ptr,
    key_ptr,
    out_ptr,
    H: tl.constexpr,
    W: tl.constexpr,
    MODE: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_PART: tl.constexpr,
):
    """Normalise and erase BLOCK pixels of one image; grid: images, blocks of pixels."""
    image = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK
    pixels = (images_ptr, levels_ptr, erase_ptr, key_ptr)
    if touches(erase_ptr + image * 4, start, W, BLOCK):
        # in smaller blocks: few registers, and no noise for a block without erased pixels
        for part in range(0, BLOCK, BLOCK_PART):
            first = start + part
            _normalise_block(pixels, out_ptr, image, first, H, W, MODE, LAST, True, BLOCK_PART)
    else:
        _normalise_block(pixels, out_ptr, image, start, H, W, MODE, LAST, False, BLOCK)


def _normalise_fake(
    images: torch.Tensor,
    levels: torch.Tensor,
    erase: torch.Tensor,
    key: torch.Tensor,
    mode: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> torch.Tensor:
    batch, height, width, _ = images.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch, 3, height, width)
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=layout)


@operator("normalise", fake=_normalise_fake)
def normalise_triton(
    images: torch.Tensor,
    levels: torch.Tensor,
    erase: torch.Tensor,
    key: torch.Tensor,
    mode: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> torch.Tensor:
    """Launch the kernel; arguments as checked by `normalise`, mode its place in MODES. Takes CPU
    tensors under TRITON_INTERPRET=1."""
    out = _normalise_fake(images, levels, erase, key, mode, dtype, channels_last)
    batch, height, width, _ = images.shape
    launch = find_launch("normalise", images.device, bits=8)
    grid = (batch, blocks_of(height * width, launch["BLOCK"]))
    if out.numel():
        _normalise_kernel[grid](
            images.contiguous(),
            levels.contiguous(),
            erase.contiguous(),
            key.contiguous(),
            out,
            H=height,
            W=width,
            MODE=mode,
            LAST=channels_last,
            **launch,
            **EXACT,
        )
    return out


def check_pixels(pixels: Pixels) -> None:
    """Raise ValueError on another dtype, a shape that does not fit or an unknown mode."""
    images, levels, erase, mode, key = pixels
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"images must be uint8 (B, H, W, 3) (got {images.dtype} {tuple(images.shape)})"
        )
    rules = (
        ("levels", levels, torch.float32, (3, 256)),
        ("erase", erase, torch.int32, (len(images), 4)),
        ("key", key, torch.int64, (len(images),)),
    )
    for name, tensor, dtype, shape in rules:
        if tensor.dtype != dtype or tensor.shape != shape:
            got = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ValueError(f"{name} must be {dtype} {shape} (got {got})")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)} (got {mode!r})")


def normalise(
    images: torch.Tensor,
    levels: torch.Tensor,
    erase: torch.Tensor,
    mode: str,
    key: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> torch.Tensor:
    """Normalise augmented crops and erase a box of each; the inputs do not change, no gradient.

    images: uint8 (B, H, W, 3). levels: float32 (3, 256), of `level_values`, on their device.
    erase: int32 (B, 4), y, x, height, width; without height nothing is erased. mode: one of MODES.
    key: int64 (B,), the 64 bits of the plan's noise_key. Returns (B, 3, H, W) in dtype (fp32, bf16
    or fp16, rounded from fp32) and contiguous or channels-last memory. Raises ValueError as
    `check_pixels`, or for another dtype.
    """
    check_pixels(Pixels(images, levels, erase, mode, key))
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be among {DTYPES} (got {dtype})")
    if is_fused(images):
        number = MODES.index(mode)
        return normalise_triton(images, levels, erase, key, number, dtype, channels_last)
    return normalise_reference(images, levels, erase, mode, key, dtype, channels_last)
