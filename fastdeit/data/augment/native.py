"""The plan's operations as DALI expressions, its window for the simple crop, and the numbers that
both take.

An image is uint8 (H, W, 3); what an operation needs comes with the sample in one integer row and
one float row, so that the graph holds no random operator. Backend `native`: DALI's own operators.
Against timm 1.0.31 (data/auto_augment.py) on Pillow 12, in levels of 255: five operations are
exact, and six exact or off by one in fewer than 1 value of 500; Equalize (OpenCV's formula) is off
by 2 to 4 on average; the five warps (OpenCV's cubic kernel, the fill blended in along the border)
by 0.5 to 1.3, more the smaller the image. tests/data/augment/test_native.py holds the bounds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode

from fastdeit.plan.plan import SampleParams
from fastdeit.plan.sampling import OPS

INT_COLUMNS = 2
"""Integers a layer takes: its branch of the tree (-1: none), and the operand of a point operation.
"""
FLOAT_COLUMNS = 9
"""Floats a layer takes: a warp's matrix row by row, an enhancement's factor in the first place, or
the taps of a blur."""

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # PIL's ImageFilter.SMOOTH
_ALMOST_HALF = (
    0.49998 / 255
)  # of full scale; a little less than a half, so that float32 noise under a whole level is forgiven

_BOX_TAPS, _BOX_PASSES = 5, 3  # of PIL's Gaussian blur: five taps reach as far as radius 2.4

_IDENTITY = np.eye(3, dtype=np.float32)
_SHIFT_X, _SHIFT_Y = (np.outer(_IDENTITY[axis], _IDENTITY[2]) for axis in range(2))

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
    images: DataNode,
    ints: DataNode,
    floats: DataNode,
    *,
    layers: int,
    height: int,
    width: int,
    fill: Sequence[int],
    choices: Sequence[Sequence[str]] | None = None,
) -> DataNode:
    """Apply the layers one after the other, inside a pipeline with `enable_conditionals`.

    images: uint8 (height, width, 3), CPU or GPU. ints, floats: the rows of `pack_ops`, on the CPU.
    fill: colour beside a warped image. choices: the operations that each layer may hold
    (`PlanSpec.layer_ops`; all): others are left out of the graph.
    """
    for layer, names in enumerate(choices or (OPS,) * layers):
        branch, whole = ints[INT_COLUMNS * layer], ints[INT_COLUMNS * layer + 1]
        row = floats[FLOAT_COLUMNS * layer : FLOAT_COLUMNS * (layer + 1)]
        numbers = sorted({_BRANCHES.index(_BRANCH[name]) for name in names})
        if branch >= 0:
            images = _select(numbers, branch, images, _Operands(whole, row, height, width, fill))
    return images


def native_window(images: DataNode, resize_row: DataNode, size: int) -> DataNode:
    """uint8 (size, size, 3): a window of the resized images, continued by reflection beyond their
    borders.

    images: uint8 (H, W, 3), CPU or GPU; resize_row: int32 (4,), `SampleParams.resize`, on the CPU.
    """
    row = fn.cast(resize_row, dtype=types.FLOAT)
    resized = fn.resize(images, size=row[0:2], interp_type=types.INTERP_CUBIC, antialias=True)
    # of a shift by whole pixels the nearest neighbour is the pixel itself
    matrix = (
        types.Constant(_IDENTITY)
        + types.Constant(_SHIFT_X) * row[3]
        + types.Constant(_SHIFT_Y) * row[2]
    )
    border = {"border_mode": "reflect_101", "interp_type": types.INTERP_NN}
    return fn.experimental.warp_perspective(resized, matrix=matrix, size=[size, size], **border)


def _select(
    numbers: Sequence[int], branch: DataNode, images: DataNode, operands: _Operands
) -> DataNode:
    """A binary tree of conditionals over the branches `numbers`, in rising order."""
    if len(numbers) == 1:
        return _BRANCHES[numbers[0]](images, operands)
    half = len(numbers) // 2
    if branch < numbers[half]:
        images = _select(numbers[:half], branch, images, operands)
    else:
        images = _select(numbers[half:], branch, images, operands)
    return images


def _beside(images: DataNode, operand: DataNode, dtype: types.DALIDataType) -> DataNode:
    """The operand as `dtype` on the device of the images: arithmetic does not mix devices."""
    operand = fn.cast(operand, dtype=dtype)
    return operand.gpu() if images.device == "gpu" else operand


def _may_be_named(computed: DataNode) -> bool:
    """Whether operators take by name what the graph computed: such arguments must lie on the CPU,
    for the GPU's too."""
    return bool(computed.device == "cpu")


def _truncated(x: DataNode) -> DataNode:
    """Float to bytes as PIL does it: towards zero, clipped to 0..255.

    DALI's conversions round, and its brightness operator is the one that shifts and converts in one
    vectorised pass.
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


def _equalize(images: DataNode, operands: _Operands) -> DataNode:
    return fn.equalize(images)


def _color(images: DataNode, operands: _Operands) -> DataNode:
    return _blend(images, _grayscale(images, operands), operands.factor)


def _contrast(images: DataNode, operands: _Operands) -> DataNode:
    mean = math.floor(fn.reductions.mean(_gray(images)) + 0.5)
    if _may_be_named(mean):
        named = {"contrast": operands.factor, "contrast_center": mean}
        return fn.brightness_contrast(images, **named, brightness_shift=-_ALMOST_HALF)
    scaled = fn.brightness(images, brightness=operands.factor, dtype=types.FLOAT)
    return _truncated(scaled + mean * _beside(images, 1.0 - operands.factor, types.FLOAT))


def _brightness(images: DataNode, operands: _Operands) -> DataNode:
    return fn.brightness(images, brightness=operands.factor, brightness_shift=-_ALMOST_HALF)


def _sharpness(images: DataNode, operands: _Operands) -> DataNode:
    smooth = fn.filter(images, types.Constant(_SMOOTH, device=images.device))
    # PIL does not filter the outermost pixels
    height, width = operands.height, operands.width
    frame = fn.erase(images, anchor=[1, 1], shape=[height - 2, width - 2])
    anchor, shape = (
        [0, 0, 0, 0, height - 1, 0, 0, width - 1],
        [1, width, height, 1, 1, width, height, 1],
    )
    return _blend(images, fn.erase(smooth, anchor=anchor, shape=shape) + frame, operands.factor)


def _grayscale(images: DataNode, operands: _Operands) -> DataNode:
    return fn.color_space_conversion(_gray(images), image_type=types.GRAY, output_type=types.RGB)


def _blur(images: DataNode, operands: _Operands) -> DataNode:
    """PIL's Gaussian blur: three box blurs along the rows, then three along the columns, each
    rounded to bytes."""
    taps = _beside(images, operands.row[0:_BOX_TAPS], types.FLOAT)
    for shape in ([1, _BOX_TAPS], [_BOX_TAPS, 1]):
        box = fn.reshape(taps, shape=shape)
        for _ in range(_BOX_PASSES):
            images = fn.filter(images, box, border="clamp")
    return images


def _warp(images: DataNode, operands: _Operands) -> DataNode:
    matrix, fill = fn.reshape(operands.row, shape=[3, 3]), list(operands.fill)
    return fn.experimental.warp_perspective(
        images, matrix=matrix, interp_type=types.INTERP_CUBIC, fill_value=fill
    )


_BRANCHES = (
    *(_solarize, _solarize_add, _posterize, _auto_contrast, _equalize),
    *(_color, _contrast, _brightness, _sharpness, _warp, _grayscale, _blur),
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
    "Grayscale": _grayscale,
    "GaussianBlur": _blur,
}
# the last entry is what index -1, a layer that does nothing, picks
_BRANCH_NUMBER = np.array([_BRANCHES.index(_BRANCH[name]) for name in OPS] + [-1])
_IS_ENHANCEMENT = np.array([_BRANCH[name] in _ENHANCEMENTS for name in OPS] + [False])


def pack_ops(draws: SampleParams, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that `rand_augment` takes: int32 (B, layers * INT_COLUMNS) and float32 (B, layers *
    FLOAT_COLUMNS).

    height, width: of the images that the operations see.
    """
    ops, args = draws.ops, draws.op_args
    ints = np.stack((_BRANCH_NUMBER[ops], _operands(ops, args)), axis=-1).astype(np.int32)
    floats = warp_matrices(ops, args, height, width).reshape(*ops.shape, FLOAT_COLUMNS)
    floats[..., 0] = np.where(_IS_ENHANCEMENT[ops], args, floats[..., 0])
    blurred = ops == OPS.index("GaussianBlur")
    floats[blurred, :_BOX_TAPS] = _box_taps(args[blurred])
    return ints.reshape(len(ops), -1), floats.reshape(len(ops), -1).astype(np.float32)


def _operands(ops: np.ndarray, args: np.ndarray) -> np.ndarray:
    """Threshold, addend or bit mask of the point operations."""
    whole = args.astype(np.int64)
    mask = 256 - (1 << np.clip(8 - whole, 0, 8))
    return np.where(ops == OPS.index("PosterizeIncreasing"), mask, whole)


def _box_taps(radius: np.ndarray) -> np.ndarray:
    """float64 (n, 5): the box that PIL's GaussianBlur(radius) applies three times; radius at most
    2.4.

    Its radius, which is no whole number, is so chosen that three boxes have the deviation `radius`
    (Gwosdek et al., SSVM 2011); the outermost two pixels take the fraction.
    """
    variance = radius**2 / _BOX_PASSES
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (
        (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    )
    reach = np.abs(np.arange(_BOX_TAPS) - _BOX_TAPS // 2)
    weights = np.clip((whole + fraction)[:, None] - reach + 1, 0, 1)
    return weights / (2 * (whole + fraction) + 1)[:, None]


def warp_matrices(ops: np.ndarray, args: np.ndarray, height: int, width: int) -> np.ndarray:
    """float64 (..., 3, 3): from output to input pixels in corner coordinates, as PIL's AFFINE data;
    else the identity."""
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
