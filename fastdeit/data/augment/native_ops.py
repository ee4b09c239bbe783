"""The plan's operations as DALI expressions: one function for each, found by the name in
fastdeit/plan/operations.py.

A function takes uint8 images (H, W, 3), CPU or GPU, and the operands of
data/augment/native_operands.py. Against timm 1.0.31 (data/auto_augment.py) on Pillow 12, in levels
of 255: five operations are exact, and six exact or off by one in fewer than 1 value of 500;
Equalize (OpenCV's formula) is off by 2 to 4 on average; the five warps (OpenCV's cubic kernel, the
fill blended in along the border) by 0.5 to 1.3, more the smaller the image.
tests/data/augment/test_native.py has the bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode

from fastdeit.data.augment.native_operands import BOX_PASSES, BOX_TAPS

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # PIL's ImageFilter.SMOOTH
# of full scale; a little less than half a level, so that a float32 error below a whole level does
# not change it
_ALMOST_HALF = 0.49998 / 255


@dataclass(frozen=True)
class Operands:
    """The inputs of an operation beside the image; `row` lies on the CPU."""

    row: DataNode
    """float32 (9,): the result of the operation's function in native_operands.py."""
    height: int
    width: int
    fill: Sequence[int]
    """The colour outside a warped image, three levels."""

    @property
    def first(self) -> DataNode:
        return self.row[0]


def _beside(images: DataNode, operand: DataNode, dtype: types.DALIDataType) -> DataNode:
    """Return the operand as `dtype` on the device of the images, as arithmetic needs it."""
    operand = fn.cast(operand, dtype=dtype)
    return operand.gpu() if images.device == "gpu" else operand


def _may_be_named(computed: DataNode) -> bool:
    """Return True if operators take this computed value as a named argument: such arguments must
    lie on the CPU, for operators on the GPU too."""
    return bool(computed.device == "cpu")


def _truncated(x: DataNode) -> DataNode:
    """Convert float to bytes as PIL does: towards zero, clipped to 0..255.

    DALI's conversions round; its brightness operator is the one that shifts and converts in one
    vectorised pass.
    """
    return fn.brightness(x, brightness_shift=-_ALMOST_HALF, dtype=types.UINT8)


def _blend(images: DataNode, base: DataNode, factor: DataNode) -> DataNode:
    """Blend two images as PIL's Image.blend: base * (1 - factor) + image * factor."""
    scaled = fn.brightness(images, brightness=factor, dtype=types.FLOAT)
    return _truncated(scaled + fn.brightness(base, brightness=1.0 - factor, dtype=types.FLOAT))


def _gray(images: DataNode) -> DataNode:
    return fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)


def solarize(images: DataNode, operands: Operands) -> DataNode:
    threshold = _beside(images, operands.first, types.INT16)  # 256 inverts nothing
    return images ^ ((images >= threshold) * types.Constant(255, dtype=types.UINT8))


def solarize_add(images: DataNode, operands: Operands) -> DataNode:
    return images + (images < 128) * _beside(images, operands.first, types.UINT8)


def posterize(images: DataNode, operands: Operands) -> DataNode:
    return images & _beside(images, operands.first, types.UINT8)


def auto_contrast(images: DataNode, operands: Operands) -> DataNode:
    low = fn.reductions.min(images, axis_names="HW", keep_dims=True)
    high = fn.reductions.max(images, axis_names="HW", keep_dims=True)
    flat = low == high  # a channel of one level is not changed
    if _may_be_named(low):  # to the one operator for it
        mean, deviation = (
            fn.cast(x, dtype=types.FLOAT) for x in (low * (low != high), high - low + 255 * flat)
        )
        shift = -255 * _ALMOST_HALF
        return fn.normalize(
            images, mean=mean, stddev=deviation, scale=255.0, shift=shift, dtype=types.UINT8
        )
    # PIL's table is level * scale + offset in double precision, truncated
    scale = types.Constant(255.0, dtype=types.FLOAT64) / (high - low + 255 * flat)
    return fn.cast(math.floor(images * scale - low * scale * (low != high)), dtype=types.UINT8)


def equalize(images: DataNode, operands: Operands) -> DataNode:
    return fn.equalize(images)


def color(images: DataNode, operands: Operands) -> DataNode:
    return _blend(images, grayscale(images, operands), operands.first)


def contrast(images: DataNode, operands: Operands) -> DataNode:
    mean = math.floor(fn.reductions.mean(_gray(images)) + 0.5)
    if _may_be_named(mean):
        named = {"contrast": operands.first, "contrast_center": mean}
        return fn.brightness_contrast(images, **named, brightness_shift=-_ALMOST_HALF)
    scaled = fn.brightness(images, brightness=operands.first, dtype=types.FLOAT)
    return _truncated(scaled + mean * _beside(images, 1.0 - operands.first, types.FLOAT))


def brightness(images: DataNode, operands: Operands) -> DataNode:
    return fn.brightness(images, brightness=operands.first, brightness_shift=-_ALMOST_HALF)


def sharpness(images: DataNode, operands: Operands) -> DataNode:
    smooth = fn.filter(images, types.Constant(_SMOOTH, device=images.device))
    # PIL does not filter the outermost pixels
    height, width = operands.height, operands.width
    frame = fn.erase(images, anchor=[1, 1], shape=[height - 2, width - 2])
    anchor = [0, 0, 0, 0, height - 1, 0, 0, width - 1]
    shape = [1, width, height, 1, 1, width, height, 1]
    return _blend(images, fn.erase(smooth, anchor=anchor, shape=shape) + frame, operands.first)


def grayscale(images: DataNode, operands: Operands) -> DataNode:
    return fn.color_space_conversion(_gray(images), image_type=types.GRAY, output_type=types.RGB)


def blur(images: DataNode, operands: Operands) -> DataNode:
    """Blur as PIL's Gaussian blur: three box blurs along the rows, then three along the columns,
    each rounded to bytes."""
    taps = _beside(images, operands.row[0:BOX_TAPS], types.FLOAT)
    for shape in ([1, BOX_TAPS], [BOX_TAPS, 1]):
        box = fn.reshape(taps, shape=shape)
        for _ in range(BOX_PASSES):
            images = fn.filter(images, box, border="clamp")
    return images


def warp(images: DataNode, operands: Operands) -> DataNode:
    matrix = fn.reshape(operands.row, shape=[3, 3])
    fill = list(operands.fill)
    return fn.experimental.warp_perspective(
        images, matrix=matrix, interp_type=types.INTERP_CUBIC, fill_value=fill
    )
