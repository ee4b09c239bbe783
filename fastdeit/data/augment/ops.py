"""PIL's point operations, enhancements and blur, bit for bit, on planes of bytes.

Pillow 12.3: src/PIL/ImageOps.py, ImageEnhance.py; src/libImaging/Blend.c (single precision, then
truncated), Convert.c (grey in 16-bit fixed point), Filter.c (3 x 3), BoxBlur.c (the Gaussian as
three boxes, in 24-bit fixed point).

The public functions are operations, found by their names in fastdeit/plan/operations.py. An image
is three planes, uint8 (3, H, W). An operation that maps levels to levels takes (planes, argument,
table) and fills the table, uint8 (3, 256). Any other takes (planes, argument, second, fill, out):
`second` is the sine of a rotation, `fill` the colour outside a warped image. It returns True if its
result is in `out`, uint8 (3, H, W), or False if it is in `planes`.
"""

import numpy as np

from fastdeit.data.augment.jit import copy, inlined, jit

# weights of the channels in 2^-16, and a half
_RED, _GREEN, _BLUE, _ROUND = np.uint32(19595), np.uint32(38470), np.uint32(7471), np.uint32(32768)
_SIXTEEN = np.uint32(16)
_ONE, _TWO, _THREE, _SIX = np.float32(1), np.float32(2), np.float32(3), np.float32(6)
_ZERO, _WHITE, _FULL = np.float32(0), np.float32(255), np.float32(1 << 24)


@inlined
def _gray(red, green, blue):
    """Return the level of grey, uint32 (ITU-R 601-2)."""
    total = np.uint32(red) * _RED + np.uint32(green) * _GREEN + np.uint32(blue) * _BLUE
    return (total + _ROUND) >> _SIXTEEN


@inlined
def _blend(base, level, factor):
    """Return base + factor * (level - base) in single precision, clipped and truncated; base and
    level: int32."""
    mixed = np.float32(base) + factor * np.float32(np.int32(level - base))
    return np.uint8(np.int32(min(max(mixed, _ZERO), _WHITE)))


@jit
def invert(planes, argument, table):
    for c in range(3):
        for level in range(256):
            table[c, level] = 255 - level


@jit
def posterize(planes, bits, table):
    mask = ~((1 << max(8 - int(bits), 0)) - 1)
    for c in range(3):
        for level in range(256):
            table[c, level] = level & mask


@jit
def solarize(planes, threshold, table):
    first = int(threshold)
    for c in range(3):
        for level in range(256):
            table[c, level] = level if level < first else 255 - level


@jit
def solarize_add(planes, addend, table):
    more = int(addend)
    for c in range(3):
        for level in range(256):
            table[c, level] = min(255, level + more) if level < 128 else level


@jit
def _brighten(base, factor, table):
    """Blend all levels with one level of grey: 0 for Brightness, the mean for Contrast."""
    for c in range(3):
        for level in range(256):
            table[c, level] = _blend(np.int32(base), np.int32(level), np.float32(factor))


@jit
def brightness(planes, factor, table):
    _brighten(0, factor, table)


@jit
def contrast(planes, factor, table):
    _brighten(_mean_gray(planes), factor, table)


@jit
def _mean_gray(planes):
    """Return the mean of the grey image, as PIL's ImageStat computes it, rounded."""
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    total = 0
    for i in range(len(red)):
        total += _gray(red[i], green[i], blue[i])
    return int(np.float64(total) / len(red) + 0.5)


@jit
def _extremes(line):
    low, high = np.uint8(255), np.uint8(0)
    for i in range(len(line)):
        low, high = min(low, line[i]), max(high, line[i])
    return np.int64(low), np.int64(high)


@jit
def auto_contrast(planes, argument, table):
    for c in range(3):
        low, high = _extremes(planes[c].reshape(-1))
        scale = 255.0 / (high - low) if high > low else 1.0
        offset = -np.float64(low) * scale if high > low else 0.0
        for level in range(256):
            table[c, level] = min(max(int(level * scale + offset), 0), 255)


@jit
def _histogram(plane, counts):
    """Count the levels of one plane, into int64 (256,).

    Four arrays are counted into in turn, since two additions to one counter would wait for each
    other.
    """
    parts = np.zeros((4, 256), np.uint32)
    flat = plane.reshape(-1)
    whole = len(flat) // 4 * 4
    for i in range(0, whole, 4):
        for part in range(4):
            parts[part, flat[i + part]] += np.uint32(1)
    for i in range(whole, len(flat)):
        parts[0, flat[i]] += np.uint32(1)
    for level in range(256):
        counts[level] = 0
        for part in range(4):
            counts[level] += parts[part, level]


@jit
def equalize(planes, argument, table):
    counts = np.empty(256, np.int64)
    for c in range(3):
        _histogram(planes[c], counts)
        highest = 255
        while counts[highest] == 0:
            highest -= 1
        step = (planes[c].size - counts[highest]) // 255
        below = step // 2
        for level in range(256):
            table[c, level] = min(below // step, 255) if step > 0 else level
            below += counts[level]


@jit
def look_up(planes, table):
    """Replace each level by that of the table, in place."""
    for c in range(3):
        line = planes[c].reshape(-1)
        row = table[c]
        for i in range(len(line)):
            line[i] = row[line[i]]


@jit
def _saturate(red, green, blue, factor):
    for i in range(len(red)):
        gray = np.int32(_gray(red[i], green[i], blue[i]))
        red[i] = _blend(gray, np.int32(red[i]), factor)
        green[i] = _blend(gray, np.int32(green[i]), factor)
        blue[i] = _blend(gray, np.int32(blue[i]), factor)


@jit
def color(planes, factor, unused, fill, out):
    """Apply ImageEnhance.Color, in place; factor 0 is grey."""
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    _saturate(red, green, blue, np.float32(factor))
    return False


@jit
def grayscale(planes, argument, unused, fill, out):
    return color(planes, 0.0, 0.0, fill, out)


@jit
def _add_rows(above, here, below, sums):
    for i in range(len(sums)):
        sums[i] = np.int32(above[i]) + np.int32(here[i]) + np.int32(below[i])


@jit
def _sharpen_row(here, sums, factor, out):
    """Blend each pixel, except the outermost, with the rounded mean of its neighbourhood: the sum
    of its 8 neighbours and 5 times itself, divided by 13."""
    for i in range(1, len(out) - 1):
        total = np.uint32(sums[i - 1] + sums[i] + sums[i + 1] + np.int32(4) * np.int32(here[i]))
        # PIL sums total / 13 + 1/2 in single precision and truncates. 13 is odd, so that is never
        # nearer than 1/26 to a whole number, far more than the rounding error; and 161320 / 2^22 is
        # 1/26, near enough for every total below 2^12
        twice = total * np.uint32(2) + np.uint32(13)
        smooth = np.int32((twice * np.uint32(161320)) >> np.uint32(22))
        out[i] = _blend(smooth, np.int32(here[i]), factor)


@jit
def sharpness(planes, factor, unused, fill, out):
    """Apply ImageEnhance.Sharpness; the outermost pixels are copied."""
    copy(planes.reshape(-1), out.reshape(-1))
    height, width = planes.shape[1:]
    if height < 3 or width < 3:
        return True
    sums = np.empty(width, np.int32)
    for c in range(3):
        for y in range(1, height - 1):
            _add_rows(planes[c, y - 1], planes[c, y], planes[c, y + 1], sums)
            _sharpen_row(planes[c, y], sums, np.float32(factor), out[c, y])
    return True


@inlined
def _box_weights(sigma):
    """Return the whole radius of the three boxes, and the weights of an inner and of an outermost
    pixel, in units of 2^-24 (Gwosdek et al., SSVM 2011)."""
    variance = np.float32(np.float32(sigma) * np.float32(sigma)) / _THREE
    length = np.float32(np.sqrt(12.0 * np.float64(variance) + 1.0))
    whole = np.float32(np.floor((np.float64(length) - 1.0) / 2.0))
    part = (_TWO * whole + _ONE) * (whole * (whole + _ONE) - _THREE * variance)
    part = part / (_SIX * (variance - (whole + _ONE) * (whole + _ONE)))
    radius = whole + part
    inner = np.uint32(_FULL / (radius * _TWO + _ONE))
    count = int(radius)
    return count, inner, np.uint32(((1 << 24) - (count * 2 + 1) * np.int64(inner)) // 2)


@jit
def _add_row(row, sums):
    for i in range(len(sums)):
        sums[i] += np.uint32(row[i])


@jit
def _box_row(sums, left, right, inner, outer, out):
    for i in range(len(out)):
        total = sums[i] * inner + (np.uint32(left[i]) + np.uint32(right[i])) * outer
        out[i] = np.uint8((total + np.uint32(1 << 23)) >> np.uint32(24))


@jit
def _box_rows(plane, count, inner, outer, sums, out):
    """Blur by one box along the columns, uint8 (H, W) into another plane; beyond the edges the
    outermost rows are repeated."""
    last = len(plane) - 1
    for y in range(len(plane)):
        sums[:] = 0
        for j in range(y - count, y + count + 1):
            _add_row(plane[min(max(j, 0), last)], sums)
        before, after = max(y - count - 1, 0), min(y + count + 1, last)
        _box_row(sums, plane[before], plane[after], inner, outer, out[y])


@jit
def _box_columns(plane, count, inner, outer, sums, padded, out):
    """Blur by one box along the rows; padded: uint8 (W + 2 * count + 2,), memory for one row."""
    width = plane.shape[1]
    margin = count + 1
    for y in range(len(plane)):
        padded[:margin] = plane[y, 0]
        copy(plane[y], padded[margin : margin + width])
        padded[margin + width :] = plane[y, width - 1]
        sums[:] = 0
        for j in range(1, 2 * count + 2):
            _add_row(padded[j : j + width], sums)
        left, right = padded[:width], padded[2 * margin : 2 * margin + width]
        _box_row(sums, left, right, inner, outer, out[y])


@jit
def blur(planes, sigma, unused, fill, out):
    """Apply ImageFilter.GaussianBlur(sigma), in place: three boxes along the rows, then three along
    the columns."""
    if sigma == 0.0:
        return False
    count, inner, outer = _box_weights(sigma)
    sums = np.empty(planes.shape[2], np.uint32)
    padded = np.empty(planes.shape[2] + 2 * count + 2, np.uint8)
    for c in range(3):
        one, two = planes[c], out[c]
        _box_columns(one, count, inner, outer, sums, padded, two)
        _box_columns(two, count, inner, outer, sums, padded, one)
        _box_columns(one, count, inner, outer, sums, padded, two)
        _box_rows(two, count, inner, outer, sums, one)
        _box_rows(one, count, inner, outer, sums, two)
        _box_rows(two, count, inner, outer, sums, one)
    return False
