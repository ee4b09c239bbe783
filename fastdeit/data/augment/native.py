"""Backend `native`: the plan's operations and its simple crop as DALI's own operators.

An image is uint8 (H, W, 3). What an operation needs comes with the sample in one integer and one
float row, so the graph holds no random operator.
"""

from collections.abc import Sequence

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

from fastdeit.data.augment import native_ops
from fastdeit.data.augment.native_operands import FLOAT_COLUMNS, pack_operands
from fastdeit.data.augment.native_ops import Operands
from fastdeit.plan.operations import OPERATIONS, OPS
from fastdeit.plan.plan import SampleParams

_BRANCHES = list(dict.fromkeys(operation.native for operation in OPERATIONS))
"""Names of functions of native_ops.py; several operations may share one."""
# the last entry is what number -1, a layer that does nothing, picks
_BRANCH_OF = np.array([_BRANCHES.index(operation.native) for operation in OPERATIONS] + [-1])

_IDENTITY = np.eye(3, dtype=np.float32)
_SHIFT_X = np.outer(_IDENTITY[0], _IDENTITY[2])
_SHIFT_Y = np.outer(_IDENTITY[1], _IDENTITY[2])


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
    CPU. fill: colour beside a warped image. choices: names of the operations that each layer may
    hold (`PlanSpec.layer_ops`; None: all); the graph has no others.
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
