"""Each image of a batch is decoded once, for the bounding box of its copies' crops."""

import numpy as np
import pytest

from fastdeit.data.graphs.copies import plan_decoding
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

SIZES = np.random.default_rng(0).integers(20, 90, (50, 2)).astype(np.int32)
"""Heights and widths of the stored images."""


def test_window_is_the_bounding_box_of_the_copies() -> None:
    image_index = np.array([7, 3, 7, 5])
    crop = np.array([[2, 9, 4, 4], [0, 0, 8, 6], [5, 1, 3, 2], [1, 1, 1, 1]], np.int32)
    decoding = plan_decoding(image_index, crop)
    assert decoding.rows.tolist() == [3, 5, 7]
    assert decoding.windows.tolist() == [[0, 0, 8, 6], [1, 1, 1, 1], [2, 1, 6, 12]]
    assert decoding.group.tolist() == [2, 0, 2, 1]
    assert decoding.first.tolist() == [1, 3, 0]
    assert decoding.place(crop).tolist() == [
        [0, 8, 4, 4],
        [0, 0, 8, 6],
        [3, 0, 3, 2],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_crops_of_the_plan_lie_in_their_windows(repeats: int) -> None:
    draws = Plan(PlanSpec(repeats=repeats), SIZES).draw(0, np.arange(16))
    decoding = plan_decoding(draws.image_index, draws.crop)
    assert len(np.unique(decoding.rows)) == len(decoding.rows)
    assert np.array_equal(decoding.rows[decoding.group], draws.image_index)
    pixels = np.arange(90 * 90).reshape(90, 90)
    placed = decoding.place(draws.crop)
    for sample, group in enumerate(decoding.group):
        y, x, height, width = draws.crop[sample]
        expected = pixels[y : y + height, x : x + width]
        y, x, height, width = decoding.windows[group]
        window = pixels[y : y + height, x : x + width]
        y, x, height, width = placed[sample]
        assert np.array_equal(window[y : y + height, x : x + width], expected)
        assert expected.shape == (height, width)


@pytest.mark.parametrize(("repeats", "images"), [(1, 16), (2, 9), (3, 7)])
def test_copies_of_neighbours_share_a_window(repeats: int, images: int) -> None:
    """Of 16 samples; side 1 holds copies of the next pairs too."""
    draws = Plan(PlanSpec(repeats=repeats), SIZES).draw(0, np.arange(16))
    assert len(plan_decoding(draws.image_index, draws.crop).rows) == images
