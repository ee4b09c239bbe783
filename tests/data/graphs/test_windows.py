"""What a resize reads of an image, against Pillow: no pixel outside counts, and each edge does."""

import numpy as np
import pytest
from PIL import Image

from fastdeit.data.augment.resize.weights import FILTERS
from fastdeit.data.graphs.eval_crop import CROP_MODES, EvalCrop, place_crop
from fastdeit.data.graphs.windows import part_to_read, place_in

SIZE = 24
SIZES = [(64, 80), (33, 47), (120, 41), (24, 24), (57, 200), (300, 25), (9, 14), (401, 3), (2, 300)]
PILS = {name: Image.Resampling[name.upper()] for name in FILTERS}


def view(pixels: np.ndarray, resize: np.ndarray, name: str) -> np.ndarray:
    """Return what Pillow makes of an image: the part of the kept window that is not padding."""
    height, width, y, x = resize.tolist()
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), PILS[name]))
    return resized[max(y, 0) : y + SIZE, max(x, 0) : x + SIZE]


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("mode", CROP_MODES)
@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 1.15])
def test_pixels_outside_the_part_do_not_count(name: str, mode: str, crop_pct: float) -> None:
    sizes = np.array(SIZES, np.int32)
    whole = np.concatenate((np.zeros_like(sizes), sizes), 1)
    resize = place_crop(sizes, EvalCrop(SIZE, crop_pct, name, mode))
    parts = part_to_read(whole, resize, SIZE, name)
    assert (parts[:, :2] >= 0).all() and (parts[:, :2] + parts[:, 2:] <= sizes).all()
    for size, one, part in zip(SIZES, resize, parts.tolist(), strict=True):
        y, x, height, width = part
        image, other = noise(0, *size), noise(1, *size)
        inside = (slice(y, y + height), slice(x, x + width))
        other[inside] = image[inside]
        np.testing.assert_array_equal(view(other, one, name), view(image, one, name))


def test_the_part_is_hardly_larger_than_the_filter_reads() -> None:
    """Three outer rows or columns of the part change the view; the outermost may weigh nothing."""
    sizes = np.array([(64, 80), (90, 60), (200, 300)], np.int32)
    whole = np.concatenate((np.zeros_like(sizes), sizes), 1)
    resize = place_crop(sizes, EvalCrop(SIZE, 0.875))
    every = slice(None)
    for size, one, part in zip(sizes, resize, part_to_read(whole, resize, SIZE), strict=True):
        y, x, height, width = part.tolist()
        assert height * width < size.prod()
        for row in (y, y + height - 3):
            assert changes(size, one, (slice(row, row + 3), every))
        for column in (x, x + width - 3):
            assert changes(size, one, (every, slice(column, column + 3)))


def changes(size: np.ndarray, resize: np.ndarray, place: tuple[slice, slice]) -> bool:
    """Return True if white pixels at a place of a grey image change the view."""
    image = np.full((*size.tolist(), 3), 128, np.uint8)
    other = image.copy()
    other[place] = 255
    return not np.array_equal(view(image, resize, "bicubic"), view(other, resize, "bicubic"))


def test_a_crop_that_is_kept_whole_is_read_whole() -> None:
    crop = np.array([[3, 5, 40, 60], [0, 0, 1, 1], [7, 7, 500, 2]], np.int32)
    resize = np.tile(np.array([SIZE, SIZE, 0, 0], np.int32), (3, 1))
    np.testing.assert_array_equal(part_to_read(crop, resize, SIZE), crop)


def test_a_crop_has_its_place_in_a_decoded_window() -> None:
    windows, crop = np.array([[4, 9, 30, 30]]), np.array([[6, 9, 5, 7]])
    assert place_in(windows, crop).tolist() == [[2, 0, 5, 7]]
