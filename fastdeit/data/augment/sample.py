"""A sample between decoder and model, compiled: resize, flip, operations, normalisation, erasing.

Its parameters come in one row of integers and one of doubles, with the columns below; the code
depends on neither size nor recipe. Sources: timm 1.0.31, data/auto_augment.py and
random_erasing.py; torchvision 0.26, ToTensor and Normalize. An operation that maps levels to levels
is a table: tables are composed, and the last one is applied with the conversion to floating point,
at no cost.
"""

import numpy as np

from fastdeit.data.augment import ops, warp
from fastdeit.data.augment.jit import SOURCE_HASH, cached_entry, copy, jit
from fastdeit.data.augment.noise import noise_row, normals
from fastdeit.data.augment.resize.window import fill_outside, resize_window
from fastdeit.plan.operations import OPERATIONS

# columns of a sample's integers; the first four are `SampleParams.resize`
FLIP = 4
BOX = 5  # erased: y, x, height, width
MODE = 9  # of erasing, its place in MODES
KEY = 10  # of the noise, high and low half
FILTER = 12  # of the resize, its place in FILTERS
PADDED = 13  # beyond the edges of the resized image, 1: the colour FILL, 0: its reflection
REGION = 14  # to resize, in the decoded array: y, x, height, width; height 0: all of it
FILL = 18  # colour outside a warped image
LAYERS = 21  # the operation of each layer
# columns of a sample's doubles
MEAN = 0
STD = 3
ARGS = 6  # two for each layer: an argument, or a rotation's cosine and sine
MODES = ("const", "rand", "pixel")
_RAND = MODES.index("rand")
_PIXEL = MODES.index("pixel")

_FUNCTIONS = vars(ops) | vars(warp)


def _numbers(*kinds):
    """Return the numbers of the operations of these kinds, as numba's `in` takes them."""
    return tuple(n for n, operation in enumerate(OPERATIONS) if operation.kind in kinds)


_TABLES = _numbers("levels", "statistics")
_STATISTICS = _numbers("statistics")


@jit
def _fill_no_table(op, argument, planes, table):
    pass


@jit
def _change_nothing(op, argument, second, fill, planes, out):
    return False


def _or_fill_table(number, function, others):
    @jit
    def fill_table(op, argument, planes, table):
        if op == number:
            function(planes, argument, table)
        else:
            others(op, argument, planes, table)

    return fill_table


def _or_change(number, function, others):
    @jit
    def change(op, argument, second, fill, planes, out):
        if op == number:
            return function(planes, argument, second, fill, out)
        return others(op, argument, second, fill, planes, out)

    return change


def _choose(numbers, add, chain):
    """Return a compiled function that calls the function of the operation `op`.

    numba calls functions of a list slowly, so each operation adds an `if` of its own.
    """
    for number in numbers:
        chain = add(number, _FUNCTIONS[OPERATIONS[number].exact], chain)
    return chain


_fill_table = _choose(_TABLES, _or_fill_table, _fill_no_table)
_change = _choose(_numbers("image"), _or_change, _change_nothing)


@jit
def _apply(planes, codes, args, fill, table):
    """Apply the layers one after the other. Return planes to which `table`, uint8 (3, 256), must
    still be applied."""
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
            if _change(op, a, b, fill, planes, spare):
                planes, spare = spare, planes
    if not pending:
        for c in range(3):
            for level in range(256):
                table[c, level] = level
    return planes


@jit
def _normalise(planes, table, mean, std, out):
    """Normalise as ToTensor and Normalize do, in single precision: (level / 255 - mean) / std."""
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
    """Fill the box (y, x, height, width) of float32 (3, S, S) with 0, a random colour or noise."""
    red, green, blue = normals(np.uint64(0), key0, key1)
    for i in range(box[2]):
        y, start, stop = box[0] + i, box[1], box[1] + box[3]
        row = out[:, y, start:stop]
        if mode == _PIXEL:
            first = np.uint64(i) * np.uint64(box[3])
            noise_row(first, key0, key1, row[0], row[1], row[2])
        else:
            row[0, :] = red if mode == _RAND else np.float32(0)
            row[1, :] = green if mode == _RAND else np.float32(0)
            row[2, :] = blue if mode == _RAND else np.float32(0)


@jit
def _region(image, place):
    if place[2] == 0:
        return 0, 0, image.shape[0], image.shape[1]
    return np.int64(place[0]), np.int64(place[1]), np.int64(place[2]), np.int64(place[3])


@jit
def run_sample(image, ints, floats, out):
    """Do all that happens to a sample: image, uint8 (h, w, 3), to out, float32 (3, S, S); ints,
    floats: its rows."""
    planes = np.empty(out.shape, np.uint8)
    table = np.empty((3, 256), np.uint8)
    region = _region(image, ints[REGION:FILL])
    resize_window(image, region, ints[:FLIP], ints[FLIP] != 0, ints[FILTER], planes)
    if ints[PADDED]:
        fill_outside(ints[:FLIP], ints[FILL:LAYERS], planes)
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
"""A function that applies the layers alone, called from Python: planes, uint8 (3, H, W), in place;
codes and args as in the rows; fill: int32 (3,)."""
