"""Figures: pixels of normalised images, grids of pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdeit.display.figures import Picture, save_grid
from fastdeit.display.pixels import denormalise

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@pytest.mark.parametrize("shape", [(5, 7, 3), (2, 5, 7, 3)], ids=str)
def test_pixels_survive_normalising_and_back(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    scaled = torch.from_numpy(pixels).float() / 255
    images = ((scaled - torch.tensor(MEAN)) / torch.tensor(STD)).movedim(-1, -3)
    assert np.array_equal(denormalise(images, MEAN, STD), pixels)


def test_values_out_of_range_are_clipped() -> None:
    images = torch.tensor([-9.0, 0.0, 9.0]).view(3, 1, 1).bfloat16()
    assert denormalise(images, (0.5,) * 3, (0.5,) * 3).tolist() == [[[0, 128, 255]]]


def test_grid_of_uneven_rows_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 3), 200, np.uint8)
    boxed = (pixels, "b", (1, 2, 3, 4))
    rows: list[list[Picture]] = [[(pixels, "a", None), boxed], [(pixels, "c", None)]]
    for name in ("one.png", "two.png"):
        save_grid(tmp_path / name, rows, "title")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    drawn = np.asarray(Image.open(tmp_path / "one.png").convert("RGB")).astype(int)
    assert (drawn[..., 0] - drawn[..., 1] > 100).any(), "the box is red"


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    "title",
    [
        "Price_$10_to_$20",
        r"$\frac$ \alpha",
        "K\udce4se",
        "\x1b[31m\n\0",
        "猫 \u202e",
        "x" * 5000,
        "",
    ],
)
def test_any_title_is_drawn(title: str, tmp_path: Path) -> None:
    pixels = np.full((8, 8, 3), 200, np.uint8)
    save_grid(tmp_path / "grid.png", [[(pixels, title, None)] * 2], title)
    with Image.open(tmp_path / "grid.png") as drawn:
        assert drawn.size == (340, 235)
