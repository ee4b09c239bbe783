"""Pictures for a page: images beside each other, frames."""

import io

import numpy as np
import pytest
from PIL import Image

from fastdeit.display.pictures import draw_frame, draw_row, paint_heat


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def draw(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("has_webp", [True, False])
def test_small_images_are_enlarged_without_a_loss(
    has_webp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdeit.display.pictures.features.check", lambda _: has_webp)
    one, other = draw(8, 8), draw(8, 4)
    data = draw_row([one, other], 32)
    assert data.startswith(b"RIFF" if has_webp else b"\x89PNG")
    shown = decode(data)
    assert shown.shape == (32, 32 + 4 + 16, 4)
    np.testing.assert_array_equal(shown[2::4, 2:32:4, :3], one)
    np.testing.assert_array_equal(shown[2::4, 38::4, :3], other)
    assert not shown[:, 32:36, 3].any() and shown[:, :32, 3].all()


@pytest.mark.parametrize(
    ("size", "shown"),
    [((300, 200), (72, 48)), ((10, 1000), (1, 144)), ((1000, 10), (72, 1)), ((1, 1), (72, 72))],
)
def test_images_of_any_shape_fit(size: tuple[int, int], shown: tuple[int, int]) -> None:
    """A long image is at most twice as wide as high, with nothing above and below."""
    data = decode(draw_row([draw(*size)], 72))
    assert data.shape[:2] == (72, shown[1])
    alpha = data[..., 3] if data.shape[2] == 4 else np.full(data.shape[:2], 255)
    assert int((alpha > 128).any(1).sum()) == shown[0]


@pytest.mark.parametrize("box", [(2, 1, 5, 4), (0, 0, 8, 9), (3, 3, 1, 1), (0, 0, 2, 2)])
def test_a_frame_is_the_border_of_the_box(box: tuple[int, int, int, int]) -> None:
    pixels = draw(8, 9) // 2
    framed = draw_frame(pixels, box)
    y, x, height, width = box
    red = (framed == (255, 0, 0)).all(-1)
    expected = np.zeros((8, 9), bool)
    expected[y : y + height, x : x + width] = True
    expected[y + 1 : y + height - 1, x + 1 : x + width - 1] = False
    np.testing.assert_array_equal(red, expected)
    np.testing.assert_array_equal(framed[~red], pixels[~red])


def test_heat_is_bright_where_the_map_is_large() -> None:
    heat = np.array([[0.0, 1.0], [0.0, 0.0]], np.float32)
    painted = paint_heat(np.zeros((8, 8, 3), np.uint8), heat).astype(int).sum(-1)
    assert painted[0, 7] == painted.max() and painted[7, 0] == painted.min()
    flat = paint_heat(np.zeros((8, 8, 3), np.uint8), np.ones((2, 2), np.float32))
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1
