"""Definitions that the files of `augment` share: the numbers of the operations, grey, and the blend
of two levels.

PIL's arithmetic, bit for bit (Pillow 12.3, src/libImaging): Convert.c for grey in 16-bit fixed
point, Blend.c for the blend in single precision, clipped and truncated. A product and a sum must be
rounded separately, not fused, so every kernel of these files that computes with floating point is
launched with `EXACT`.
"""

from collections.abc import Iterable

import torch
import triton
import triton.language as tl

OPS = (
    *(
        "AutoContrast",
        "Equalize",
        "Invert",
        "Rotate",
        "PosterizeIncreasing",
        "SolarizeIncreasing",
        "SolarizeAdd",
    ),
    *("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"),
    *("ShearX", "ShearY", "TranslateXRel", "TranslateYRel", "Grayscale", "GaussianBlur"),
)
"""The operations by number; fastdeit.plan.operations has the same."""

AUTO_CONTRAST, EQUALIZE, INVERT, ROTATE = (
    tl.constexpr(0),
    tl.constexpr(1),
    tl.constexpr(2),
    tl.constexpr(3),
)
POSTERIZE, SOLARIZE, SOLARIZE_ADD = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)
COLOR, CONTRAST, BRIGHTNESS, SHARPNESS = (
    tl.constexpr(7),
    tl.constexpr(8),
    tl.constexpr(9),
    tl.constexpr(10),
)
SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y = (
    tl.constexpr(11),
    tl.constexpr(12),
    tl.constexpr(13),
    tl.constexpr(14),
)
GRAYSCALE, BLUR, COUNT = tl.constexpr(15), tl.constexpr(16), tl.constexpr(17)

STATISTICS = ("AutoContrast", "Equalize", "ContrastIncreasing")
"""The operations that need statistics of the image."""
TABLES = (
    *STATISTICS,
    *("Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd", "BrightnessIncreasing"),
)
"""The operations that map a level to a level."""
WARPS = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
"""The operations that move pixels."""

EXACT = {"enable_fp_fusion": False}
"""Launch option: no fused multiply-add, which rounds once where PIL rounds twice."""


def bits_of(names: Iterable[str]) -> int:
    """Return a set of operations as the bits of a number."""
    return sum(1 << OPS.index(name) for name in set(names))


def gray_reference(images: torch.Tensor) -> torch.Tensor:
    """Return the grey level, int32 (B, H, W), of uint8 (B, H, W, 3) (ITU-R 601-2)."""
    red, green, blue = images.int().unbind(-1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def blend_reference(base: torch.Tensor, level: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return base + factor * (level - base), uint8; base and level: integers, factor: float64,
    rounded to single precision."""
    mixed = base.float() + factor.float() * (level - base).float()
    return mixed.clamp(0, 255).to(torch.uint8)


def sqrt_reference(x: torch.Tensor) -> torch.Tensor:
    """Return the square root of fp64, correctly rounded: of torch's own roots on a CPU, which MKL
    computes, one in 80 is not."""
    root = x.sqrt()
    high = (root.view(torch.int64) & ~0x7FFFFFF).view(torch.float64)
    low = root - high
    residual = x - high * high - 2.0 * high * low - low * low  # x - root², no step of it rounded
    return root + residual / (2.0 * root)


@triton.jit
def gray(red, green, blue):
    """Return the grey level of int32 red, green and blue (ITU-R 601-2)."""
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


@triton.jit
def blend(base, level, factor):
    """Return base + factor * (level - base), int32 of 0 to 255; base and level: integers, factor:
    fp32."""
    mixed = base.to(tl.float32) + factor * (level - base).to(tl.float32)
    return tl.minimum(tl.maximum(mixed, 0.0), 255.0).to(tl.int32)


@triton.jit
def active_op(ops_ptr, image, layer, layers, allowed):
    """Return the image's operation in this layer, or -1; allowed: the bits of the operations that
    the layer may have."""
    op = tl.load(ops_ptr + image * layers + layer)
    known = (op >= 0) & (op < COUNT) & (((allowed >> (op & 31)) & 1) == 1)
    return tl.where(known, op, -1)
