"""What happens to a sample between decoder and model, compiled: resize, flip, operations,
normalisation, erasing.

Its parameters come in one row of integers and one of doubles, laid out below; the code depends on
neither size nor recipe. timm 1.0.31, data/auto_augment.py and random_erasing.py; torchvision 0.26,
ToTensor and Normalize. An operation that maps levels to levels is a table: tables compose, and the
last one is applied on the way to floating point, at no cost.
"""

import numpy as np

from fastdeit.data.augment import ops
from fastdeit.data.augment.jit import SOURCE_HASH, cached_entry, copy, jit
from fastdeit.data.augment.noise import noise_row, normals
from fastdeit.data.augment.resize import resize_window
from fastdeit.data.augment.warp import warp
from fastdeit.plan.sampling import OPS

# a sample's integers: resized height and width, window y and x; flip; erased box y, x, height,
# width; its mode; the noise's key, high and low half; the fill; then the operation of each layer
FLIP, BOX, MODE, KEY, FILL, LAYERS = 4, 5, 9, 10, 12, 15
# a sample's doubles: mean and standard deviation; then two for each layer: an argument, or a
# rotation's cosine and sine
MEAN, STD, ARGS = 0, 3, 6
MODES = ("const", "rand", "pixel")
_RAND, _PIXEL = MODES.index("rand"), MODES.index("pixel")

_AUTO_CONTRAST, _EQUALIZE, _INVERT = (
    OPS.index("AutoContrast"),
    OPS.index("Equalize"),
    OPS.index("Invert"),
)
_POSTERIZE, _SOLARIZE = OPS.index("PosterizeIncreasing"), OPS.index("SolarizeIncreasing")
_SOLARIZE_ADD, _COLOR, _CONTRAST = (
    OPS.index("SolarizeAdd"),
    OPS.index("ColorIncreasing"),
    OPS.index("ContrastIncreasing"),
)
_BRIGHTNESS, _SHARPNESS = OPS.index("BrightnessIncreasing"), OPS.index("SharpnessIncreasing")
_SHEAR_X, _SHEAR_Y = OPS.index("ShearX"), OPS.index("ShearY")
_TRANSLATE_X, _TRANSLATE_Y = OPS.index("TranslateXRel"), OPS.index("TranslateYRel")
_GRAYSCALE, _BLUR = OPS.index("Grayscale"), OPS.index("GaussianBlur")
_TABLES = (
    _AUTO_CONTRAST,
    _EQUALIZE,
    _INVERT,
    _POSTERIZE,
    _SOLARIZE,
    _SOLARIZE_ADD,
    _CONTRAST,
    _BRIGHTNESS,
)
_STATISTICS = (_AUTO_CONTRAST, _EQUALIZE, _CONTRAST)


@jit
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


@jit
def _fill_table(op, a, planes, table):
    if op == _AUTO_CONTRAST:
        ops.auto_contrast_table(planes, table)
    elif op == _EQUALIZE:
        ops.equalize_table(planes, table)
    elif op == _INVERT:
        ops.invert_table(table)
    elif op == _POSTERIZE:
        ops.posterize_table(int(a), table)
    elif op == _SOLARIZE:
        ops.solarize_table(int(a), table)
    elif op == _SOLARIZE_ADD:
        ops.solarize_add_table(int(a), table)
    elif op == _CONTRAST:
        ops.brighten_table(ops.mean_gray(planes), a, table)
    else:
        ops.brighten_table(0, a, table)


@jit
def _move(op, a, b, fill, planes, spare):
    """An operation that is no table; the result is in the first of the two that are returned."""
    if op in (_COLOR, _GRAYSCALE):
        ops.saturate(planes, a if op == _COLOR else 0.0)
        return planes, spare
    if op == _BLUR:
        ops.gaussian_blur(planes, a, spare)
        return planes, spare
    if op == _SHARPNESS:
        ops.sharpen(planes, a, spare)
    else:
        m = np.empty(6)
        _matrix(op, a, b, planes.shape[1], planes.shape[2], m)
        warp(planes, m, fill, spare)
    return spare, planes


@jit
def _apply(planes, codes, args, fill, table):
    """The layers one after the other. Returns planes to which `table`, uint8 (3, 256), is still to
    be applied."""
    step = np.empty_like(table)
    spare = np.empty_like(planes)
    for c in range(3):
        for level in range(256):
            table[c, level] = level
    pending = False
    for layer in range(len(codes)):
        op, a, b = codes[layer], args[2 * layer], args[2 * layer + 1]
        if op < 0:
            continue
        if pending and (op not in _TABLES or op in _STATISTICS):
            ops.look_up(planes, table)
            pending = False
        if op in _TABLES:
            _fill_table(op, a, planes, step)
            for c in range(3):
                for level in range(256):
                    table[c, level] = step[c, table[c, level] if pending else level]
            pending = True
        else:
            planes, spare = _move(op, a, b, fill, planes, spare)
    if not pending:
        for c in range(3):
            for level in range(256):
                table[c, level] = level
    return planes


@jit
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


@jit
def _erase(box, mode, key0, key1, out):
    """Fill the box (y, x, height, width) of float32 (3, S, S) with 0, one random colour, or noise."""
    red, green, blue = normals(np.uint64(0), key0, key1)
    for i in range(box[2]):
        y, start, stop = box[0] + i, box[1], box[1] + box[3]
        if mode == _PIXEL:
            first = np.uint64(i) * np.uint64(box[3])
            noise_row(
                first,
                key0,
                key1,
                out[0, y, start:stop],
                out[1, y, start:stop],
                out[2, y, start:stop],
            )
        else:
            out[0, y, start:stop] = red if mode == _RAND else np.float32(0)
            out[1, y, start:stop] = green if mode == _RAND else np.float32(0)
            out[2, y, start:stop] = blue if mode == _RAND else np.float32(0)


@jit
def run_sample(image, ints, floats, out):
    """Everything that happens to a sample; out: float32 (3, S, S)."""
    planes = np.empty(out.shape, np.uint8)
    table = np.empty((3, 256), np.uint8)
    resize_window(image, ints[:FLIP], ints[FLIP] != 0, planes)
    planes = _apply(planes, ints[LAYERS:], floats[ARGS:], ints[FILL:LAYERS], table)
    _normalise(planes, table, floats[MEAN:STD], floats[STD:ARGS], out)
    if ints[BOX + 2] > 0:
        key0, key1 = np.uint64(np.uint32(ints[KEY])), np.uint64(np.uint32(ints[KEY + 1]))
        _erase(ints[BOX:MODE], ints[MODE], key0, key1, out)


def _operate_entry(stamp):
    def operate(planes, codes, args, fill):
        table = np.empty((3, 256), np.uint8)
        done = _apply(planes, codes, args, fill, table) if stamp else planes
        ops.look_up(done, table)
        copy(done.reshape(-1), planes.reshape(-1))

    return cached_entry(operate)


operate = _operate_entry(SOURCE_HASH)
"""The layers alone, from Python: planes, uint8 (3, H, W), in place; codes and args as in the rows;
fill: int32 (3,)."""
