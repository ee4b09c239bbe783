"""Operations of `augment` that map a level to a level: the image's statistics, then a table, uint8
(3, 256).

    AutoContrast   255 · (level - low) / (high - low), in double precision, truncated
    Equalize       ⌊(step / 2 + pixels below the level) / step⌋,
                   step = ⌊(pixels - those of the highest level) / 255⌋
    Contrast       away from or towards the mean level of grey; Brightness from black
    Invert, Posterize, Solarize, SolarizeAdd

Statistics are integers: one program counts each chunk of an image, and the kernel of the tables
adds the counts, so they do not depend on an order. Bytes per image: reads 3·H·W if an operation
needs them, else nothing. Source: Pillow 12.3, src/PIL/ImageOps.py and ImageEnhance.py; timm 1.0.31,
data/auto_augment.py.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.augment_kernels.ops import (
    AUTO_CONTRAST,
    BRIGHTNESS,
    CONTRAST,
    EQUALIZE,
    EXACT,
    INVERT,
    POSTERIZE,
    SOLARIZE,
    SOLARIZE_ADD,
    STATISTICS,
    active_op,
    bits_of,
    blend,
    blend_reference,
    gray,
    gray_reference,
)
from fastdeit.kernels.launch_configs import blocks_of, find_launch


def table_reference(name: str, images: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Return the tables uint8 (B, 3, 256) for images, uint8 (B, H, W, 3), with the argument a,
    float64 (B,)."""
    level = torch.arange(256, device=images.device).expand(len(images), 3, 256)
    a = a.view(-1, 1, 1)
    if name == "AutoContrast":
        low, high = (x.long().unsqueeze(-1) for x in (images.amin((1, 2)), images.amax((1, 2))))
        # a number over a tensor would be the tensor's reciprocal times the number
        scale = torch.where(high > low, torch.full_like(a, 255.0) / (high - low).clamp(min=1), 1.0)
        offset = torch.where(high > low, -low.double() * scale, 0.0)
        table = (level.double() * scale + offset).clamp(0, 255)
    elif name == "Equalize":
        table = _equalize_reference(images, level)
    elif name == "Invert":
        table = 255 - level
    elif name == "PosterizeIncreasing":
        table = level & -(1 << (8 - a.long()).clamp(min=0))
    elif name == "SolarizeIncreasing":
        table = torch.where(level < a.long(), level, 255 - level)
    elif name == "SolarizeAdd":
        table = torch.where(level < 128, (level + a.long()).clamp(max=255), level)
    else:
        base = (
            torch.zeros_like(level)
            if name == "BrightnessIncreasing"
            else _mean_gray_reference(images).view(-1, 1, 1)
        )
        table = blend_reference(base, level, a)
    return table.to(torch.uint8)


def look_up_reference(images: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Replace each level of images, uint8 (B, H, W, 3), by its entry in the image's and channel's
    table, uint8 (B, 3, 256)."""
    planes = images.flatten(1, 2).mT.long()  # (B, 3, H·W)
    return table.gather(2, planes).mT.reshape(images.shape)


def _equalize_reference(images: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    planes = images.flatten(1, 2).mT.long()
    counts = torch.zeros_like(level).scatter_add(2, planes, torch.ones_like(planes))
    highest = torch.where(counts > 0, level, 0).amax(2, keepdim=True)
    step = (planes.shape[2] - counts.gather(2, highest)) // 255
    below = step // 2 + counts.cumsum(2) - counts
    return torch.where(step > 0, (below // step.clamp(min=1)).clamp(max=255), level)


def _mean_gray_reference(images: torch.Tensor) -> torch.Tensor:
    """Return ImageStat's mean of the grey picture, rounded: int64 (B,)."""
    levels = gray_reference(images).flatten(1)
    return (levels.sum(1).double() / levels.shape[1] + 0.5).long()


@triton.jit(do_not_specialize=["layers", "layer", "allowed", "pixels", "chunks"])
def _augment_statistics_kernel(
    images_ptr,
    ops_ptr,
    counts_ptr,
    layers,
    layer,
    allowed,
    pixels,
    chunks,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Count the levels of BLOCK · STEPS pixels of one image, or sum their grey, into int32
    (B, chunks, 3, 256); grid: images, chunks."""
    image = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    op = active_op(ops_ptr, image, layer, layers, allowed)
    images_ptr += image * pixels * 3
    counts_ptr += (image * chunks + chunk) * (3 * 256)
    first = chunk * (BLOCK * STEPS)
    if (op == AUTO_CONTRAST) | (op == EQUALIZE):
        for channel in range(3):
            counts = tl.full((256,), 0, tl.int32)
            for step in range(STEPS):
                pixel = first + step * BLOCK + tl.arange(0, BLOCK)
                mask = pixel < pixels
                level = tl.load(images_ptr + pixel * 3 + channel, mask=mask, other=0).to(tl.int32)
                counts += tl.histogram(level, 256, mask=mask)
            tl.store(counts_ptr + channel * 256 + tl.arange(0, 256), counts)
    if op == CONTRAST:
        # one number for the chunk, stored in place of the first count
        total = tl.full((BLOCK,), 0, tl.int32)
        for step in range(STEPS):
            pixel = first + step * BLOCK + tl.arange(0, BLOCK)
            mask = pixel < pixels
            red = tl.load(images_ptr + pixel * 3, mask=mask, other=0).to(tl.int32)
            green = tl.load(images_ptr + pixel * 3 + 1, mask=mask, other=0).to(tl.int32)
            blue = tl.load(images_ptr + pixel * 3 + 2, mask=mask, other=0).to(tl.int32)
            total += gray(red, green, blue)
        tl.store(counts_ptr, tl.sum(total))


@triton.jit
def _auto_contrast(counts, level):
    low = tl.min(tl.where(counts > 0, level, 255))
    high = tl.max(tl.where(counts > 0, level, 0))
    scale = 255.0 / tl.maximum(high - low, 1).to(tl.float64)
    stretched = level.to(tl.float64) * scale + -low.to(tl.float64) * scale
    stretched = tl.minimum(tl.maximum(stretched, 0.0), 255.0).to(tl.int32)
    return tl.where(high > low, stretched, level)


@triton.jit
def _equalize(counts, level, pixels):
    highest = tl.max(tl.where(counts > 0, level, 0))
    step = (pixels - tl.sum(tl.where(level == highest, counts, 0))) // 255
    below = step // 2 + tl.cumsum(counts) - counts
    return tl.where(step > 0, tl.minimum(below // tl.maximum(step, 1), 255), level)


@triton.jit(do_not_specialize=["layers", "layer", "allowed", "pixels", "chunks"])
def _augment_table_kernel(
    ops_ptr, args_ptr, counts_ptr, table_ptr, layers, layer, allowed, pixels, chunks
):
    """Fill one channel of the table of one image, in uint8 (B, 3, 256); grid: images, 3."""
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1)
    op = active_op(ops_ptr, image, layer, layers, allowed)
    a = tl.load(args_ptr + (image * layers + layer) * 2)
    whole = a.to(tl.int32)
    level = tl.arange(0, 256)
    counts_ptr += image * chunks * (3 * 256)
    table = level
    if (op == AUTO_CONTRAST) | (op == EQUALIZE):
        counts = tl.full((256,), 0, tl.int32)
        chunk = 0
        while chunk < chunks:
            counts += tl.load(counts_ptr + (chunk * 3 + channel) * 256 + level)
            chunk += 1
        table = _auto_contrast(counts, level)
        if op == EQUALIZE:
            table = _equalize(counts, level, pixels)
    elif (op == CONTRAST) | (op == BRIGHTNESS):
        total = tl.full((), 0, tl.int64)
        if op == CONTRAST:
            chunk = 0
            while chunk < chunks:
                total += tl.load(counts_ptr + chunk * (3 * 256))
                chunk += 1
        base = tl.where(
            op == CONTRAST, (total.to(tl.float64) / pixels.to(tl.float64) + 0.5).to(tl.int32), 0
        )
        table = blend(base, level, a.to(tl.float32))
    elif op == INVERT:
        table = 255 - level
    elif op == POSTERIZE:
        table = level & -(1 << tl.maximum(8 - whole, 0))
    elif op == SOLARIZE:
        table = tl.where(level < whole, level, 255 - level)
    elif op == SOLARIZE_ADD:
        table = tl.where(level < 128, tl.minimum(level + whole, 255), level)
    tl.store(table_ptr + (image * 3 + channel) * 256 + level, table.to(tl.uint8))


@triton.jit
def is_table(op):
    """Return True if this image's operation is a table."""
    statistics = (op == AUTO_CONTRAST) | (op == EQUALIZE) | (op == CONTRAST)
    return (
        statistics
        | (op == BRIGHTNESS)
        | (op == INVERT)
        | (op == POSTERIZE)
        | (op == SOLARIZE)
        | (op == SOLARIZE_ADD)
    )


def launch_tables(
    images: torch.Tensor, ops: torch.Tensor, args: torch.Tensor, layer: int, allowed: int
) -> torch.Tensor:
    """Return uint8 (B, 3, 256): tables of images whose operation is one; others are undefined."""
    batch, height, width, _ = images.shape
    launch = find_launch("augment_statistics", images.device, bits=8)
    chunks = blocks_of(height * width, launch["BLOCK"] * launch["STEPS"])
    counts = images.new_empty((batch, chunks, 3, 256), dtype=torch.int32)
    table = images.new_empty((batch, 3, 256))
    where = (ops.shape[1], layer, allowed, height * width, chunks)
    if allowed & bits_of(STATISTICS):
        _augment_statistics_kernel[(batch, chunks)](images, ops, counts, *where, **launch, **EXACT)
    launch = find_launch("augment_table", images.device, bits=8)
    _augment_table_kernel[(batch, 3)](ops, args, counts, table, *where, **launch, **EXACT)
    return table
