"""Operations of an augmentation on resized crops: RandAugment's fifteen, grey and Gaussian blur,
with the same bits as PIL and timm. They do for a batch on a GPU what fastdeit.data.augment.exact
does for a sample on the CPU.

In a layer each image has its own operation. A layer computes statistics (integers) of the images
whose operation needs them, then the tables of the operations that are tables, then makes one pass
that looks up, blends, sharpens, warps or copies; Gaussian blur, where a layer may have it, adds six
passes over the images that it blurs. The host reads nothing back from the device.

images: uint8 (B, H, W, 3), contiguous; ops: int32 (B, L); args: float64 (B, L, 2). Bytes per image
and layer: reads 3·H·W, writes 3·H·W (0.3 MB at 224); statistics read the images again. Source:
Pillow 12.3, src/libImaging (Filter.c for Sharpness) and src/PIL/ImageEnhance.py; timm 1.0.31,
data/auto_augment.py.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from fastdeit.kernels.augment_kernels.blends import saturate, sharpen, sharpen_reference
from fastdeit.kernels.augment_kernels.blur import blur_reference, launch_blur
from fastdeit.kernels.augment_kernels.ops import (
    COLOR,
    EXACT,
    GRAYSCALE,
    OPS,
    ROTATE,
    SHARPNESS,
    TABLES,
    WARPS,
    active_op,
    bits_of,
    blend_reference,
    gray_reference,
)
from fastdeit.kernels.augment_kernels.tables import (
    is_table,
    launch_tables,
    look_up_reference,
    table_reference,
)
from fastdeit.kernels.augment_kernels.warp import is_warp, warp, warp_reference
from fastdeit.kernels.backend import is_fused
from fastdeit.kernels.launch_configs import blocks_of, find_launch
from fastdeit.kernels.operators import operator

FILL = (124, 116, 104)
"""ImageNet's mean colour, red, green and blue of 0 to 255, with which timm fills the pixels outside
a warped image."""

LayerOps = Sequence[Sequence[str]]
"""The names of the operations that each layer may have."""


def pack_args(ops: torch.Tensor, args: torch.Tensor) -> torch.Tensor:
    """Return timm's arguments, float64 (B, L), in the form for `augment`: float64 (B, L, 2), an
    argument and 0.

    ops: int32 (B, L); both on the CPU. A rotation in degrees becomes its cosine and sine, rounded
    as in PIL's Image.rotate.
    """
    pairs = torch.stack((args, torch.zeros_like(args)), -1)
    turned = ops == ROTATE.value
    angles = [-math.radians(degrees % 360.0) for degrees in args[turned].tolist()]
    turns = [(round(math.cos(angle), 15), round(math.sin(angle), 15)) for angle in angles]
    pairs[turned] = torch.tensor(turns, dtype=torch.float64).reshape(-1, 2)
    return pairs


def _operation_reference(
    name: str, images: torch.Tensor, args: torch.Tensor, fill: torch.Tensor
) -> torch.Tensor:
    """Apply one operation to all images; args: float64 (B, 2)."""
    a = args[:, 0]
    if name in TABLES:
        return look_up_reference(images, table_reference(name, images, a))
    if name in WARPS:
        return warp_reference(name, images, args, fill)
    if name == "SharpnessIncreasing":
        return sharpen_reference(images, a)
    if name == "GaussianBlur":
        return blur_reference(images, a)
    factor = a if name == "ColorIncreasing" else torch.zeros_like(a)
    return blend_reference(
        gray_reference(images).unsqueeze(-1), images.int(), factor.view(-1, 1, 1, 1)
    )


def augment_reference(
    images: torch.Tensor,
    ops: torch.Tensor,
    args: torch.Tensor,
    fill: Sequence[int] = FILL,
    layer_ops: LayerOps | None = None,
) -> torch.Tensor:
    """Augment in plain torch, operation by operation; arguments and result as `augment`. The host
    reads which operations there are."""
    out = images.clone()
    colour = torch.tensor(fill, dtype=torch.uint8, device=images.device)
    for layer, allowed in enumerate(_check(images, ops, args, fill, layer_ops)):
        for number, name in enumerate(OPS):
            rows = (ops[:, layer] == number).nonzero().squeeze(1)
            if allowed >> number & 1 and len(rows):
                out[rows] = _operation_reference(name, out[rows], args[rows, layer], colour)
    return out


@triton.jit(do_not_specialize=["layers", "layer", "allowed", "height", "width", "fill"])
def _augment_kernel(
    images_ptr,
    ops_ptr,
    args_ptr,
    table_ptr,
    out_ptr,
    layers,
    layer,
    allowed,
    height,
    width,
    size,
    fill,
    BLOCK: tl.constexpr,
    BLOCK_PART: tl.constexpr,
):
    """Carry out the operation of one image in one layer for BLOCK of its pixels; grid: images,
    blocks of pixels. table: uint8 (B, 3, 256); size: 3 · height · width."""
    image = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    op = active_op(ops_ptr, image, layer, layers, allowed)
    a = tl.load(args_ptr + (image * layers + layer) * 2)
    b = tl.load(args_ptr + (image * layers + layer) * 2 + 1)
    in_ptr = images_ptr + image * size
    out_ptr += image * size
    if (op == -1) | is_table(op):
        # all loads before the stores, so that they overlap
        offs = first * 3 + tl.arange(0, BLOCK)
        head = tl.load(in_ptr + offs, mask=offs < size, other=0)
        body = tl.load(in_ptr + offs + BLOCK, mask=offs + BLOCK < size, other=0)
        tail = tl.load(in_ptr + offs + 2 * BLOCK, mask=offs + 2 * BLOCK < size, other=0)
        if op != -1:
            table_ptr += image * (3 * 256)
            head = tl.load(table_ptr + offs % 3 * 256 + head.to(tl.int32))
            body = tl.load(table_ptr + (offs + BLOCK) % 3 * 256 + body.to(tl.int32))
            tail = tl.load(table_ptr + (offs + 2 * BLOCK) % 3 * 256 + tail.to(tl.int32))
        tl.store(out_ptr + offs, head, mask=offs < size)
        tl.store(out_ptr + offs + BLOCK, body, mask=offs + BLOCK < size)
        tl.store(out_ptr + offs + 2 * BLOCK, tail, mask=offs + 2 * BLOCK < size)
    elif op == SHARPNESS:
        for part in range(0, 3 * BLOCK, BLOCK_PART):
            if first * 3 + part < size:
                sharpen(
                    in_ptr,
                    out_ptr,
                    first * 3 + part + tl.arange(0, BLOCK_PART),
                    a.to(tl.float32),
                    height,
                    width,
                )
    elif (op == COLOR) | (op == GRAYSCALE):
        factor = tl.where(op == COLOR, a, 0.0).to(tl.float32)
        for part in range(0, BLOCK, BLOCK_PART):
            if first + part < height * width:
                pixel = first + part + tl.arange(0, BLOCK_PART)
                saturate(in_ptr, out_ptr, pixel, pixel < height * width, factor)
    elif is_warp(op):
        for part in range(0, BLOCK, BLOCK_PART):
            if first + part < height * width:
                warp(
                    in_ptr,
                    out_ptr,
                    first + part + tl.arange(0, BLOCK_PART),
                    op,
                    a,
                    b,
                    fill,
                    height,
                    width,
                )


def _launch_layer(
    images: torch.Tensor,
    ops: torch.Tensor,
    args: torch.Tensor,
    layer: int,
    allowed: int,
    fill: Sequence[int],
) -> torch.Tensor:
    batch, height, width, _ = images.shape
    out = torch.empty_like(images)
    # if no operation is a table, none is read
    table = (
        launch_tables(images, ops, args, layer, allowed) if allowed & bits_of(TABLES) else images
    )
    colour = fill[0] | fill[1] << 8 | fill[2] << 16
    launch = find_launch("augment", images.device, bits=8)
    grid = (batch, blocks_of(height * width, launch["BLOCK"]))
    where = (ops.shape[1], layer, allowed)
    sizes = (height, width, height * width * 3)
    _augment_kernel[grid](images, ops, args, table, out, *where, *sizes, colour, **launch, **EXACT)
    if allowed & bits_of(("GaussianBlur",)):
        launch_blur(images, ops, args, layer, allowed, out)
    return out


def _augment_fake(
    images: torch.Tensor,
    ops: torch.Tensor,
    args: torch.Tensor,
    fill: Sequence[int],
    allowed: Sequence[int],
) -> torch.Tensor:
    return torch.empty_like(images, memory_format=torch.contiguous_format)


@operator("augment", fake=_augment_fake)
def _launch_layers(
    images: torch.Tensor,
    ops: torch.Tensor,
    args: torch.Tensor,
    fill: Sequence[int],
    allowed: Sequence[int],
) -> torch.Tensor:
    """Launch each layer's kernels; allowed: the operations that each layer may have, as bits."""
    if not images.numel() or not allowed:
        return images.clone(memory_format=torch.contiguous_format)
    # the rows of a plan may be columns of a larger array
    images, ops, args = images.contiguous(), ops.contiguous(), args.contiguous()
    for layer, bits in enumerate(allowed):
        images = _launch_layer(images, ops, args, layer, bits, fill)
    return images


def _check(
    images: torch.Tensor,
    ops: torch.Tensor,
    args: torch.Tensor,
    fill: Sequence[int],
    layer_ops: LayerOps | None,
) -> list[int]:
    """Check `augment`'s arguments; return the operations that each layer may have, as bits."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"images must be uint8 (B, H, W, 3) (got {images.dtype} {tuple(images.shape)})"
        )
    if ops.dtype != torch.int32 or ops.ndim != 2 or len(ops) != len(images):
        rule = f"int32 ({len(images)}, L)"
        raise ValueError(f"ops must be {rule} (got {ops.dtype} {tuple(ops.shape)})")
    layers = ops.shape[1]
    if args.dtype != torch.float64 or args.shape != (len(images), layers, 2):
        rule = f"float64 ({len(images)}, {layers}, 2)"
        raise ValueError(f"args must be {rule} (got {args.dtype} {tuple(args.shape)})")
    if len(fill) != 3 or not all(0 <= level <= 255 for level in fill):
        raise ValueError(f"fill must be three levels of 0 to 255 (got {tuple(fill)})")
    named = [OPS] * layers if layer_ops is None else layer_ops
    unknown = {name for names in named for name in names} - set(OPS)
    if unknown or len(named) != layers:
        raise ValueError(
            f"layer_ops must name operations of {OPS} for {layers} layers (got {layer_ops})"
        )
    return [bits_of(names) for names in named]


def augment_triton(
    images: torch.Tensor,
    ops: torch.Tensor,
    args: torch.Tensor,
    fill: Sequence[int] = FILL,
    layer_ops: LayerOps | None = None,
) -> torch.Tensor:
    """Launch the kernels; arguments and result as `augment`. Takes CPU tensors under
    TRITON_INTERPRET=1."""
    return _launch_layers(images, ops, args, list(fill), _check(images, ops, args, fill, layer_ops))


def augment(
    images: torch.Tensor,
    ops: torch.Tensor,
    args: torch.Tensor,
    fill: Sequence[int] = FILL,
    layer_ops: LayerOps | None = None,
) -> torch.Tensor:
    """Apply each image's operations, layer after layer; the inputs do not change, no gradient.

    images: uint8 (B, H, W, 3). ops: int32 (B, L), indices in OPS; another number, such as -1, does
    nothing. args: float64 (B, L, 2), of `pack_args`. fill: colour outside a warped image.
    layer_ops: for each layer the names that it may have (the plan's layer_ops), which saves the
    launches for others; an operation that is not among them does nothing. Returns uint8 (B, H, W,
    3). Raises ValueError on another dtype, a shape that does not fit or an unknown name.
    """
    allowed = _check(images, ops, args, fill, layer_ops)
    if is_fused(images):
        return _launch_layers(images, ops, args, list(fill), allowed)
    return augment_reference(images, ops, args, fill, layer_ops)
