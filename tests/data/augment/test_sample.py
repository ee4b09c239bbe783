"""PIL's arithmetic without PIL: resize and every operation against PIL's own and timm's functions,
to the last bit."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from fastdeit.data.augment.exact import apply_op
from fastdeit.data.augment.resize.window import resize
from fastdeit.plan.operations import OPS
from tests.support.timm_ops import FILL, arguments_of, picture, timm_op

SHAPES = [(48, 48), (41, 57), (64, 33), (1, 1), (2, 2), (3, 3), (1, 9), (7, 2)]


def pil_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", OPS)
def test_operation_equals_timms(name: str) -> None:
    op = OPS.index(name)
    for seed, arg in enumerate(arguments_of(op, 64).tolist()):
        image = picture(seed, *SHAPES[seed // 2 % len(SHAPES)])
        np.testing.assert_array_equal(
            apply_op(image, op, arg, FILL), timm_op(image, name, arg), f"{seed}: {arg}"
        )


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
@pytest.mark.parametrize("arg", [0.0, 0.5, -1.0, 2.5, 45.0, 90.0, -90.0, 180.0, 270.0, 360.0, 1e-9])
def test_warps_at_round_numbers_equal_timms(name: str, arg: float) -> None:
    for shape in SHAPES[:3]:
        image = picture(0, *shape)
        np.testing.assert_array_equal(
            apply_op(image, OPS.index(name), arg, FILL), timm_op(image, name, arg)
        )


@pytest.mark.parametrize("factor", [-0.5, 0.0, 1e-3, 1.0, 1.9, 3.0])
@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_enhancements_at_any_factor_equal_timms(name: str, factor: float) -> None:
    op = f"{name}Increasing"
    image = picture(0, 40, 30)
    np.testing.assert_array_equal(
        apply_op(image, OPS.index(op), factor, FILL), timm_op(image, op, factor)
    )


def test_smoothing_of_every_sum_is_pils() -> None:
    """Sharpness sums in integers what PIL sums in single precision: all 3316 sums of its window,
    one in each 3 x 3 tile."""
    total = np.arange(13 * 255 + 1)
    tiles = np.zeros((3, len(total), 3), np.uint8)
    tiles[1, :, 1] = np.minimum(total // 5, 255)  # the centre counts five times
    rest = total - 5 * np.minimum(total // 5, 255)
    for y, x in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]:
        tiles[y, :, x] = np.minimum(rest, 255)
        rest = rest - tiles[y, :, x]
    assert not rest.any()
    image = np.repeat(tiles.reshape(3, -1, 1), 3, axis=2)
    for factor in (0.1, 1.7):
        ours = apply_op(image, OPS.index("SharpnessIncreasing"), factor, FILL)
        np.testing.assert_array_equal(ours, timm_op(image, "SharpnessIncreasing", factor))


def test_the_comparison_detects_one_level() -> None:
    image = picture(0, 48, 48)
    rotate = OPS.index("Rotate")
    expected = timm_op(image, "Rotate", 27.0).copy()
    np.testing.assert_array_equal(apply_op(image, rotate, 27.0, FILL), expected)
    assert (apply_op(image, rotate, 27.001, FILL) != expected).any()
    expected[20, 20, 1] ^= 1
    assert (apply_op(image, rotate, 27.0, FILL) != expected).sum() == 1


def test_operation_leaves_its_input_alone() -> None:
    image = picture(0, 20, 20)
    for op in range(len(OPS)):
        apply_op(image, op, 1.3, FILL)
    np.testing.assert_array_equal(image, picture(0, 20, 20))


@pytest.mark.parametrize(
    "shape",
    [
        (375, 500),
        (90, 61),
        (24, 24),
        (24, 300),
        (5, 7),
        (1, 1),
        (1, 40),
        (40, 1),
        (700, 3),
        (2600, 23),
        (3, 700),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 24, 65])
def test_resize_equals_pils(shape: tuple[int, int], size: int) -> None:
    image = picture(4, *shape)
    np.testing.assert_array_equal(
        resize(image, size, size, 0, 0, size), pil_resize(image, size, size)
    )


def test_resize_over_random_shapes() -> None:
    rng = np.random.default_rng(0)
    for seed in range(40):
        height, width, size = rng.integers(1, (300, 300, 130)).tolist()
        image = picture(seed, height, width)
        np.testing.assert_array_equal(
            resize(image, size, size, 0, 0, size), pil_resize(image, size, size), f"{seed}"
        )


@pytest.mark.parametrize("shape", [(60, 80), (33, 20), (2000, 11)])
def test_a_window_equals_that_of_the_whole_image(shape: tuple[int, int]) -> None:
    image, rng = picture(0, *shape), np.random.default_rng(1)
    for _ in range(10):
        height, width = rng.integers(17, 60, 2).tolist()
        y, x = rng.integers(0, height - 16), rng.integers(0, width - 16)
        whole = pil_resize(image, height, width)
        np.testing.assert_array_equal(
            resize(image, height, width, y, x, 17), whole[y : y + 17, x : x + 17]
        )


@pytest.mark.parametrize("shape", [(50, 40), (40, 50), (5, 9)])
@pytest.mark.parametrize("place", [(-4, -4), (-1, 3), (4, 0), (2, -3), (0, 4), (4, 4)])
def test_window_is_reflected_as_by_torchvision(
    shape: tuple[int, int], place: tuple[int, int]
) -> None:
    image, size = picture(0, *shape), 20
    short = min(shape)
    height, width = shape[0] * size // short, shape[1] * size // short
    y, x = place[0] + max(0, height - size), place[1]  # past the lower end too
    padded = functional.pad(
        Image.fromarray(pil_resize(image, height, width)), [4], padding_mode="reflect"
    )
    expected = functional.crop(padded, y + 4, x + 4, size, size)
    np.testing.assert_array_equal(resize(image, height, width, y, x, size), np.asarray(expected))


def test_an_image_may_be_reflected_more_than_once() -> None:
    image = picture(0, 3, 2)
    expected = np.pad(image, ((9, 9), (9, 9), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(resize(image, 3, 2, -9, -9, 20), expected[:20, :20])
    np.testing.assert_array_equal(
        resize(image[:1, :1], 1, 1, -2, -2, 5), np.broadcast_to(image[0, 0], (5, 5, 3))
    )


def test_flip_mirrors_the_window() -> None:
    image = picture(0, 70, 50)
    np.testing.assert_array_equal(
        resize(image, 40, 30, 3, 2, 24, flip=True), resize(image, 40, 30, 3, 2, 24)[:, ::-1]
    )
