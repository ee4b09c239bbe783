"""Backend `native`: all that follows the decoder, as DALI's own operators, on the CPU or the GPU.

All that varies is an input, one row of integers and one of floats for each sample (`pack_native`),
so the graph has no random operator. The noise of RandomErasing comes from a bank of normal numbers;
a sample's key chooses the place in the bank.
"""

import functools
from collections.abc import Sequence

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

from fastdeit.data.augment import native_ops
from fastdeit.data.augment.native_operands import FLOAT_COLUMNS, pack_operands
from fastdeit.data.augment.native_ops import Operands
from fastdeit.plan.operations import OPERATIONS, OPS
from fastdeit.plan.philox import normal, random_words, uniform
from fastdeit.plan.plan import SampleParams
from fastdeit.plan.spec import PlanSpec

# columns of a sample's integers; the branch of each layer follows
_FLIP = 0
_ERASE_START = slice(1, 3)
_ERASE_SHAPE = slice(3, 5)
_NOISE = slice(5, 7)
_RESIZE = slice(7, 11)
_REGION = slice(11, 15)
_LAYERS = 15
# columns of a sample's floats; the operands of each layer follow
_FILL = slice(0, 3)

FILTERS = {
    "bicubic": types.INTERP_CUBIC,
    "bilinear": types.INTERP_LINEAR,
    "lanczos": types.INTERP_LANCZOS3,
}
"""DALI's filters, by the names of timm."""
_PLACES = 257  # of an image's noise in the bank, along each axis
_HIGH = np.uint64(32)
_LOW = np.uint64(2**32 - 1)

_IDENTITY = np.eye(3, dtype=np.float32)
_SHIFT_X = np.outer(_IDENTITY[0], _IDENTITY[2])
_SHIFT_Y = np.outer(_IDENTITY[1], _IDENTITY[2])

_BRANCHES = list(dict.fromkeys(operation.native for operation in OPERATIONS))
"""Names of functions of native_ops.py; several operations may share one."""
# the last entry is that of number -1, a layer that does nothing
_BRANCH_OF = np.array([_BRANCHES.index(operation.native) for operation in OPERATIONS] + [-1])


def has_floats(spec: PlanSpec) -> bool:
    """Return True if `pack_native` returns floats, too."""
    return spec.layers > 0 or (spec.reprob > 0 and spec.remode == "rand")


def pack_native(draws: SampleParams, spec: PlanSpec) -> tuple[np.ndarray, ...]:
    """Return the rows that the graph takes: int32 (B, 15 + layers), and float32 (B, 3 + layers *
    FLOAT_COLUMNS) if it takes floats."""
    key = draws.noise_key
    noise = np.stack((key >> _HIGH, key & _LOW), 1) % np.uint64(_PLACES)
    height, width = draws.crop[:, 2], draws.crop[:, 3]
    # start y, x and end y, x in the crop; from right to left if flipped
    region = np.stack((0 * height, draws.flip * width, height, ~draws.flip * width), 1)
    parts = (draws.flip[:, None], draws.erase, noise, draws.resize, region)
    ints = np.concatenate(parts, axis=1, dtype=np.int32, casting="unsafe")
    if not has_floats(spec):
        return (ints,)
    branches, operands = pack_ops(draws, spec.input_size, spec.input_size)
    fill = np.zeros((len(ints), 3), np.float32)
    if spec.remode == "rand":
        fill = noise_bank(spec.input_size)[:, noise[:, 0], noise[:, 1]].T
    floats = np.concatenate((fill, operands), axis=1, dtype=np.float32, casting="unsafe")
    return np.concatenate((ints, branches), axis=1), floats


@functools.lru_cache(maxsize=4)
def noise_bank(input_size: int) -> np.ndarray:
    """Return float32 (3, side, side): standard normal numbers, the same on every machine; side =
    input_size + 256."""
    side = input_size + _PLACES - 1
    draws = uniform(random_words(0, 0, np.arange(3 * side * side), purpose=0))
    bank = normal(draws[0], draws[1]).astype(np.float32).reshape(3, side, side)
    bank.flags.writeable = False
    return bank


def crop_and_flip(images: DataNode, ints: DataNode, spec: PlanSpec) -> DataNode:
    """Resize the decoded crops to uint8 (S, S, 3), mirrored as planned."""
    if spec.simple_crop:
        window = native_window(images, ints[_RESIZE], spec.input_size)
        return fn.flip(window, horizontal=ints[_FLIP])
    # a region whose end lies before its start is mirrored
    region = fn.cast(ints[_REGION], dtype=types.FLOAT)
    return resize_region(images, spec.input_size, region[0:2], region[2:4])


def resize_region(
    images: DataNode,
    size: int,
    start: DataNode,
    end: DataNode,
    interpolation: types.DALIInterpType = types.INTERP_CUBIC,
) -> DataNode:
    """Resize a region of the images, from `start` (y, x) to `end`, to uint8 (size, size, 3)."""
    return fn.resize(
        images,
        size=[size, size],
        interp_type=interpolation,
        antialias=True,
        roi_start=start,
        roi_end=end,
    )


def apply_layers(
    images: DataNode, ints: DataNode, floats: DataNode, spec: PlanSpec, fill: Sequence[int]
) -> DataNode:
    """Apply the plan's operations to uint8 (S, S, 3); fill: colour outside a warped image."""
    return rand_augment(
        images,
        ints[_LAYERS:],
        floats[_FILL.stop :],
        layers=spec.layers,
        height=spec.input_size,
        width=spec.input_size,
        fill=fill,
        choices=spec.layer_ops,
    )


def erase(images: DataNode, ints: DataNode, floats: Sequence[DataNode], spec: PlanSpec) -> DataNode:
    """Fill the planned boxes of float32 (3, S, S); floats: the row of floats, if there is one."""
    start = ints[_ERASE_START]
    shape = ints[_ERASE_SHAPE]
    box = {"anchor": fn.cast(start, dtype=types.FLOAT), "shape": fn.cast(shape, dtype=types.FLOAT)}
    if spec.remode == "const":
        return fn.erase(images, fill_value=0.0, **box)
    if spec.remode == "rand":
        return fn.erase(images, fill_value=floats[0][_FILL], **box)
    if ints[_ERASE_SHAPE.start] > 0:
        noise = _noise(images, start, shape, ints[_NOISE], spec.input_size)
        images = fn.erase(images, **box) + noise
    return images


def _noise(
    images: DataNode, start: DataNode, shape: DataNode, place: DataNode, side: int
) -> DataNode:
    """Return normal numbers in the box, zeros around it."""
    bank = types.Constant(noise_bank(side), device=images.device, layout="CHW")
    noise = fn.slice(bank, start=place, shape=shape, axis_names="HW")
    whole = {"start": -start, "shape": [side, side], "out_of_bounds_policy": "pad"}
    return fn.slice(noise, axis_names="HW", **whole)


def rand_augment(
    images: DataNode,
    branches: DataNode,
    floats: DataNode,
    *,
    layers: int,
    height: int,
    width: int,
    fill: Sequence[int],
    choices: Sequence[Sequence[str]] | None = None,
) -> DataNode:
    """Apply the layers one after the other, inside a pipeline with `enable_conditionals`.

    images: uint8 (height, width, 3), CPU or GPU. branches, floats: the rows of `pack_ops`, on the
    CPU. fill: colour outside a warped image. choices: for each layer the names of the operations
    that it may be (`PlanSpec.layer_ops`; None: all); the graph has no others.
    """
    for layer, names in enumerate(choices or (OPS,) * layers):
        branch = branches[layer]
        row = floats[FLOAT_COLUMNS * layer : FLOAT_COLUMNS * (layer + 1)]
        numbers = sorted({int(_BRANCH_OF[OPS.index(name)]) for name in names})
        if branch >= 0:
            images = _select(numbers, branch, images, Operands(row, height, width, fill))
    return images


def _select(
    numbers: Sequence[int], branch: DataNode, images: DataNode, operands: Operands
) -> DataNode:
    """Add a binary tree of conditionals over the branches `numbers`, in rising order."""
    if len(numbers) == 1:
        function = getattr(native_ops, _BRANCHES[numbers[0]])
        return function(images, operands)
    half = len(numbers) // 2
    if branch < numbers[half]:
        images = _select(numbers[:half], branch, images, operands)
    else:
        images = _select(numbers[half:], branch, images, operands)
    return images


def pack_ops(draws: SampleParams, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that `rand_augment` takes: int32 (B, layers), the branch of each layer (-1:
    none), and float32 (B, layers * FLOAT_COLUMNS).

    height, width: of the images that the operations see.
    """
    branches = _BRANCH_OF[draws.ops].astype(np.int32)
    floats = pack_operands(draws.ops, draws.op_args, height, width)
    return branches, floats.reshape(len(draws.ops), -1).astype(np.float32)


def native_window(images: DataNode, resize_row: DataNode, size: int) -> DataNode:
    """Resize images, and return size x size pixels of each, uint8 (size, size, 3); beyond its edges
    the resized image is continued by reflection.

    images: uint8 (H, W, 3), CPU or GPU; resize_row: int32 (4,), `SampleParams.resize`, on the CPU.
    """
    row = fn.cast(resize_row, dtype=types.FLOAT)
    resized = fn.resize(images, size=row[0:2], interp_type=types.INTERP_CUBIC, antialias=True)
    # a shift by whole pixels: the nearest neighbour is the pixel itself
    matrix = (
        types.Constant(_IDENTITY)
        + types.Constant(_SHIFT_X) * row[3]
        + types.Constant(_SHIFT_Y) * row[2]
    )
    border = {"border_mode": "reflect_101", "interp_type": types.INTERP_NN}
    return fn.experimental.warp_perspective(resized, matrix=matrix, size=[size, size], **border)
