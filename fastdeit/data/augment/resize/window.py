"""A window of a resized region, S x S pixels as planes, and its edges.

Source: Pillow 12.3, src/PIL/Image.py and src/libImaging/Resample.c.
"""

import numpy as np

from fastdeit.data.augment.jit import SOURCE_HASH, cached_entry, jit
from fastdeit.data.augment.resize.passes import two_passes
from fastdeit.data.augment.resize.weights import BICUBIC, find_range, weigh_inputs


@jit
def _places(start, count, size, backwards):
    """Return the places start, start + 1, ... reflected into 0..size - 1, int64 (count,); the
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
    3), and y, x, height, width of the whole region in this image."""
    y, x, in_height, in_width = region
    first, counts, _ = weigh_inputs(in_width, width, columns, number)
    left, right = find_range(first, counts)
    short = np.empty((3, len(rows), right - left), np.uint8)
    all_columns = _places(left, right - left, in_width, False)
    two_passes(image, region, height, in_width, rows, all_columns, number, short)
    return _interleaved(short), (0, -left, len(rows), in_width)


@jit
def resize_window(image, region, window, flip, number, out):
    """Compute a window of the resized region, planes uint8 (3, S, S), mirrored left to right if
    `flip`.

    image: uint8 (h, w, 3); region: four integers, y, x, height, width, which may reach beyond the
    image where the filter reads nothing; window: four integers, height, width, y, x. The region is
    resized by filter `number` to (height, width), and the S x S pixels that begin at (y, x) are
    computed; beyond its edges the region is reflected.
    """
    height, width = window[0], window[1]
    rows = _places(window[2], out.shape[1], height, False)
    columns = _places(window[3], out.shape[2], width, flip)
    if region[2] > 100 * region[3] and height < region[2]:
        # Image.resize of Pillow 12 resizes along the columns first when an image is this tall
        image, region = _shorten(image, region, height, width, rows, columns, number)
        height = len(rows)
        rows = _places(0, height, height, False)
    two_passes(image, region, height, width, rows, columns, number, out)


@jit
def fill_outside(window, colour, planes):
    """Fill the pixels beyond the edges of the resized image with a colour, int (3,).

    window: as for `resize_window`, not mirrored; planes: uint8 (3, S, S).
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
            resize_window(image, region, window, flip, BICUBIC, out)

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
