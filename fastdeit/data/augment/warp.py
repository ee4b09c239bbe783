"""PIL's affine transform with its bicubic filter, bit for bit, on planes of bytes.

Pillow 12.3, src/libImaging/Geometry.c: the kernel has a = -1, computes in double precision, along
the rows first, repeats the outermost pixels beyond the edges, and truncates. An output pixel whose
centre falls outside the image has the fill colour. Where all fractions along an axis are exactly 0,
as in shears and translations, the sum along that axis is the pixel itself.
"""

import numpy as np

from fastdeit.data.augment.jit import copy, inlined, jit

_BYTE = np.uint32(255)
_RED, _GREEN, _BLUE = np.uint32(0), np.uint32(8), np.uint32(16)  # bits to shift a channel by
_EDGE = 2  # pixels that the filter reaches beyond the image
_1, _2, _3 = np.uint64(1), np.uint64(2), np.uint64(3)


@inlined
def _cubic(a, b, c, d, t):
    """Compute PIL's BICUBIC macro in double precision."""
    return b + t * (-a + c + t * (2.0 * (a - b) + c - d + t * (-a + b - c + d)))


@inlined
def _whole_cubic(p, q, r, s, shift, t):
    """Compute the same for one channel of pixels that are words; sums of bytes are exact, and
    faster as integers."""
    a, b = np.int32((p >> shift) & _BYTE), np.int32((q >> shift) & _BYTE)
    c, d = np.int32((r >> shift) & _BYTE), np.int32((s >> shift) & _BYTE)
    rise, fall = np.int32(a - b), np.int32(c - d)
    third = np.float64(np.int32(np.int32(rise + rise) + fall))
    fourth = np.float64(np.int32(-rise - fall))
    return np.float64(b) + t * (np.float64(np.int32(c - a)) + t * (third + t * fourth))


@inlined
def _byte(x):
    return np.uint8(np.int32(min(max(x, 0.0), 255.0)))


@jit
def _pack_row(red, green, blue, out):
    """Write pixels as words to the middle of a row with an edge on both sides, uint32 (W + 4,)."""
    width = len(red)
    for x in range(width):
        green_blue = np.uint32(green[x]) << _GREEN | np.uint32(blue[x]) << _BLUE
        out[x + _EDGE] = np.uint32(red[x]) | green_blue
    out[:_EDGE] = out[_EDGE]
    out[width + _EDGE :] = out[width + _EDGE - 1]


@jit
def _packed(planes):
    """Return uint32 (H + 4, W + 4): each pixel as one word, the outermost repeated."""
    height, width = planes.shape[1:]
    pixels = np.empty((height + 2 * _EDGE, width + 2 * _EDGE), np.uint32)
    for y in range(height):
        _pack_row(planes[0, y], planes[1, y], planes[2, y], pixels[y + _EDGE])
    for edge in range(_EDGE):
        copy(pixels[_EDGE], pixels[edge])
        copy(pixels[height + _EDGE - 1], pixels[height + _EDGE + edge])
    return pixels


@inlined
def _place(rate, offset, shift, x):
    """Return an input coordinate of output column x, in PIL's order of operations: (a * (x + 1/2) +
    b * (y + 1/2)) + c."""
    return (rate * (x + 0.5) + offset) + shift


@jit
def _span(m, off_x, off_y, width, height):
    """Return the columns whose centres fall inside the image: one interval, since both coordinates
    are monotone along a row."""
    start, stop = 0, width
    while start < width:
        x, y = _place(m[0], off_x, m[2], start), _place(m[3], off_y, m[5], start)
        if 0.0 <= x < width and 0.0 <= y < height:
            break
        start += 1
    while stop > start:
        x, y = _place(m[0], off_x, m[2], stop - 1), _place(m[3], off_y, m[5], stop - 1)
        if 0.0 <= x < width and 0.0 <= y < height:
            break
        stop -= 1
    return start, stop


@jit
def _warp_row(pixels, stride, start, stop, ax, bx, cx, ay, by, cy, red, green, blue):
    """Compute each pixel from sixteen input pixels; pixels: all, flat."""
    for i in range(start, stop):
        x, y = _place(ax, bx, cx, i) - 0.5, _place(ay, by, cy, i) - 0.5
        left, top = np.floor(x), np.floor(y)
        x, y = x - left, y - top
        row = np.int32(np.int32(np.int32(top) + 1) * np.int32(stride))
        at = np.uint64(row + np.int32(left) + 1)
        p0, p1, p2, p3 = pixels[at], pixels[at + _1], pixels[at + _2], pixels[at + _3]
        at += np.uint64(stride)
        q0, q1, q2, q3 = pixels[at], pixels[at + _1], pixels[at + _2], pixels[at + _3]
        at += np.uint64(stride)
        r0, r1, r2, r3 = pixels[at], pixels[at + _1], pixels[at + _2], pixels[at + _3]
        at += np.uint64(stride)
        s0, s1, s2, s3 = pixels[at], pixels[at + _1], pixels[at + _2], pixels[at + _3]
        p, q = _whole_cubic(p0, p1, p2, p3, _RED, x), _whole_cubic(q0, q1, q2, q3, _RED, x)
        r, s = _whole_cubic(r0, r1, r2, r3, _RED, x), _whole_cubic(s0, s1, s2, s3, _RED, x)
        red[i] = _byte(_cubic(p, q, r, s, y))
        p, q = _whole_cubic(p0, p1, p2, p3, _GREEN, x), _whole_cubic(q0, q1, q2, q3, _GREEN, x)
        r, s = _whole_cubic(r0, r1, r2, r3, _GREEN, x), _whole_cubic(s0, s1, s2, s3, _GREEN, x)
        green[i] = _byte(_cubic(p, q, r, s, y))
        p, q = _whole_cubic(p0, p1, p2, p3, _BLUE, x), _whole_cubic(q0, q1, q2, q3, _BLUE, x)
        r, s = _whole_cubic(r0, r1, r2, r3, _BLUE, x), _whole_cubic(s0, s1, s2, s3, _BLUE, x)
        blue[i] = _byte(_cubic(p, q, r, s, y))


@jit
def _slide_row(pixels, start, stop, ax, bx, cx, red, green, blue):
    """Compute each pixel from four input pixels of the same row; pixels: that row."""
    for i in range(start, stop):
        x = _place(ax, bx, cx, i) - 0.5
        left = np.floor(x)
        x = x - left
        at = np.uint64(np.int32(left) + 1)
        p, q, r, s = pixels[at], pixels[at + _1], pixels[at + _2], pixels[at + _3]
        red[i] = _byte(_whole_cubic(p, q, r, s, _RED, x))
        green[i] = _byte(_whole_cubic(p, q, r, s, _GREEN, x))
        blue[i] = _byte(_whole_cubic(p, q, r, s, _BLUE, x))


@jit
def _lift_row(pixels, stride, start, stop, ay, by, cy, red, green, blue):
    """Compute each pixel from four input pixels of the same column; pixels: all, flat."""
    step = np.uint64(stride)
    for i in range(start, stop):
        y = _place(ay, by, cy, i) - 0.5
        top = np.floor(y)
        y = y - top
        row = np.int32(np.int32(np.int32(top) + 1) * np.int32(stride))
        at = np.uint64(row + np.int32(i) + _EDGE)
        p, q = pixels[at], pixels[at + step]
        at += step + step
        r, s = pixels[at], pixels[at + step]
        red[i] = _byte(_whole_cubic(p, q, r, s, _RED, y))
        green[i] = _byte(_whole_cubic(p, q, r, s, _GREEN, y))
        blue[i] = _byte(_whole_cubic(p, q, r, s, _BLUE, y))


@jit
def warp(planes, m, fill, out):
    """Apply Image.transform(AFFINE, m, BICUBIC, fillcolor=fill), from uint8 (3, H, W) to other
    planes; m: float64 (6,)."""
    height, width = planes.shape[1:]
    pixels = _packed(planes)
    stride = width + 2 * _EDGE
    flat = pixels.reshape(-1)
    rows_stay = m[3] == 0.0 and m[4] == 1.0 and m[5] == 0.0
    columns_stay = m[0] == 1.0 and m[1] == 0.0 and m[2] == 0.0
    for y in range(height):
        bx, by = m[1] * (y + 0.5), m[4] * (y + 0.5)
        start, stop = _span(m, bx, by, width, height)
        red, green, blue = out[0, y], out[1, y], out[2, y]
        for c in range(3):
            out[c, y, :start] = fill[c]
            out[c, y, stop:] = fill[c]
        if rows_stay:
            _slide_row(pixels[y + _EDGE], start, stop, m[0], bx, m[2], red, green, blue)
        elif columns_stay:
            _lift_row(flat, stride, start, stop, m[3], by, m[5], red, green, blue)
        else:
            _warp_row(flat, stride, start, stop, m[0], bx, m[2], m[3], by, m[5], red, green, blue)


@jit
def _identity():
    matrix = np.zeros(6)
    matrix[0] = matrix[4] = 1.0
    return matrix


@jit
def rotate(planes, cos, sin, fill, out):
    """Rotate about the centre, by the angle with this cosine and sine."""
    x, y = planes.shape[2] / 2, planes.shape[1] / 2
    m = np.empty(6)
    m[0], m[1], m[2] = cos, sin, cos * -x + sin * -y + 0.0 + x
    m[3], m[4], m[5] = -sin, cos, -sin * -x + cos * -y + 0.0 + y
    warp(planes, m, fill, out)
    return True


@jit
def shear_x(planes, slope, unused, fill, out):
    m = _identity()
    m[1] = slope
    warp(planes, m, fill, out)
    return True


@jit
def shear_y(planes, slope, unused, fill, out):
    m = _identity()
    m[3] = slope
    warp(planes, m, fill, out)
    return True


@jit
def translate_x(planes, share, unused, fill, out):
    """Move by a share of the width."""
    m = _identity()
    m[2] = share * planes.shape[2]
    warp(planes, m, fill, out)
    return True


@jit
def translate_y(planes, share, unused, fill, out):
    """Move by a share of the height."""
    m = _identity()
    m[5] = share * planes.shape[1]
    warp(planes, m, fill, out)
    return True
