"""The rows of the kernels: where each crop lies in the buffer of decoded windows."""

import numpy as np

from fastdeit.data.device.rows import count_bytes, pack_changes, place_crops
from fastdeit.data.graphs.copies import plan_decoding
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

SIZES = np.array([(40, 50), (33, 90), (7, 12), (64, 31), (20, 20), (1, 9)])


def test_rows_find_each_crop_in_the_buffer() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES.tolist()]
    draws = Plan(PlanSpec(input_size=8, repeats=3), SIZES).draw(1, np.arange(6))
    decoding = plan_decoding(draws.image_index, draws.crop)
    assert len(decoding.rows) < 6
    parts = [
        images[row][y : y + h, x : x + w].ravel()
        for row, (y, x, h, w) in zip(decoding.rows, decoding.windows.tolist(), strict=True)
    ]
    assert [len(part) for part in parts] == count_bytes(decoding.windows).tolist()
    packed = np.concatenate(parts)
    start, stride, shape, resize, flip = place_crops(draws, decoding.windows, decoding.group)
    assert (start.dtype, stride.dtype, shape.dtype, flip.dtype) == ("i8", "i4", "i4", bool)
    assert resize is draws.resize and flip is draws.flip
    for number, (height, width) in enumerate(shape.tolist()):
        y, x, *_ = draws.crop[number]
        steps = (int(stride[number]), 3, 1)
        found = np.lib.stride_tricks.as_strided(packed[start[number] :], (height, width, 3), steps)
        image = images[draws.image_index[number]]
        np.testing.assert_array_equal(found, image[y : y + height, x : x + width])


def test_offsets_beyond_32_bits_are_right() -> None:
    """512 windows of 4 million pixels are 6 GB."""
    sizes = np.full((600, 2), 2000)
    draws = Plan(PlanSpec(repeats=1, simple_crop=True), sizes).draw(0, np.arange(512))
    decoding = plan_decoding(draws.image_index, draws.crop)
    start = place_crops(draws, decoding.windows, decoding.group)[0]
    assert sorted(start.tolist()) == [12_000_000 * number for number in range(512)]


def test_keys_keep_their_64_bits() -> None:
    draws = Plan(PlanSpec(repeats=1), SIZES).draw(0, np.arange(4))
    ops, args, erase, key = pack_changes(draws)
    assert (ops.dtype, args.shape, erase.dtype, key.dtype) == ("i4", (4, 2, 2), "i4", "i8")
    assert (key.view(np.uint64) == draws.noise_key).all()
