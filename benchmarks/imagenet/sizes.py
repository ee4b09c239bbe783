"""Sizes of ImageNet's images, for a stand-in.

Most training images have 500 pixels on their long side, some have several thousand. The shares
below are a choice, not a count of ImageNet's headers.
"""

import numpy as np

COMMON = {
    (500, 375): 0.37,
    (500, 333): 0.11,
    (375, 500): 0.09,
    (333, 500): 0.045,
    (500, 400): 0.03,
    (500, 500): 0.03,
    (400, 300): 0.02,
    (640, 480): 0.028,
    (800, 600): 0.008,
    (1024, 768): 0.010,
    (1600, 1200): 0.004,
    (2592, 1944): 0.0005,
    (3072, 2304): 0.0002,
    (4288, 2848): 0.0001,
    (20, 17): 0.0001,
}
"""The share of the images with a (width, height) in pixels."""
_OTHERS = 480
"""The number of other sizes, each with the same share of the remaining images."""
_MEDIAN = 335.0
_SPREAD = 0.45
"""The standard deviation of the logarithm of the others' long side, which has a normal
distribution."""


def list_sizes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 (n, 2), widths and heights in pixels, and float64 (n,), the share of each."""
    random = np.random.default_rng([seed, 1])
    long_side = np.clip(np.exp(random.normal(np.log(_MEDIAN), _SPREAD, _OTHERS)), 40, 4000)
    short_side = long_side * random.uniform(0.6, 1.0, _OTHERS)
    is_upright = random.random(_OTHERS) < 0.2
    sides = np.stack((long_side, short_side), 1)
    sides[is_upright] = sides[is_upright, ::-1]
    sizes = np.concatenate((np.array(list(COMMON)), sides.round().astype(np.int64)))
    common = np.array(list(COMMON.values()))
    others = np.full(_OTHERS, (1 - common.sum()) / _OTHERS)
    return sizes, np.concatenate((common, others))
