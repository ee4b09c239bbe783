"""PIL's resize with antialias, bit for bit, of a region of an image, computing only a window of the
result.

Pillow 12.3, src/libImaging/Resample.c: one pass along the rows, then one along the columns, each in
fixed point with 22 fractional bits and rounded to bytes. Here the first pass works on transposed
blocks of 64 rows, a pixel in one 32-bit word, so that both passes read memory in the direction of
the vector registers, and sums stay in them.
"""

import math

import numpy as np

from fastdeit.data.augment.jit import SOURCE_HASH, cached_entry, inlined, jit

FILTERS = ("bicubic", "bilinear", "lanczos", "hamming", "box")
"""Names of the filters, as timm and PIL have them, in the order of their numbers."""
_BICUBIC, _BILINEAR, _LANCZOS, _HAMMING, _BOX = range(len(FILTERS))
SUPPORTS = (2.0, 1.0, 3.0, 1.0, 0.5)
"""Half the width of each filter, in inputs; in outputs where the image grows smaller."""
# PIL writes them in single precision
_HAMMING_0, _HAMMING_1 = float(np.float32(0.54)), float(np.float32(0.46))
_BITS = 22  # 32 less 8 for the byte and 2 for the sign and the overshoot
_BLOCK = 64  # rows
_STRETCH = 16  # words of a vector register
_TAPS, _FEW = 8, 4  # inputs whose products are added without storing a sum
_BYTE = np.uint32(255)
_RED, _GREEN, _BLUE = np.uint32(0), np.uint32(8), np.uint32(16)  # bits to shift a channel by
_HALF = np.int32(1 << (_BITS - 1))
_SHIFT = np.int32(_BITS)


@inlined
def _bicubic(x):
    """Return the kernel with a = -0.5, in PIL's order of operations."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


@inlined
def _sinc(x):
    if x == 0.0:
        return 1.0
    x = x * math.pi
    return math.sin(x) / x


@inlined
def _hamming(x):
    x = abs(x)
    if x == 0.0:
        return 1.0
    if x >= 1.0:
        return 0.0
    x = x * math.pi
    return math.sin(x) / x * (_HAMMING_0 + _HAMMING_1 * math.cos(x))


@jit
def _kernel_at(number, x):
    """Return the value of filter `number` at x, in PIL's order of operations."""
    if number == _BICUBIC:
        return _bicubic(x)
    if number == _BILINEAR:
        return max(1.0 - abs(x), 0.0)
    if number == _LANCZOS:
        return _sinc(x) * _sinc(x / 3.0) if -3.0 <= x < 3.0 else 0.0
    if number == _HAMMING:
        return _hamming(x)
    return 1.0 if -0.5 < x <= 0.5 else 0.0


@inlined
def _round_up(number, step):
    return (number + step - 1) // step * step


@jit
def _weights(in_size, out_size, places, number):
    """Return, for the n outputs at `places`, the first input of each, int64 (n,), how many inputs,
    int64 (n,), and their weights by filter `number`, int32 (n, taps): then zeros up to a multiple
    of `_TAPS`."""
    scale = in_size / out_size
    filter_scale = max(scale, 1.0)
    support = SUPPORTS[number] * filter_scale
    first = np.empty(len(places), np.int64)
    counts = np.empty(len(places), np.int64)
    taps = _round_up(int(np.ceil(support)) * 2 + 1, _TAPS)
    weights = np.zeros((len(places), taps), np.int32)
    kernel = np.empty(weights.shape[1])
    for i in range(len(places)):
        centre = (places[i] + 0.5) * scale
        start = max(int(centre - support + 0.5), 0)
        count = min(int(centre + support + 0.5), in_size) - start
        total = 0.0
        for j in range(count):
            kernel[j] = _kernel_at(number, (j + start - centre + 0.5) * (1.0 / filter_scale))
            total += kernel[j]
        for j in range(count):
            share = kernel[j] / total if total != 0.0 else kernel[j]
            weights[i, j] = int(share * (1 << _BITS) + (-0.5 if share < 0 else 0.5))
        first[i] = start
        counts[i] = count
    return first, counts, weights


@jit
def _range(first, counts):
    """Return the inputs that any output takes: the first, and the one after the last."""
    start, stop = first[0], 0
    for i in range(len(first)):
        start, stop = min(start, first[i]), max(stop, first[i] + counts[i])
    return start, stop


@inlined
def _channel(pixel, shift):
    return np.int32((pixel >> shift) & _BYTE)


@inlined
def _level(total):
    return min(max(total >> _SHIFT, np.int32(0)), np.int32(255))


@inlined
def _pixel(red, green, blue):
    """Return the levels of three sums as a packed pixel."""
    green_blue = np.uint32(_level(green)) << _GREEN | np.uint32(_level(blue)) << _BLUE
    return np.uint32(_level(red)) | green_blue


def _make_weigh(taps):
    """Return a compiled function that computes output i of `taps` lines from `at` on: packed
    pixels, uint32 (n,). The loop over a constant is unrolled, and the sums stay in registers."""

    @jit
    def weigh(lines, at, weights, i, out):
        for x in range(out.shape[1]):
            red, green, blue = _HALF, _HALF, _HALF
            for j in range(taps):
                pixel, weight = lines[at + j, x], weights[i, j]
                red = np.int32(red + np.int32(_channel(pixel, _RED) * weight))
                green = np.int32(green + np.int32(_channel(pixel, _GREEN) * weight))
                blue = np.int32(blue + np.int32(_channel(pixel, _BLUE) * weight))
            out[i, x] = _pixel(red, green, blue)

    return weigh


_weigh_few = _make_weigh(_FEW)
_weigh_taps = _make_weigh(_TAPS)


@jit
def _add_taps(lines, at, weights, i, start, sums):
    """Add `_TAPS` lines from `at` on to the sums of output i, int32 (3, n); start: place of the
    first weight."""
    for x in range(lines.shape[1]):
        red, green, blue = sums[0, x], sums[1, x], sums[2, x]
        for j in range(_TAPS):
            pixel, weight = lines[at + j, x], weights[i, start + j]
            red = np.int32(red + np.int32(_channel(pixel, _RED) * weight))
            green = np.int32(green + np.int32(_channel(pixel, _GREEN) * weight))
            blue = np.int32(blue + np.int32(_channel(pixel, _BLUE) * weight))
        sums[0, x], sums[1, x], sums[2, x] = red, green, blue


@jit
def _weigh_many(lines, at, count, weights, i, sums, out):
    sums[:] = _HALF
    for start in range(0, count, _TAPS):
        _add_taps(lines, at + start, weights, i, start, sums)
    for x in range(out.shape[1]):
        out[i, x] = _pixel(sums[0, x], sums[1, x], sums[2, x])


@jit
def _weigh(lines, start, first, counts, weights, out):
    """Compute m weighted sums of packed lines, uint32 (rows, n), as packed pixels, uint32 (m, n).

    start: place of the first line. Up to `_TAPS` - 1 lines after the last are read, for weights of
    zero.
    """
    sums = np.empty((3, lines.shape[1]), np.int32)
    for i in range(len(first)):
        at, count = first[i] - start, counts[i]
        if count <= _FEW:
            _weigh_few(lines, at, weights, i, out)
        elif count <= _TAPS:
            _weigh_taps(lines, at, weights, i, out)
        else:
            _weigh_many(lines, at, count, weights, i, sums, out)


@jit
def _pack(line, out):
    """Pack pixels, uint8 (n, 3), into words."""
    for x in range(len(out)):
        out[x] = (
            np.uint32(line[x, 0]) | np.uint32(line[x, 1]) << _GREEN | np.uint32(line[x, 2]) << _BLUE
        )


@jit
def _unpack(pixels, planes):
    """Unpack pixels, uint32 (m, n or more), into planes, uint8 (3, m, n)."""
    for y in range(planes.shape[1]):
        for x in range(planes.shape[2]):
            planes[0, y, x] = np.uint8(_channel(pixels[y, x], _RED))
            planes[1, y, x] = np.uint8(_channel(pixels[y, x], _GREEN))
            planes[2, y, x] = np.uint8(_channel(pixels[y, x], _BLUE))


@jit
def _transpose(lines, out):
    """Transpose uint32 (m, n) to the first n of the lines (n or more, m); m is a multiple of
    `_STRETCH`."""
    for start in range(0, lines.shape[0], _STRETCH):
        for x in range(lines.shape[1]):
            for y in range(start, start + _STRETCH):
                out[x, y] = lines[y, x]


@jit
def _along_rows(image, top, side, height, first, counts, weights, out):
    """Do the first pass: packed out, uint32 (rows, n), from `height` rows of the image from `top`
    on, whose inputs begin at column `side`; rows and n are multiples of `_STRETCH`."""
    left, right = _range(first, counts)
    width = right - left
    block = np.zeros((_BLOCK, width), np.uint32)
    # lines for weights of zero
    columns = np.zeros((width + _TAPS) * _BLOCK, np.uint32)
    results = np.zeros(out.shape[1] * _BLOCK, np.uint32)
    for start in range(0, len(out), _BLOCK):
        rows = min(_BLOCK, len(out) - start)
        for y in range(min(rows, height - start)):
            _pack(image[top + start + y, side + left : side + right], block[y])
        inputs = columns[: (width + _TAPS) * rows].reshape((width + _TAPS, rows))
        outputs = results[: out.shape[1] * rows].reshape((out.shape[1], rows))
        _transpose(block[:rows], inputs)
        _weigh(inputs, left, first, counts, weights, outputs)
        _transpose(outputs, out[start : start + rows])


@jit
def _two_passes(image, region, height, width, rows, columns, number, out):
    """Compute the pixels at `rows` x `columns` of the region resized to (height, width), into
    planes, uint8 (3, rows, columns)."""
    y, x, in_height, in_width = region
    first, counts, weights = _weights(in_height, height, rows, number)
    top, bottom = _range(first, counts)
    padded = _round_up(bottom - top, _STRETCH)
    lines = np.zeros((padded + _TAPS, _round_up(len(columns), _STRETCH)), np.uint32)
    along = _weights(in_width, width, columns, number)
    _along_rows(image, y + top, x, bottom - top, *along, lines[:padded])
    pixels = np.empty((len(first), lines.shape[1]), np.uint32)
    _weigh(lines, top, first, counts, weights, pixels)
    _unpack(pixels, out)


@jit
def _places(start, count, size, backwards):
    """Return the places start, start + 1, ... mirrored into 0..size - 1, int64 (count,); the
    outermost is not repeated."""
    places = np.empty(count, np.int64)
    period = max(2 * (size - 1), 1)
    for i in range(count):
        place = abs(start + (count - 1 - i if backwards else i)) % period
        places[i] = min(place, period - place) if size > 1 else 0
    return places


@jit
def _interleaved(planes):
    height, width = planes.shape[1:]
    image = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            for c in range(3):
                image[y, x, c] = planes[c, y, x]
    return image


@jit
def _shorten(image, region, height, width, rows, columns, number):
    """Do the second pass first: return `rows` of the region resized to `height`, uint8 (rows, n,
    3), and the place of the whole region in that."""
    y, x, in_height, in_width = region
    first, counts, _ = _weights(in_width, width, columns, number)
    left, right = _range(first, counts)
    short = np.empty((3, len(rows), right - left), np.uint8)
    all_columns = _places(left, right - left, in_width, False)
    _two_passes(image, region, height, in_width, rows, all_columns, number, short)
    return _interleaved(short), (0, -left, len(rows), in_width)


@jit
def resize_window(image, region, window, flip, number, out):
    """Compute the window (height, width, y, x) of the resized region, planes uint8 (3, S, S),
    mirrored left to right if `flip`.

    image: uint8 (h, w, 3); region: four integers, y, x, height, width, which may reach beyond the
    image where the filter reads nothing. The region is resized by filter `number` to (height,
    width) and the S x S pixels from (y, x) on are kept; beyond its edges it is reflected.
    """
    height, width = window[0], window[1]
    rows = _places(window[2], out.shape[1], height, False)
    columns = _places(window[3], out.shape[2], width, flip)
    if region[2] > 100 * region[3] and height < region[2]:
        # Image.resize of Pillow 12 takes the columns first when an image is this tall
        image, region = _shorten(image, region, height, width, rows, columns, number)
        height = len(rows)
        rows = _places(0, height, height, False)
    _two_passes(image, region, height, width, rows, columns, number, out)


@jit
def fill_outside(window, colour, planes):
    """Fill what lies beyond the edges of the resized image with a colour, int (3,).

    window: as of `resize_window`, not mirrored; planes: uint8 (3, S, S).
    """
    height, width = planes.shape[1:]
    for y in range(height):
        for x in range(width):
            if not (0 <= y + window[2] < window[0] and 0 <= x + window[3] < window[1]):
                for c in range(3):
                    planes[c, y, x] = np.uint8(colour[c])


def _resize_entry(stamp):
    def run(image, window, flip, out):
        if stamp:
            region = (0, 0, image.shape[0], image.shape[1])
            resize_window(image, region, window, flip, _BICUBIC, out)

    return cached_entry(run)


_resize = _resize_entry(SOURCE_HASH)


def resize(
    image: np.ndarray, oh: int, ow: int, y: int, x: int, size: int, flip: bool = False
) -> np.ndarray:
    """Return the window (y, x, size, size) of PIL's image.resize((ow, oh), BICUBIC), uint8 (size,
    size, 3), reflected beyond its edges.

    image: uint8 (h, w, 3).
    """
    out = np.empty((3, size, size), np.uint8)
    _resize(np.ascontiguousarray(image), np.array((oh, ow, y, x)), flip, out)
    return np.ascontiguousarray(out.transpose(1, 2, 0))
