"""Operations of `augment` that move pixels: PIL's affine transform with its bicubic filter, in
double precision.

An output pixel (x, y) shows the image at u = (m0·(x + ½) + m1·(y + ½)) + m2 and v = (m3·(x + ½) +
m4·(y + ½)) + m5; where that lies outside, the fill. The filter has a = -1, runs along the rows
first, continues the outermost pixels, and truncates. Shears and translations move along one axis
only: of sixteen input pixels the four along it remain, since the sum along the other is the pixel
itself. Source: Pillow 12.3, src/libImaging/Geometry.c and src/PIL/Image.py (rotate); timm 1.0.31,
data/auto_augment.py.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.augment_kernels.ops import ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y


def _matrix_reference(name: str, args: torch.Tensor, height: int, width: int) -> list[torch.Tensor]:
    """Return the matrix from output to input pixels in corner coordinates, PIL's AFFINE data: six
    float64 (B, 1, 1)."""
    a, b = args.view(-1, 2, 1, 1).unbind(1)
    none, one = torch.zeros_like(a), torch.ones_like(a)
    if name == "Rotate":  # about the centre
        x, y = width / 2, height / 2
        return [a, b, a * -x + b * -y + 0.0 + x, -b, a, -b * -x + a * -y + 0.0 + y]
    moved = {
        "ShearX": (1, a),
        "ShearY": (3, a),
        "TranslateXRel": (2, a * width),
        "TranslateYRel": (5, a * height),
    }
    matrix = [one, none, none, none, one, none]
    place, value = moved[name]
    matrix[place] = value
    return matrix


def _cubic_reference(four: list[torch.Tensor], t: torch.Tensor) -> torch.Tensor:
    a, b, c, d = four
    return b + t * (-a + c + t * (2.0 * (a - b) + c - d + t * (-a + b - c + d)))


def warp_reference(
    name: str, images: torch.Tensor, args: torch.Tensor, fill: torch.Tensor
) -> torch.Tensor:
    """Apply Image.transform(AFFINE, BICUBIC) to uint8 (B, H, W, 3); args: float64 (B, 2), fill:
    uint8 (3,)."""
    height, width = images.shape[1:3]
    m = _matrix_reference(name, args, height, width)
    y = torch.arange(height, dtype=torch.float64, device=images.device).view(-1, 1) + 0.5
    x = torch.arange(width, dtype=torch.float64, device=images.device) + 0.5
    u, v = (m[0] * x + m[1] * y) + m[2], (m[3] * x + m[4] * y) + m[5]  # (B, H, W)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    u, v = (torch.where(inside, place, 0.5) - 0.5 for place in (u, v))
    left, top = u.floor(), v.floor()
    row = torch.arange(len(images), device=images.device).view(-1, 1, 1)

    def tap(i: int, j: int) -> torch.Tensor:
        y, x = (top.long() + i).clamp(0, height - 1), (left.long() + j).clamp(0, width - 1)
        return images[row, y, x].double()  # (B, H, W, 3)

    across, down = (u - left).unsqueeze(-1), (v - top).unsqueeze(-1)
    lines = [_cubic_reference([tap(i, j) for j in range(-1, 3)], across) for i in range(-1, 3)]
    level = _cubic_reference(lines, down).clamp(0, 255).to(torch.uint8)
    return torch.where(inside.unsqueeze(-1), level, fill)


@triton.jit
def _cubic(a, b, c, d, t):
    return b + t * (-a + c + t * (2.0 * (a - b) + c - d + t * (-a + b - c + d)))


@triton.jit
def _cubic_of_line(line_ptr, p, q, r, s, mask, t):
    """Return `_cubic` of the bytes at offsets p, q, r, s; their sums are exact as integers too."""
    a = tl.load(line_ptr + p, mask=mask, other=0).to(tl.int32)
    b = tl.load(line_ptr + q, mask=mask, other=0).to(tl.int32)
    c = tl.load(line_ptr + r, mask=mask, other=0).to(tl.int32)
    d = tl.load(line_ptr + s, mask=mask, other=0).to(tl.int32)
    third = (2 * (a - b) + c - d).to(tl.float64)
    fourth = (-a + b - c + d).to(tl.float64)
    return b.to(tl.float64) + t * ((c - a).to(tl.float64) + t * (third + t * fourth))


@triton.jit
def _four_near(place, last, stride):
    """Return the offsets of the four pixels around a coordinate, of pixels 0 to `last`, and the
    coordinate's fraction."""
    whole = tl.floor(place)
    near = whole.to(tl.int32)
    p = tl.minimum(tl.maximum(near - 1, 0), last) * stride
    q = tl.minimum(tl.maximum(near, 0), last) * stride
    r = tl.minimum(near + 1, last) * stride
    s = tl.minimum(near + 2, last) * stride
    return p, q, r, s, place - whole


@triton.jit
def _store(out_ptr, level, inside, fill, mask):
    byte = tl.minimum(tl.maximum(level, 0.0), 255.0).to(tl.int32)
    tl.store(out_ptr, tl.where(inside, byte, fill).to(tl.uint8), mask=mask)


@triton.jit
def _rotate(in_ptr, out_ptr, pixel, mask, a, b, fill, height, width):
    x = (pixel % width).to(tl.float64) + 0.5
    y = (pixel // width).to(tl.float64) + 0.5
    centre_x = width.to(tl.float64) * 0.5
    centre_y = height.to(tl.float64) * 0.5
    u = (a * x + b * y) + (a * -centre_x + b * -centre_y + 0.0 + centre_x)
    v = (-b * x + a * y) + (-b * -centre_x + a * -centre_y + 0.0 + centre_y)
    inside = mask & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    p, q, r, s, across = _four_near(tl.where(inside, u, 0.5) - 0.5, width - 1, 3)
    i, j, k, m, down = _four_near(tl.where(inside, v, 0.5) - 0.5, height - 1, 3 * width)
    for channel in tl.static_range(3):
        above = _cubic_of_line(in_ptr + i + channel, p, q, r, s, inside, across)
        here = _cubic_of_line(in_ptr + j + channel, p, q, r, s, inside, across)
        below = _cubic_of_line(in_ptr + k + channel, p, q, r, s, inside, across)
        last = _cubic_of_line(in_ptr + m + channel, p, q, r, s, inside, across)
        level = _cubic(above, here, below, last, down)
        _store(out_ptr + pixel * 3 + channel, level, inside, (fill >> (8 * channel)) & 255, mask)


@triton.jit
def _slide(in_ptr, out_ptr, pixel, mask, op, a, fill, height, width):
    """Move pixels along the rows for ShearX and TranslateX, else along the columns."""
    x = pixel % width
    y = pixel // width
    along_rows = (op == SHEAR_X) | (op == TRANSLATE_X)
    place = tl.where(along_rows, x, y).to(tl.float64) + 0.5
    other = tl.where(along_rows, y, x).to(tl.float64) + 0.5
    size = tl.where(along_rows, width, height)
    sheared = (op == SHEAR_X) | (op == SHEAR_Y)
    place = (place + tl.where(sheared, a, 0.0) * other) + tl.where(sheared, 0.0, a * size)
    inside = mask & (place >= 0) & (place < size)
    place = tl.where(inside, place, 0.5) - 0.5
    p, q, r, s, along = _four_near(place, size - 1, tl.where(along_rows, 3, 3 * width))
    line = in_ptr + tl.where(along_rows, y * (3 * width), x * 3)
    for channel in tl.static_range(3):
        level = _cubic_of_line(line + channel, p, q, r, s, inside, along)
        _store(out_ptr + pixel * 3 + channel, level, inside, (fill >> (8 * channel)) & 255, mask)


@triton.jit
def is_warp(op):
    """Return True if this image's operation moves pixels."""
    return (
        (op == ROTATE)
        | (op == SHEAR_X)
        | (op == SHEAR_Y)
        | (op == TRANSLATE_X)
        | (op == TRANSLATE_Y)
    )


@triton.jit
def warp(in_ptr, out_ptr, pixel, op, a, b, fill, height, width):
    """Warp pixels of one image; pixel: their numbers; a, b: the arguments, fp64; fill: 8 bits a
    channel, red lowest."""
    mask = pixel < height * width
    if op == ROTATE:
        _rotate(in_ptr, out_ptr, pixel, mask, a, b, fill, height, width)
    else:
        _slide(in_ptr, out_ptr, pixel, mask, op, a, fill, height, width)
