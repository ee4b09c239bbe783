"""Backend `exact`: resize, flip, operations, normalisation and erasing as one compiled operator of
the DALI graph, on the CPU.

Bit-equal to timm 1.0.31 on Pillow 12.3 and torchvision 0.26 with the same parameters;
tests/data/augment/test_exact.py compares them, starting with files. The parameters of a sample come
in one row of integers and one of doubles; sample.py describes their columns. numba stores the
compiled code on disk: compiling takes about 20 s, once per machine, loading half a second.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic
from nvidia.dali import fn
from nvidia.dali import types as dali_types
from nvidia.dali.data_node import DataNode

from fastdeit.data.augment.jit import SOURCE_HASH, jit, make_callback
from fastdeit.data.augment.resize.weights import FILTERS
from fastdeit.data.augment.sample import (
    ARGS,
    BOX,
    FILL,
    FILTER,
    FLIP,
    KEY,
    LAYERS,
    MEAN,
    MODE,
    MODES,
    PADDED,
    REGION,
    STD,
    operate,
    run_sample,
)
from fastdeit.plan.operations import OPS, mean_colour
from fastdeit.plan.plan import SampleParams
from fastdeit.plan.spec import PlanSpec

_HIGHEST = np.uint64(0xFFFFFFFF)
_ROTATE = OPS.index("Rotate")


def exact(images: DataNode, ints: DataNode, floats: DataNode, *, size: int) -> DataNode:
    """Add the operator to a pipeline; it returns float32 (3, size, size), layout CHW.

    images: uint8 (h, w, 3), decoded, on the CPU. ints and floats: the rows of `pack_exact` or
    `pack_windows`.
    """
    # an operator's setup sees shapes alone: the length of this input is the size of the result
    canvas = dali_types.Constant(np.zeros(size, np.uint8), device="cpu")
    out = _numba_operator()(canvas, images, ints, floats)
    return fn.reshape(out, layout="CHW")


def pack_exact(
    draws: SampleParams,
    spec: PlanSpec,
    mean: Sequence[float],
    std: Sequence[float],
    region: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that `exact` takes in training: int32 (B, 21 + layers) and float64 (B, 6 + 2
    * layers).

    region: int (B, 4), y, x, height, width of the region to resize, in the decoded array, which has
    all pixels of the region that the filter reads; None: the whole array.
    """
    count, layers = draws.ops.shape
    ints, floats = _rows(draws.resize, mean, std, layers, region)
    ints[:, FLIP] = draws.flip
    ints[:, BOX:MODE] = draws.erase
    ints[:, MODE] = MODES.index(spec.remode)
    ints[:, KEY] = (draws.noise_key >> np.uint64(32)).astype(np.uint32).view(np.int32)
    ints[:, KEY + 1] = (draws.noise_key & _HIGHEST).astype(np.uint32).view(np.int32)
    ints[:, LAYERS:] = draws.ops
    floats[:, ARGS:] = _arguments(draws.ops, draws.op_args).reshape(count, 2 * layers)
    return ints, floats


def pack_windows(
    resize: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    interpolation: str = "bicubic",
    fill: Sequence[int] = (0, 0, 0),
    region: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that `exact` takes in evaluation, as `pack_exact` does for training.

    resize: int (B, 4), the height and width to resize to, then y and x of the crop in the resized
    image. mean, std: of each channel, for values in 0..1. interpolation: one of FILTERS. fill:
    colour beyond the edges of the resized image. region: as for `pack_exact`.
    """
    ints, floats = _rows(resize, mean, std, 0, region)
    ints[:, FILTER] = FILTERS.index(interpolation)
    ints[:, PADDED] = 1
    ints[:, FILL:LAYERS] = fill
    return ints, floats


def apply_op(image: np.ndarray, op: int, arg: float, fill: Sequence[int]) -> np.ndarray:
    """Apply one operation alone to uint8 (H, W, 3).

    op: its number in `OPERATIONS`; arg: timm's argument; fill: colour outside a warped image.
    Return uint8 (H, W, 3).
    """
    planes = image.transpose(2, 0, 1).copy()
    args = _arguments(np.array([op]), np.array([arg], np.float64))
    operate(planes, np.array([op], np.int32), args.reshape(-1), np.array(fill, np.int32))
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def _rows(
    resize: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    layers: int,
    region: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    ints = np.zeros((len(resize), LAYERS + layers), np.int32)
    floats = np.zeros((len(resize), ARGS + 2 * layers))
    ints[:, :FLIP] = resize
    ints[:, FILL:LAYERS] = mean_colour(mean)
    if region is not None:
        ints[:, REGION:FILL] = region
    floats[:, MEAN:STD] = mean
    floats[:, STD:ARGS] = std
    return ints, floats


def _arguments(ops: np.ndarray, args: np.ndarray) -> np.ndarray:
    """Return float64 (..., 2): an operation's argument and 0; for a rotation cosine and sine,
    rounded as in PIL's Image.rotate."""
    pairs = np.zeros((*ops.shape, 2))
    pairs[..., 0] = args
    turned = ops == _ROTATE
    # Python's round is correct to the last bit, NumPy's is not
    for place, degrees in zip(np.argwhere(turned), args[turned].tolist(), strict=True):
        angle = -math.radians(degrees % 360.0)
        pairs[tuple(place)] = round(math.cos(angle), 15), round(math.sin(angle), 15)
    return pairs


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    """Return an integer as the pointer that `carray` takes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@jit
def _shape(shapes, number):
    """Return the shape of a sample's input or output `number`, as a view of up to three int64.

    shapes: address of the shapes' addresses.
    """
    return carray(_pointer(carray(_pointer(shapes), number + 1, np.int64)[number]), 3, np.int64)


@functools.lru_cache(maxsize=1)
def _run_entry(stamp: int) -> Any:
    """Compile the function that DALI calls for a sample, with the addresses of the arrays'
    addresses and of their shapes' addresses."""

    def run(outs, out_shapes, out_ndims, num_outs, ins, in_shapes, in_ndims, num_ins):
        if not stamp:
            return
        size = _shape(out_shapes, 0)[1]
        out = carray(_pointer(carray(_pointer(outs), 1, np.int64)[0]), (3, size, size), np.float32)
        data = carray(_pointer(ins), 4, np.int64)
        shape = _shape(in_shapes, 1)
        image = carray(_pointer(data[1]), (shape[0], shape[1], 3), np.uint8)
        ints = carray(_pointer(data[2]), _shape(in_shapes, 2)[0], np.int32)
        floats = carray(_pointer(data[3]), _shape(in_shapes, 3)[0], np.float64)
        run_sample(image, ints, floats, out)

    address, count = types.uint64, types.int32
    arrays = [address, address, address, count]
    return make_callback(run, types.void(*arrays, *arrays))


@functools.lru_cache(maxsize=1)
def _setup_entry(stamp: int) -> Any:
    """Compile the function that DALI calls for a batch to get the shapes of the results."""

    def setup(out_shapes, out_ndims, num_outs, in_shapes, in_ndims, num_ins, num_samples):
        if not stamp:
            return
        for i in range(num_samples):
            shape = _shape(out_shapes, i)
            shape[0] = 3
            shape[1] = shape[2] = _shape(in_shapes, i)[0]

    address, count = types.uint64, types.int32
    shapes = [address, address, count]
    return make_callback(setup, types.void(*shapes, *shapes, count))


def _run_plainly(out, canvas, image, ints, floats):
    run_sample(image, ints, floats, out)


def _setup_plainly(outs, ins):
    for shape, canvas in zip(outs[0], ins[0]):  # noqa: B905, numba has no strict
        shape[0] = 3
        shape[1] = shape[2] = canvas[0]


@functools.lru_cache(maxsize=1)
def _numba_class() -> Any:
    """Return DALI's operator for numba functions, changed so that it takes compiled code.

    DALI 2.4 compiles a wrapper in every process, for 6 to 10 s; its two methods that do so return
    addresses, and so do ours. A version of DALI without these methods is used unchanged.
    """
    from nvidia.dali.plugin.numba import NumbaFunction

    if not all(hasattr(NumbaFunction, name) for name in ("_get_run_fn_cpu", "_get_setup_fn_cpu")):
        return NumbaFunction

    class Compiled(NumbaFunction):  # type: ignore[misc]
        def _get_run_fn_cpu(self, *_: Any) -> int:
            return int(_run_entry(SOURCE_HASH).address)

        def _get_setup_fn_cpu(self, *_: Any) -> int:
            return int(_setup_entry(SOURCE_HASH).address)

    return Compiled


def _numba_operator() -> Any:
    return _numba_class()(
        run_fn=_run_plainly,
        setup_fn=_setup_plainly,
        out_types=[dali_types.FLOAT],
        outs_ndim=[3],
        in_types=[dali_types.UINT8, dali_types.UINT8, dali_types.INT32, dali_types.FLOAT64],
        ins_ndim=[1, 3, 1, 1],
    )
