"""Figures of a run: its curves, and grids of images.

Titles are plain text, in which `$` begins no formula.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from fastdeit.display.pictures import paint_heat
from fastdeit.display.pixels import denormalise
from fastdeit.display.text import printable

Picture = tuple[np.ndarray, str, tuple[int, ...] | None]
"""Pixels uint8 (H, W, 3), a title, and a box (y, x, height, width) to draw, if any."""

_LOSSES = {"loss": "training loss", "base": "to the labels", "distill": "to the teacher"}
_ACCURACIES = {
    "model/cls/top1": "class head",
    "model/dist/top1": "distillation head",
    "model/both/top1": "both heads",
    "ema/both/top1": "EMA, both heads",
}


def save_report(
    file: BinaryIO | Path,
    metrics: Sequence[Mapping[str, Any]],
    images: torch.Tensor,
    titles: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Write a PNG: loss, learning rate and accuracy on the left, training samples on the right.

    metrics: lines of metrics.jsonl; images: (B, 3, H, W), normalised by mean and std (for values
    from 0 to 1); titles: one per image.
    """
    figure = Figure(figsize=(14, 7), layout="constrained")
    halves = figure.add_gridspec(1, 2, width_ratios=(1, 1.2))
    _draw_curves(figure.add_subfigure(halves[0]), metrics)
    pixels = denormalise(images, mean, std)
    _draw_samples(figure.add_subfigure(halves[1]), pixels, titles)
    _save(figure, file)


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
    """Write a PNG: in each row a picture, and maps drawn over it.

    pixels: uint8 (H, W, 3); rows: names and maps, (h, w) each, resized to the picture. The smallest
    value of a map is dark, its largest is bright.
    """
    grid: list[list[Picture]] = []
    for row in rows:
        maps = [(paint_heat(pixels, heat), name, None) for name, heat in row]
        grid.append([(pixels, "input", None), *maps])
    save_grid(file, grid, title)


def _save(figure: Figure, file: BinaryIO | Path) -> None:
    """Write a PNG that depends on no version or time."""
    with warnings.catch_warnings():
        # a letter that the font lacks is drawn as a box
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


def _draw_curves(figure: SubFigure, metrics: Sequence[Mapping[str, Any]]) -> None:
    above, below = figure.subplots(2, 1, sharex=True)
    _draw_lines(above, metrics, _LOSSES)
    above.set_ylabel("loss")
    rate = above.twinx()
    _draw_lines(rate, metrics, {"lr": "learning rate"}, color="0.7", linestyle="--")
    rate.set_ylabel("learning rate")
    if rate.lines:
        rate.legend(loc="lower left", frameon=False)
    _draw_lines(below, metrics, _ACCURACIES, marker=".")
    below.set_ylabel("validation top-1 %")
    below.set_xlabel("optimizer step")


def _draw_lines(
    axes: Axes, metrics: Sequence[Mapping[str, Any]], labels: Mapping[str, str], **style: Any
) -> None:
    """Draw a line for each metric that is there and is not always 0. labels: by metric."""
    for name, label in labels.items():
        lines = [line for line in metrics if name in line]
        values = [line[name] for line in lines]
        if any(values):
            axes.plot([line["step"] for line in lines], values, label=label, **style)
    if axes.lines:
        axes.legend(loc="best", frameon=False)


def _draw_samples(figure: SubFigure, pixels: np.ndarray, titles: Sequence[str]) -> None:
    """Draw samples in a square. pixels: uint8 (B, H, W, 3)."""
    side = max(1, int(np.ceil(np.sqrt(len(pixels)))))
    cells = np.atleast_1d(figure.subplots(side, side)).ravel()
    for axes in cells:
        axes.axis("off")
    for axes, picture, title in zip(cells, pixels, titles, strict=False):
        _draw_picture(axes, picture, title)
    figure.suptitle("training samples, augmented and mixed", fontsize=10)
