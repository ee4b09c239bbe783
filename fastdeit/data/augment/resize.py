"""PIL's resize with antialias, bit for bit, of a region of an image, computing only a window of the
result.

Pillow 12.3, src/libImaging/Resample.c: one pass along the rows, then one along the columns, each in
fixed point with 22 fractional bits and rounded to bytes. Here the first pass works on transposed
blocks of 64 rows, a pixel in one 32-bit word, so that both passes read memory in the direction of
the vector registers.
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


@jit
def _weights(in_size, out_size, places, number):
    """Return, for the n outputs at `places`, the first input of each, int64 (n,), how many inputs,
    int64 (n,), and their weights by filter `number`, int32 (n, taps)."""
    scale = in_size / out_size
    filter_scale = max(scale, 1.0)
    support = SUPPORTS[number] * filter_scale
    first = np.empty(len(places), np.int64)
    counts = np.empty(len(places), np.int64)
    weights = np.empty((len(places), int(np.ceil(support)) * 2 + 1), np.int32)
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


@jit
def _add_four(red, green, blue, a, b, c, d, wa, wb, wc, wd):
    """Add four packed lines, uint32 (n,), times their weights to the sums of each channel, int32
    (n,)."""
    for i in range(len(red)):
        p, q, r, s = a[i], b[i], c[i], d[i]
        red[i] += np.int32(_channel(p, _RED) * wa) + np.int32(_channel(q, _RED) * wb)
        red[i] += np.int32(_channel(r, _RED) * wc) + np.int32(_channel(s, _RED) * wd)
        green[i] += np.int32(_channel(p, _GREEN) * wa) + np.int32(_channel(q, _GREEN) * wb)
        green[i] += np.int32(_channel(r, _GREEN) * wc) + np.int32(_channel(s, _GREEN) * wd)
        blue[i] += np.int32(_channel(p, _BLUE) * wa) + np.int32(_channel(q, _BLUE) * wb)
        blue[i] += np.int32(_channel(r, _BLUE) * wc) + np.int32(_channel(s, _BLUE) * wd)


@jit
def _add_one(red, green, blue, a, wa):
    for i in range(len(red)):
        p = a[i]
        red[i] += np.int32(_channel(p, _RED) * wa)
        green[i] += np.int32(_channel(p, _GREEN) * wa)
        blue[i] += np.int32(_channel(p, _BLUE) * wa)


@jit
def _weigh(lines, first, count, weights, sums):
    """Compute the weighted sums, int32 (3, n), of `count` packed lines, uint32 (rows, n), from
    `first` on, plus half a level."""
    sums[:] = _HALF
    j = 0
    while j + 4 <= count:
        at = first + j
        a, b, c, d = lines[at], lines[at + 1], lines[at + 2], lines[at + 3]
        wa, wb, wc, wd = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        _add_four(sums[0], sums[1], sums[2], a, b, c, d, wa, wb, wc, wd)
        j += 4
    while j < count:
        _add_one(sums[0], sums[1], sums[2], lines[first + j], weights[j])
        j += 1


@inlined
def _level(total):
    return min(max(total >> _SHIFT, np.int32(0)), np.int32(255))


@jit
def _pack(line, out):
    """Pack pixels, uint8 (n, 3), into words."""
    for x in range(len(out)):
        out[x] = (
            np.uint32(line[x, 0]) | np.uint32(line[x, 1]) << _GREEN | np.uint32(line[x, 2]) << _BLUE
        )


@jit
def _transpose(lines, out):
    """Transpose uint32 (block, n) to (n, block), in stretches of one vector register."""
    for start in range(0, _BLOCK, _STRETCH):
        for x in range(lines.shape[1]):
            for y in range(start, start + _STRETCH):
                out[x, y] = lines[y, x]


@jit
def _pack_levels(red, green, blue, out):
    """Pack the sums of each channel as pixels, uint32 (n,)."""
    for i in range(len(out)):
        green_blue = np.uint32(_level(green[i])) << _GREEN | np.uint32(_level(blue[i])) << _BLUE
        out[i] = np.uint32(_level(red[i])) | green_blue


@jit
def _along_rows(image, top, side, first, counts, weights, out):
    """Do the first pass: out, packed uint32 (rows, n), from the image's rows from `top` on, whose
    inputs begin at column `side`."""
    left, right = _range(first, counts)
    block = np.zeros((_BLOCK, right - left), np.uint32)
    columns = np.empty((right - left, _BLOCK), np.uint32)
    sums = np.empty((3, _BLOCK), np.int32)
    packed = np.empty(_BLOCK, np.uint32)
    for start in range(0, len(out), _BLOCK):
        rows = min(_BLOCK, len(out) - start)
        for y in range(rows):
            _pack(image[top + start + y, side + left : side + right], block[y])
        _transpose(block, columns)
        for i in range(len(first)):
            _weigh(columns, first[i] - left, counts[i], weights[i], sums)
            _pack_levels(sums[0], sums[1], sums[2], packed)
            for y in range(rows):
                out[start + y, i] = packed[y]


@jit
def _along_columns(lines, top, first, counts, weights, out):
    """Do the second pass: planes, uint8 (3, m, n), from packed lines, uint32 (rows, n), that start
    with row `top`."""
    sums = np.empty((3, lines.shape[1]), np.int32)
    for i in range(len(first)):
        _weigh(lines, first[i] - top, counts[i], weights[i], sums)
        for c in range(3):
            for x in range(lines.shape[1]):
                out[c, i, x] = np.uint8(_level(sums[c, x]))


@jit
def _two_passes(image, region, height, width, rows, columns, number, out):
    """Compute the pixels at `rows` x `columns` of the region resized to (height, width), into
    planes, uint8 (3, rows, columns)."""
    y, x, in_height, in_width = region
    first, counts, weights = _weights(in_height, height, rows, number)
    top, bottom = _range(first, counts)
    lines = np.empty((bottom - top, len(columns)), np.uint32)
    along = _weights(in_width, width, columns, number)
    _along_rows(image, y + top, x, *along, lines)
    _along_columns(lines, top, first, counts, weights, out)


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
