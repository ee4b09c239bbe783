"""Resize, flip, operations, normalisation and erasing as one compiled operator of the DALI graph, on the CPU.

Bit-equal to timm 1.0.31 on Pillow 12.3 and torchvision 0.26 with the same parameters; tests/test_augment_exact.py holds
that from files on. What happens to a sample comes in one row of integers and one of doubles, laid out below; the compiled
code depends on neither size nor recipe, and is kept on disk by numba: some 20 s once per machine, well under 1 s after.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import carray, cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic
from nvidia.dali import fn
from nvidia.dali import types as dali_types
from nvidia.dali.data_node import DataNode

from fastdeit.data import pil_ops
from fastdeit.data.pil import resize_window
from fastdeit.data.pil_jit import STAMP, compiled, copy, kept
from fastdeit.data.pil_noise import noise_row, normals
from fastdeit.data.pil_warp import warp
from fastdeit.draws import OPS
from fastdeit.plan import Draws, PlanSpec

# a sample's integers: resized height and width, window y and x; flip; erased box y, x, height, width; its mode; the noise's
# key, high and low half; the fill; then the operation of each layer
_FLIP, _BOX, _MODE, _KEY, _FILL, _OPS = 4, 5, 9, 10, 12, 15
# a sample's doubles: mean and standard deviation; then an argument for each layer, a rotation's being a cosine and a sine
_MEAN, _STD, _ARGS = 0, 3, 6
_MODES = ("const", "rand", "pixel")
_RAND, _PIXEL = _MODES.index("rand"), _MODES.index("pixel")
_HIGHEST = np.uint64(0xFFFFFFFF)

_AUTO_CONTRAST, _EQUALIZE, _INVERT, _ROTATE = (OPS.index(name) for name in ("AutoContrast", "Equalize", "Invert", "Rotate"))
_POSTERIZE, _SOLARIZE = OPS.index("PosterizeIncreasing"), OPS.index("SolarizeIncreasing")
_SOLARIZE_ADD, _COLOR, _CONTRAST = OPS.index("SolarizeAdd"), OPS.index("ColorIncreasing"), OPS.index("ContrastIncreasing")
_BRIGHTNESS, _SHARPNESS = OPS.index("BrightnessIncreasing"), OPS.index("SharpnessIncreasing")
_SHEAR_X, _SHEAR_Y = OPS.index("ShearX"), OPS.index("ShearY")
_TRANSLATE_X, _TRANSLATE_Y = OPS.index("TranslateXRel"), OPS.index("TranslateYRel")
_GRAYSCALE, _BLUR = OPS.index("Grayscale"), OPS.index("GaussianBlur")
_TABLES = (_AUTO_CONTRAST, _EQUALIZE, _INVERT, _POSTERIZE, _SOLARIZE, _SOLARIZE_ADD, _CONTRAST, _BRIGHTNESS)
_STATISTICS = (_AUTO_CONTRAST, _EQUALIZE, _CONTRAST)


def exact(images: DataNode, ints: DataNode, floats: DataNode, *, size: int) -> DataNode:
    """float32 (3, size, size), layout CHW: the whole of a sample, inside a pipeline.

    images: uint8 (h, w, 3), decoded, on the CPU. ints and floats: the rows of `pack_exact` or `pack_windows`.
    """
    # an operator's setup sees shapes alone: this input's is the size of the result
    canvas = dali_types.Constant(np.zeros(size, np.uint8), device="cpu")
    out = _numba_operator()(canvas, images, ints, floats)
    return fn.reshape(out, layout="CHW")


def pack_exact(draws: Draws, spec: PlanSpec, mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The rows that `exact` takes in training: int32 (B, 15 + layers) and float64 (B, 6 + 2 * layers)."""
    count, layers = draws.ops.shape
    ints, floats = _rows(draws.resize, mean, std, layers)
    ints[:, _FLIP] = draws.flip
    ints[:, _BOX:_MODE] = draws.erase
    ints[:, _MODE] = _MODES.index(spec.remode)
    ints[:, _KEY] = (draws.noise_key >> np.uint64(32)).astype(np.uint32).view(np.int32)
    ints[:, _KEY + 1] = (draws.noise_key & _HIGHEST).astype(np.uint32).view(np.int32)
    ints[:, _OPS:] = draws.ops
    floats[:, _ARGS:] = _arguments(draws.ops, draws.op_args).reshape(count, 2 * layers)
    return ints, floats


def pack_windows(resize: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The rows that `exact` takes in evaluation, as `pack_exact`.

    resize: int (B, 4), the height and width to resize to, then y and x of the window kept of that.
    """
    return _rows(resize, mean, std, 0)


def apply_op(image: np.ndarray, op: int, arg: float, fill: Sequence[int]) -> np.ndarray:
    """One operation alone, on uint8 (H, W, 3). op: index into OPS; arg: timm's argument; fill: colour beside a warped image."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    args = _arguments(np.array([op]), np.array([arg], np.float64))
    _operate(planes, np.array([op], np.int32), args.reshape(-1), np.array(fill, np.int32))
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def _rows(resize: np.ndarray, mean: Sequence[float], std: Sequence[float], layers: int) -> tuple[np.ndarray, np.ndarray]:
    ints = np.zeros((len(resize), _OPS + layers), np.int32)
    floats = np.zeros((len(resize), _ARGS + 2 * layers))
    ints[:, :_FLIP] = resize
    ints[:, _FILL:_OPS] = [min(255, round(255 * value)) for value in mean]  # timm fills with the mean colour
    floats[:, _MEAN:_STD], floats[:, _STD:_ARGS] = mean, std
    return ints, floats


def _arguments(ops: np.ndarray, args: np.ndarray) -> np.ndarray:
    """float64 (..., 2): an operation's argument; of a rotation, cosine and sine, rounded as in PIL's Image.rotate."""
    pairs = np.zeros((*ops.shape, 2))
    pairs[..., 0] = args
    turned = np.nonzero(ops == _ROTATE)
    # Python's round is correct to the last bit, NumPy's is not
    angles = [-math.radians(degrees % 360.0) for degrees in args[turned].tolist()]
    pairs[turned] = np.array([(round(math.cos(angle), 15), round(math.sin(angle), 15)) for angle in angles]).reshape(-1, 2)
    return pairs


@compiled
def _matrix(op, a, b, height, width, m):
    """From output to input pixels in corner coordinates: PIL's AFFINE data, float64 (6,)."""
    m[:] = 0.0
    m[0] = m[4] = 1.0
    if op == _SHEAR_X:
        m[1] = a
    elif op == _SHEAR_Y:
        m[3] = a
    elif op == _TRANSLATE_X:
        m[2] = a * width
    elif op == _TRANSLATE_Y:
        m[5] = a * height
    else:  # about the centre
        x, y = width / 2, height / 2
        m[0], m[1], m[2] = a, b, a * -x + b * -y + 0.0 + x
        m[3], m[4], m[5] = -b, a, -b * -x + a * -y + 0.0 + y


@compiled
def _fill_table(op, a, planes, table):
    if op == _AUTO_CONTRAST:
        pil_ops.auto_contrast_table(planes, table)
    elif op == _EQUALIZE:
        pil_ops.equalize_table(planes, table)
    elif op == _INVERT:
        pil_ops.invert_table(table)
    elif op == _POSTERIZE:
        pil_ops.posterize_table(int(a), table)
    elif op == _SOLARIZE:
        pil_ops.solarize_table(int(a), table)
    elif op == _SOLARIZE_ADD:
        pil_ops.solarize_add_table(int(a), table)
    elif op == _CONTRAST:
        pil_ops.brighten_table(pil_ops.mean_gray(planes), a, table)
    else:
        pil_ops.brighten_table(0, a, table)


@compiled
def _reshape_pixels(op, a, b, fill, planes, spare):
    """An operation that is no table; the result is in the first of the two that are returned."""
    if op == _COLOR or op == _GRAYSCALE:
        pil_ops.saturate(planes, a if op == _COLOR else 0.0)
        return planes, spare
    if op == _BLUR:
        pil_ops.gaussian_blur(planes, a, spare)
        return planes, spare
    if op == _SHARPNESS:
        pil_ops.sharpen(planes, a, spare)
    else:
        m = np.empty(6)
        _matrix(op, a, b, planes.shape[1], planes.shape[2], m)
        warp(planes, m, fill, spare)
    return spare, planes


@compiled
def _apply(planes, ops, args, fill, table):
    """The layers one after the other. Returns planes to which `table`, uint8 (3, 256), is still to be applied."""
    step = np.empty_like(table)
    spare = np.empty_like(planes)
    for c in range(3):
        for level in range(256):
            table[c, level] = level
    pending = False
    for layer in range(len(ops)):
        op, a, b = ops[layer], args[2 * layer], args[2 * layer + 1]
        if op < 0:
            continue
        if pending and (op not in _TABLES or op in _STATISTICS):
            pil_ops.look_up(planes, table)
            pending = False
        if op in _TABLES:
            _fill_table(op, a, planes, step)
            for c in range(3):
                for level in range(256):
                    table[c, level] = step[c, table[c, level] if pending else level]
            pending = True
        else:
            planes, spare = _reshape_pixels(op, a, b, fill, planes, spare)
    if not pending:
        for c in range(3):
            for level in range(256):
                table[c, level] = level
    return planes


@compiled
def _normalise(planes, table, mean, std, out):
    """ToTensor and Normalize in single precision: (level / 255 - mean) / std."""
    values = np.empty(256, np.float32)
    for c in range(3):
        for level in range(256):
            scaled = np.float32(table[c, level]) / np.float32(255)
            values[level] = (scaled - np.float32(mean[c])) / np.float32(std[c])
        line, result = planes[c].reshape(-1), out[c].reshape(-1)
        for i in range(len(line)):
            result[i] = values[line[i]]


@compiled
def _erase(box, mode, key0, key1, out):
    """Fill the box (y, x, height, width) of float32 (3, S, S) with 0, one random colour, or noise."""
    red, green, blue = normals(np.uint64(0), key0, key1)
    for i in range(box[2]):
        y, start, stop = box[0] + i, box[1], box[1] + box[3]
        if mode == _PIXEL:
            first = np.uint64(i) * np.uint64(box[3])
            noise_row(first, key0, key1, out[0, y, start:stop], out[1, y, start:stop], out[2, y, start:stop])
        else:
            out[0, y, start:stop] = red if mode == _RAND else np.float32(0)
            out[1, y, start:stop] = green if mode == _RAND else np.float32(0)
            out[2, y, start:stop] = blue if mode == _RAND else np.float32(0)


@compiled
def _finish_sample(image, ints, floats, out):
    """Everything that happens to a sample; out: float32 (3, S, S)."""
    planes = np.empty(out.shape, np.uint8)
    table = np.empty((3, 256), np.uint8)
    resize_window(image, ints[:_FLIP], ints[_FLIP] != 0, planes)
    planes = _apply(planes, ints[_OPS:], floats[_ARGS:], ints[_FILL:_OPS], table)
    _normalise(planes, table, floats[_MEAN:_STD], floats[_STD:_ARGS], out)
    if ints[_BOX + 2] > 0:
        key0, key1 = np.uint64(np.uint32(ints[_KEY])), np.uint64(np.uint32(ints[_KEY + 1]))
        _erase(ints[_BOX:_MODE], ints[_MODE], key0, key1, out)


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    """An integer as the pointer that `carray` takes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate



@compiled
def _shape(shapes, number):
    """The shape of a sample's input or output `number`, as a view of up to three int64; shapes: address of their addresses."""
    return carray(_pointer(carray(_pointer(shapes), number + 1, np.int64)[number]), 3, np.int64)


def _run_entry(stamp: int) -> Any:
    """What DALI calls for a sample, with the addresses of the arrays' addresses and of their shapes' addresses."""

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
        _finish_sample(image, ints, floats, out)

    return _callback(run, types.void(*[types.uint64] * 3, types.int32, *[types.uint64] * 3, types.int32))


def _setup_entry(stamp: int) -> Any:
    """What DALI calls for a batch to know the shapes of the results."""

    def setup(out_shapes, out_ndims, num_outs, in_shapes, in_ndims, num_ins, num_samples):
        if not stamp:
            return
        for i in range(num_samples):
            shape = _shape(out_shapes, i)
            shape[0] = 3
            shape[1] = shape[2] = _shape(in_shapes, i)[0]

    signature = (types.uint64, types.uint64, types.int32, types.uint64, types.uint64, types.int32, types.int32)
    return _callback(setup, types.void(*signature))


def _callback(function: Any, signature: Any) -> Any:
    """A C function that holds no lock, compiled now or taken from disk."""
    try:
        return cfunc(signature, nopython=True, cache=True)(function)
    except RuntimeError:  # no folder for the cache, as in pil_jit.kept
        return cfunc(signature, nopython=True)(function)


def _operate_entry(stamp):
    def operate(planes, ops, args, fill):
        table = np.empty((3, 256), np.uint8)
        done = _apply(planes, ops, args, fill, table) if stamp else planes
        pil_ops.look_up(done, table)
        copy(done.reshape(-1), planes.reshape(-1))

    return kept(operate)


_operate = _operate_entry(STAMP)


def _run_plainly(out, canvas, image, ints, floats):
    _finish_sample(image, ints, floats, out)


def _setup_plainly(outs, ins):
    for shape, canvas in zip(outs[0], ins[0]):  # noqa: B905, numba has no strict
        shape[0] = 3
        shape[1] = shape[2] = canvas[0]


@functools.lru_cache(maxsize=1)
def _numba_class() -> Any:
    """DALI's operator for numba functions, made to take code that is compiled already.

    DALI 2.4 compiles a wrapper of its own in every process, for 6 to 10 s; its two methods that do so return addresses,
    and so do ours. Where a DALI has them no longer, its public operator is used as it is.
    """
    from nvidia.dali.plugin.numba import NumbaFunction

    if not all(hasattr(NumbaFunction, name) for name in ("_get_run_fn_cpu", "_get_setup_fn_cpu")):
        return NumbaFunction

    class Compiled(NumbaFunction):  # type: ignore[misc]
        def _get_run_fn_cpu(self, *_: Any) -> int:
            return int(_run_entry(STAMP).address)

        def _get_setup_fn_cpu(self, *_: Any) -> int:
            return int(_setup_entry(STAMP).address)

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
