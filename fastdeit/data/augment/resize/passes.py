"""The two passes of PIL's resize: along the rows, then along the columns, rounded to bytes.

A pixel is one 32-bit word here. The first pass works on transposed blocks of 64 rows, so that both
passes read memory in the direction of the vector registers, and sums stay in them. Source: Pillow
12.3, src/libImaging/Resample.c.
"""

import numpy as np

from fastdeit.data.augment.jit import inlined, jit
from fastdeit.data.augment.resize.weights import BITS, TAPS, find_range, round_up, weigh_inputs

_BLOCK = 64  # rows
_STRETCH = 16  # words of a vector register
_FEW = 4  # the TAPS of short sums
_BYTE = np.uint32(255)
_RED, _GREEN, _BLUE = np.uint32(0), np.uint32(8), np.uint32(16)  # bits to shift a channel by
_HALF = np.int32(1 << (BITS - 1))
_SHIFT = np.int32(BITS)


@inlined
def _channel(pixel, shift):
    return np.int32((pixel >> shift) & _BYTE)


@inlined
def _level(total):
    return min(max(total >> _SHIFT, np.int32(0)), np.int32(255))


@inlined
def _pixel(red, green, blue):
    """Return the levels of three sums as one word."""
    green_blue = np.uint32(_level(green)) << _GREEN | np.uint32(_level(blue)) << _BLUE
    return np.uint32(_level(red)) | green_blue


def _make_weigh(taps):
    """Return a compiled function that computes output i, uint32 (n,), from `taps` lines that begin
    at line `at`. The loop over a constant is unrolled, and the sums stay in registers."""

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
_weigh_taps = _make_weigh(TAPS)


@jit
def _add_taps(lines, at, weights, i, start, sums):
    """Add `TAPS` lines that begin at line `at` to the sums of output i, int32 (3, n); start: place
    of the first weight."""
    for x in range(lines.shape[1]):
        red, green, blue = sums[0, x], sums[1, x], sums[2, x]
        for j in range(TAPS):
            pixel, weight = lines[at + j, x], weights[i, start + j]
            red = np.int32(red + np.int32(_channel(pixel, _RED) * weight))
            green = np.int32(green + np.int32(_channel(pixel, _GREEN) * weight))
            blue = np.int32(blue + np.int32(_channel(pixel, _BLUE) * weight))
        sums[0, x], sums[1, x], sums[2, x] = red, green, blue


@jit
def _weigh_many(lines, at, count, weights, i, sums, out):
    sums[:] = _HALF
    for start in range(0, count, TAPS):
        _add_taps(lines, at + start, weights, i, start, sums)
    for x in range(out.shape[1]):
        out[i, x] = _pixel(sums[0, x], sums[1, x], sums[2, x])


@jit
def _weigh(lines, start, first, counts, weights, out):
    """Compute m weighted sums of lines, uint32 (rows, n), as pixels, uint32 (m, n).

    start: the input that the first line is. Up to `TAPS` - 1 lines after the last are read, with
    weights of zero.
    """
    sums = np.empty((3, lines.shape[1]), np.int32)
    for i in range(len(first)):
        at, count = first[i] - start, counts[i]
        if count <= _FEW:
            _weigh_few(lines, at, weights, i, out)
        elif count <= TAPS:
            _weigh_taps(lines, at, weights, i, out)
        else:
            _weigh_many(lines, at, count, weights, i, sums, out)


@jit
def _pack(line, out):
    """Write pixels, uint8 (n, 3), as words, uint32 (n,)."""
    for x in range(len(out)):
        out[x] = (
            np.uint32(line[x, 0]) | np.uint32(line[x, 1]) << _GREEN | np.uint32(line[x, 2]) << _BLUE
        )


@jit
def _unpack(pixels, planes):
    """Write the words of pixels, uint32 (m, n or more), to planes, uint8 (3, m, n)."""
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
    """Do the first pass: from `height` rows of the image, uint8, to out, uint32 (rows, n). They
    begin at row `top`, and the inputs at column `side`; rows and n are multiples of `_STRETCH`."""
    left, right = find_range(first, counts)
    width = right - left
    block = np.zeros((_BLOCK, width), np.uint32)
    # with lines for weights of zero
    columns = np.zeros((width + TAPS) * _BLOCK, np.uint32)
    results = np.zeros(out.shape[1] * _BLOCK, np.uint32)
    for start in range(0, len(out), _BLOCK):
        rows = min(_BLOCK, len(out) - start)
        for y in range(min(rows, height - start)):
            _pack(image[top + start + y, side + left : side + right], block[y])
        inputs = columns[: (width + TAPS) * rows].reshape((width + TAPS, rows))
        outputs = results[: out.shape[1] * rows].reshape((out.shape[1], rows))
        _transpose(block[:rows], inputs)
        _weigh(inputs, left, first, counts, weights, outputs)
        _transpose(outputs, out[start : start + rows])


@jit
def two_passes(image, region, height, width, rows, columns, number, out):
    """Compute the pixels at `rows` x `columns` of the region resized to (height, width), as planes,
    uint8 (3, rows, columns).

    image: uint8 (h, w, 3); region: y, x, height, width; number: of the filter.
    """
    y, x, in_height, in_width = region
    first, counts, weights = weigh_inputs(in_height, height, rows, number)
    top, bottom = find_range(first, counts)
    padded = round_up(bottom - top, _STRETCH)
    lines = np.zeros((padded + TAPS, round_up(len(columns), _STRETCH)), np.uint32)
    along = weigh_inputs(in_width, width, columns, number)
    _along_rows(image, y + top, x, bottom - top, *along, lines[:padded])
    pixels = np.empty((len(first), lines.shape[1]), np.uint32)
    _weigh(lines, top, first, counts, weights, pixels)
    _unpack(pixels, out)
