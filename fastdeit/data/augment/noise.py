"""The noise of RandomErasing: standard normal numbers that depend only on a key and on the pixel's
number in the box.

Philox-4x32-10 (Salmon et al., SC 2011; as fastdeit.plan.philox), with the sample's 64 bits as key
and the pixel's number as counter; then Box and Muller's transform (1958) in double precision. The
logarithm, sine and cosine are series of sums and products, so that the bits are the same on every
machine and vector registers are used; their error is below 1e-11 (single precision: 6e-8).
"""

import numpy as np

from fastdeit.data.augment.jit import inlined, jit

_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_MANTISSA, _ONE, _EXPONENT = np.uint64((1 << 52) - 1), np.uint64(1023 << 52), np.uint64(52)
_QUARTER, _THIRTY = np.uint64((1 << 30) - 1), np.uint64(30)
_LN2 = 0.6931471805599453
_SQRT2 = 1.4142135623730951
_ROOT_HALF = 0.7071067811865476
_HALF_PI = 1.5707963267948966


@inlined
def philox_words(pixel, key0, key1):
    """Return four words of 32 bits, as uint64, for the counter (pixel, 0, 0, 0)."""
    c0, c1, c2, c3 = pixel, np.uint64(0), np.uint64(0), np.uint64(0)
    k0, k1 = key0, key1
    for _ in range(10):
        left, right = c0 * _M0, c2 * _M1
        c0, c1 = (right >> _SHIFT) ^ c1 ^ k0, right & _LOW
        c2, c3 = (left >> _SHIFT) ^ c3 ^ k1, left & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@inlined
def _radius(word):
    """Return sqrt(-2 log u) of u = (word + 1/2) / 2^32.

    log m = 2 artanh((m - 1) / (m + 1)), with m near 1.
    """
    number = np.float64(np.float64(np.int64(word)) + 0.5)
    bits = number.view(np.uint64)
    power = np.float64(np.int64(bits >> _EXPONENT) - 1023 - 32)
    m = np.uint64((bits & _MANTISSA) | _ONE).view(np.float64)
    if m > _SQRT2:
        power += 1.0
        m *= 0.5
    s = (m - 1.0) / (m + 1.0)
    t = s * s
    tail = t * (1 / 9 + t * (1 / 11 + t * (1 / 13 + t * (1 / 15))))
    log = power * _LN2 + 2.0 * s * (1.0 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + tail))))
    return np.sqrt(-2.0 * log)


@inlined
def _direction(word):
    """Return cos and sin of 2 pi u: the two highest bits are the quarter turn, the others an angle
    about its middle."""
    angle = ((np.float64(np.int64(word & _QUARTER)) + 0.5) * 2.0**-30 - 0.5) * _HALF_PI
    t = angle * angle
    sin = 1 / 362880 - t * (1 / 39916800 - t * (1 / 6227020800))
    sin = angle * (1.0 - t * (1 / 6 - t * (1 / 120 - t * (1 / 5040 - t * sin))))
    cos = 1 / 40320 - t * (1 / 3628800 - t * (1 / 479001600 - t * (1 / 87178291200)))
    cos = 1.0 - t * (0.5 - t * (1 / 24 - t * (1 / 720 - t * cos)))
    along, across = _ROOT_HALF * (cos - sin), _ROOT_HALF * (cos + sin)
    turn = word >> _THIRTY
    x, y = (across, along) if turn & np.uint64(1) else (along, across)
    x = -x if turn == np.uint64(1) or turn == np.uint64(2) else x
    return x, -y if turn >= np.uint64(2) else y


@inlined
def normals(pixel, key0, key1):
    """Return three standard normal numbers, float32, for pixel number `pixel` of a box; key0, key1:
    uint64 holding 32 bits each."""
    first, second, third, fourth = philox_words(pixel, key0, key1)
    radius = _radius(first)
    x, y = _direction(second)
    z, _ = _direction(fourth)
    return np.float32(radius * x), np.float32(radius * y), np.float32(_radius(third) * z)


@jit
def noise_row(start, key0, key1, red, green, blue):
    """Fill three rows, float32 (w,), with the noise of the pixels start, start + 1, ..."""
    for i in range(len(red)):
        red[i], green[i], blue[i] = normals(start + np.uint64(i), key0, key1)
