"""The weights of PIL's filters, in fixed point with 22 fractional bits.

Source: Pillow 12.3, src/libImaging/Resample.c.
"""

import math

import numpy as np

from fastdeit.data.augment.jit import inlined, jit

FILTERS = ("bicubic", "bilinear", "lanczos", "hamming", "box")
"""Names of the filters, as timm and PIL have them, in the order of their numbers."""
BICUBIC, _BILINEAR, _LANCZOS, _HAMMING, _BOX = range(len(FILTERS))
SUPPORTS = (2.0, 1.0, 3.0, 1.0, 0.5)
"""Half the width of each filter, in input pixels; in output pixels where the image is reduced."""
BITS = 22
"""The fractional bits of a weight: 32 less 8 for the byte and 2 for the sign and the overshoot."""
TAPS = 8
"""The number of inputs whose products are added without storing a sum; the number of weights is a
multiple of it."""
# PIL writes them in single precision
_HAMMING_0, _HAMMING_1 = float(np.float32(0.54)), float(np.float32(0.46))


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
    if number == BICUBIC:
        return _bicubic(x)
    if number == _BILINEAR:
        return max(1.0 - abs(x), 0.0)
    if number == _LANCZOS:
        return _sinc(x) * _sinc(x / 3.0) if -3.0 <= x < 3.0 else 0.0
    if number == _HAMMING:
        return _hamming(x)
    return 1.0 if -0.5 < x <= 0.5 else 0.0


@inlined
def round_up(number, step):
    """Return the smallest multiple of the step that is at least `number`."""
    return (number + step - 1) // step * step


@jit
def weigh_inputs(in_size, out_size, places, number):
    """Return, for the n outputs at `places`, the first input of each, int64 (n,), the number of its
    inputs, int64 (n,), and their weights by filter `number`, int32 (n, taps), followed by zeros up
    to a multiple of `TAPS`."""
    scale = in_size / out_size
    filter_scale = max(scale, 1.0)
    support = SUPPORTS[number] * filter_scale
    first = np.empty(len(places), np.int64)
    counts = np.empty(len(places), np.int64)
    taps = round_up(int(np.ceil(support)) * 2 + 1, TAPS)
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
            weights[i, j] = int(share * (1 << BITS) + (-0.5 if share < 0 else 0.5))
        first[i] = start
        counts[i] = count
    return first, counts, weights


@jit
def find_range(first, counts):
    """Return the range of the inputs of all outputs: the first, and the one after the last."""
    start, stop = first[0], 0
    for i in range(len(first)):
        start, stop = min(start, first[i]), max(stop, first[i] + counts[i])
    return start, stop
