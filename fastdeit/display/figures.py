"""Figures: grids of images.

Titles are plain text; `$` does not begin a formula.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fastdeit.display.pictures import paint_heat
from fastdeit.display.text import printable

Picture = tuple[np.ndarray, str, tuple[int, ...] | None]
"""The pixels, uint8 (H, W, 3), the title, and a box (y, x, height, width) to draw, or None."""


def save_grid(file: BinaryIO | Path, rows: Sequence[Sequence[Picture]], title: str) -> None:
    """Write a PNG of pictures in rows, which may be of different lengths.

    The same input gives the same bytes.
    """
    columns = max(map(len, rows))
    size = (1.7 * columns, 1.85 * len(rows) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    cells = figure.subplots(len(rows), columns, squeeze=False)
    for axes in cells.flat:
        axes.axis("off")
    for line, row in zip(cells, rows, strict=True):
        for axes, (pixels, name, box) in zip(line, row, strict=False):
            _draw_picture(axes, pixels, name)
            if box is not None:
                _draw_box(axes, box)
    figure.suptitle(printable(title), fontsize=9, parse_math=False)
    _save(figure, file)


def save_heat_maps(
    file: BinaryIO | Path,
    pixels: np.ndarray,
    rows: Sequence[Sequence[tuple[str, np.ndarray]]],
    title: str,
) -> None:
    """Write a PNG with rows of pictures: the image, and the image under each map of the row.

    pixels: uint8 (H, W, 3); rows: names and maps, (h, w) each, resized to the picture. The smallest
    value of a map is dark, its largest is bright.
    """
    grid: list[list[Picture]] = []
    for row in rows:
        maps = [(paint_heat(pixels, heat), name, None) for name, heat in row]
        grid.append([(pixels, "input", None), *maps])
    save_grid(file, grid, title)


def _save(figure: Figure, file: BinaryIO | Path) -> None:
    """Write a PNG that does not depend on a version or the time."""
    with warnings.catch_warnings():
        # a letter that is not in the font is drawn as a box
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})


def _draw_picture(axes: Axes, pixels: np.ndarray, title: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_title(printable(title), fontsize=7, parse_math=False)


def _draw_box(axes: Axes, box: tuple[int, ...]) -> None:
    y, x, height, width = box
    corner = (x - 0.5, y - 0.5)  # pixels are drawn around their centres
    rectangle = Rectangle(corner, width, height, fill=False, edgecolor="red", linewidth=1.2)
    axes.add_patch(rectangle)
