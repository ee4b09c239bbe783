"""The window of an image that a resize reads: no other pixels need to be decoded."""

import numpy as np

from fastdeit.data.augment.resize.weights import FILTERS, SUPPORTS


def part_to_read(
    crop: np.ndarray, resize: np.ndarray, size: int, interpolation: str = "bicubic"
) -> np.ndarray:
    """Return the window that the filter reads, int32 (B, 4): y, x, height, width in the stored
    image.

    crop: int (B, 4), y, x, height, width in the stored image. resize: int (B, 4), the height and
    width that the crop is resized to, then y and x of the size x size pixels of it that are used;
    where these reach beyond an edge, the whole axis is read. interpolation: one of FILTERS. Source:
    Pillow 12.3, src/libImaging/Resample.c, precompute_coeffs.
    """
    in_size, out_size, start = (crop[:, 2:], resize[:, :2], resize[:, 2:])
    stop = start + size
    beyond = (start < 0) | (stop > out_size)
    first = np.where(beyond, 0, start)
    last = np.where(beyond, out_size, stop) - 1
    scale = in_size / out_size
    support = SUPPORTS[FILTERS.index(interpolation)] * np.maximum(scale, 1.0)
    begin = np.maximum(((first + 0.5) * scale - support + 0.5).astype(np.int64), 0)
    end = np.minimum(((last + 0.5) * scale + support + 0.5).astype(np.int64), in_size)
    return np.concatenate((crop[:, :2] + begin, end - begin), axis=1).astype(np.int32)


def place_in(windows: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Return int32 (B, 4): y, x, height, width of the crops in decoded windows; windows, crop:
    int32 (B, 4), the same in the stored images."""
    return np.concatenate((crop[:, :2] - windows[:, :2], crop[:, 2:]), axis=1)
