"""The 15 RandAugment operations as DALI expressions, and the numbers that they take from the plan.

An image is uint8 (H, W, 3); what an operation needs comes with the sample in one integer row and one float row, so that the
graph holds no random operator. Backend `native`: DALI's own operators. Against timm 1.0.31 (data/auto_augment.py) on Pillow
12, in levels of 255: ten operations are exact, or off by one in fewer than 1 value of 500; Equalize (OpenCV's formula) is
off by 2 to 4 on average; the five warps (OpenCV's cubic kernel, the fill blended in along the border) by 0.4 to 1.3, more
the smaller the image. tests/test_augment.py holds the bounds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode

from fastdeit.plan import OPS, Draws

INT_COLUMNS = 2
"""Integers a layer takes: its branch of the tree (-1: none), and the operand of a point operation."""
FLOAT_COLUMNS = 9
"""Floats a layer takes: a warp's matrix row by row, or an enhancement's factor in the first place."""

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # PIL's ImageFilter.SMOOTH
_ALMOST_HALF = 0.49998 / 255  # of full scale; a little less than a half, so that float32 noise under a whole level is forgiven

_Branch = Callable[[DataNode, "_Operands"], DataNode]


@dataclass(frozen=True)
class _Operands:
    """What a branch may use beside the image; `whole` and `row` lie on the CPU."""

    whole: DataNode
    row: DataNode
    height: int
    width: int
    fill: Sequence[int]

    @property
    def factor(self) -> DataNode:
        return self.row[0]


def rand_augment(
    images: DataNode, ints: DataNode, floats: DataNode, *, layers: int, height: int, width: int, fill: Sequence[int]
) -> DataNode:
    """Apply the layers one after the other, inside a pipeline with `enable_conditionals`.

    images: uint8 (height, width, 3), CPU or GPU. ints, floats: the rows of `pack_ops`, on the CPU. fill: colour beside a
    warped image.
    """
    for layer in range(layers):
        branch, whole = ints[INT_COLUMNS * layer], ints[INT_COLUMNS * layer + 1]
        row = floats[FLOAT_COLUMNS * layer : FLOAT_COLUMNS * (layer + 1)]
        if branch >= 0:
            images = _select(_BRANCHES, 0, branch, images, _Operands(whole, row, height, width, fill))
    return images


def _select(branches: Sequence[_Branch], first: int, branch: DataNode, images: DataNode, operands: _Operands) -> DataNode:
    """A binary tree of conditionals; `first` is the number of the first of `branches`."""
    if len(branches) == 1:
        return branches[0](images, operands)
    half = len(branches) // 2
    if branch < first + half:
        images = _select(branches[:half], first, branch, images, operands)
    else:
        images = _select(branches[half:], first + half, branch, images, operands)
    return images


def _beside(images: DataNode, operand: DataNode, dtype: types.DALIDataType) -> DataNode:
    """The operand as `dtype` on the device of the images: arithmetic does not mix devices."""
    operand = fn.cast(operand, dtype=dtype)
    return operand.gpu() if images.device == "gpu" else operand


def _truncated(x: DataNode) -> DataNode:
    """Float to bytes as PIL does it: towards zero, clipped to 0..255.

    DALI's conversions round, and its brightness operator is the one that shifts and converts in one vectorised pass.
    """
    return fn.brightness(x, brightness_shift=-_ALMOST_HALF, dtype=types.UINT8)


def _blend(images: DataNode, base: DataNode, factor: DataNode) -> DataNode:
    """PIL's Image.blend of two images: base * (1 - factor) + image * factor."""
    scaled = fn.brightness(images, brightness=factor, dtype=types.FLOAT)
    return _truncated(scaled + fn.brightness(base, brightness=1.0 - factor, dtype=types.FLOAT))


def _gray(images: DataNode) -> DataNode:
    return fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)


def _solarize(images: DataNode, operands: _Operands) -> DataNode:
    threshold = _beside(images, operands.whole, types.INT16)  # 256 inverts nothing
    return images ^ ((images >= threshold) * types.Constant(255, dtype=types.UINT8))


def _solarize_add(images: DataNode, operands: _Operands) -> DataNode:
    return images + (images < 128) * _beside(images, operands.whole, types.UINT8)


def _posterize(images: DataNode, operands: _Operands) -> DataNode:
    return images & _beside(images, operands.whole, types.UINT8)


def _auto_contrast(images: DataNode, operands: _Operands) -> DataNode:
    low = fn.reductions.min(images, axis_names="HW", keep_dims=True)
    high = fn.reductions.max(images, axis_names="HW", keep_dims=True)
    flat = low == high  # a channel of one level stays as it is
    # PIL's table is level * scale + offset in double precision, truncated
    scale = types.Constant(255.0, dtype=types.FLOAT64) / (high - low + 255 * flat)
    return fn.cast(math.floor(images * scale - low * scale * (low != high)), dtype=types.UINT8)


def _equalize(images: DataNode, operands: _Operands) -> DataNode:
    return fn.equalize(images)


def _color(images: DataNode, operands: _Operands) -> DataNode:
    gray = fn.color_space_conversion(_gray(images), image_type=types.GRAY, output_type=types.RGB)
    return _blend(images, gray, operands.factor)


def _contrast(images: DataNode, operands: _Operands) -> DataNode:
    mean = math.floor(fn.reductions.mean(_gray(images)) + 0.5)
    scaled = fn.brightness(images, brightness=operands.factor, dtype=types.FLOAT)
    return _truncated(scaled + mean * _beside(images, 1.0 - operands.factor, types.FLOAT))


def _brightness(images: DataNode, operands: _Operands) -> DataNode:
    return fn.brightness(images, brightness=operands.factor, brightness_shift=-_ALMOST_HALF)


def _sharpness(images: DataNode, operands: _Operands) -> DataNode:
    smooth = fn.filter(images, types.Constant(_SMOOTH, device=images.device))
    # PIL does not filter the outermost pixels
    height, width = operands.height, operands.width
    frame = fn.erase(images, anchor=[1, 1], shape=[height - 2, width - 2])
    anchor, shape = [0, 0, 0, 0, height - 1, 0, 0, width - 1], [1, width, height, 1, 1, width, height, 1]
    return _blend(images, fn.erase(smooth, anchor=anchor, shape=shape) + frame, operands.factor)


def _warp(images: DataNode, operands: _Operands) -> DataNode:
    matrix, fill = fn.reshape(operands.row, shape=[3, 3]), list(operands.fill)
    return fn.experimental.warp_perspective(images, matrix=matrix, interp_type=types.INTERP_CUBIC, fill_value=fill)


_BRANCHES = (
    *(_solarize, _solarize_add, _posterize, _auto_contrast, _equalize),
    *(_color, _contrast, _brightness, _sharpness, _warp),
)
_ENHANCEMENTS = (_color, _contrast, _brightness, _sharpness)
_BRANCH = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _solarize,  # from level 0 on
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _color,
    "ContrastIncreasing": _contrast,
    "BrightnessIncreasing": _brightness,
    "SharpnessIncreasing": _sharpness,
    **dict.fromkeys(("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"), _warp),
}
# the last entry is what index -1, a layer that does nothing, picks
_BRANCH_NUMBER = np.array([_BRANCHES.index(_BRANCH[name]) for name in OPS] + [-1])
_IS_ENHANCEMENT = np.array([_BRANCH[name] in _ENHANCEMENTS for name in OPS] + [False])


def pack_ops(draws: Draws, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that `rand_augment` takes: int32 (B, layers * INT_COLUMNS) and float32 (B, layers * FLOAT_COLUMNS).

    height, width: of the images that the operations see.
    """
    ops, args = draws.ops, draws.op_args
    ints = np.stack((_BRANCH_NUMBER[ops], _operands(ops, args)), axis=-1).astype(np.int32)
    floats = warp_matrices(ops, args, height, width).reshape(*ops.shape, FLOAT_COLUMNS)
    floats[..., 0] = np.where(_IS_ENHANCEMENT[ops], args, floats[..., 0])
    return ints.reshape(len(ops), -1), floats.reshape(len(ops), -1).astype(np.float32)


def _operands(ops: np.ndarray, args: np.ndarray) -> np.ndarray:
    """Threshold, addend or bit mask of the point operations."""
    whole = args.astype(np.int64)
    mask = 256 - (1 << np.clip(8 - whole, 0, 8))
    return np.where(ops == OPS.index("PosterizeIncreasing"), mask, whole)


def warp_matrices(ops: np.ndarray, args: np.ndarray, height: int, width: int) -> np.ndarray:
    """float64 (..., 3, 3): from output to input pixels in corner coordinates, as PIL's AFFINE data; else the identity."""
    matrices = np.broadcast_to(np.eye(3), (*ops.shape, 3, 3)).copy()
    for name, place, scale in (
        ("ShearX", (0, 1), 1),
        ("ShearY", (1, 0), 1),
        ("TranslateXRel", (0, 2), width),
        ("TranslateYRel", (1, 2), height),
    ):
        chosen = ops == OPS.index(name)
        matrices[(chosen, *place)] = args[chosen] * scale
    turned = ops == OPS.index("Rotate")
    matrices[turned] = _rotations(args[turned], height, width)
    return matrices


def _rotations(degrees: np.ndarray, height: int, width: int) -> np.ndarray:
    """About the centre, with the coefficients rounded as in PIL's Image.rotate."""
    angle = -np.deg2rad(degrees % 360.0)
    cos, sin = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
    x, y = width / 2, height / 2
    matrices = np.broadcast_to(np.eye(3), (len(degrees), 3, 3)).copy()
    matrices[:, 0] = np.stack((cos, sin, x - cos * x - sin * y), 1)
    matrices[:, 1] = np.stack((-sin, cos, y + sin * x - cos * y), 1)
    return matrices
