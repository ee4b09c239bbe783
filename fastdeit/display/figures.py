"""Pictures of a run: its curves, and a grid of training samples as the model saw them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.patches import Rectangle


def save_report(
    path: Path,
    metrics: Sequence[Mapping[str, Any]],
    images: torch.Tensor,
    titles: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Writes a PNG: loss, learning rate and accuracy on the left; on the right a grid of augmented,
    mixed samples.

    metrics: lines of metrics.jsonl; images: (B, 3, H, W) normalised by mean and std (0..1 scale);
    titles: one an image.
    """
    figure = plt.figure(figsize=(14, 7), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.2))
    _draw_curves(left, metrics)
    _draw_grid(right, images, titles, mean, std)
    figure.savefig(path, dpi=100)
    plt.close(figure)


Picture = tuple[np.ndarray, str, tuple[int, ...] | None]
"""Pixels uint8 (H, W, 3), a title, and a box (y, x, height, width) to draw, if any."""


def save_grid(path: Path, rows: Sequence[Sequence[Picture]], title: str) -> None:
    """Writes a PNG of pictures in rows, which may be of different lengths; the same input gives the
    same bytes."""
    columns = max(map(len, rows))
    size = (1.7 * columns, 1.85 * len(rows) + 0.5)
    figure, cells = plt.subplots(
        len(rows), columns, figsize=size, squeeze=False, layout="constrained"
    )
    for axes in cells.flat:
        axes.axis("off")
    for line, row in zip(cells, rows, strict=True):
        for axes, (pixels, name, box) in zip(line, row, strict=False):
            axes.imshow(pixels, interpolation="nearest")
            axes.set_title(name, fontsize=7)
            if box is not None:
                y, x, height, width = box
                axes.add_patch(
                    Rectangle(
                        (x - 0.5, y - 0.5),
                        width,
                        height,
                        fill=False,
                        edgecolor="red",
                        linewidth=1.2,
                    )
                )
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def _draw_curves(figure: SubFigure, metrics: Sequence[Mapping[str, Any]]) -> None:
    above, below = figure.subplots(2, 1, sharex=True)
    _draw(
        above,
        metrics,
        {"loss": "training loss", "base": "to the labels", "distill": "to the teacher"},
    )
    above.set_ylabel("loss")
    rate = above.twinx()
    _draw(rate, metrics, {"lr": "learning rate"}, color="0.7", linestyle="--")
    rate.set_ylabel("learning rate")
    rate.legend(loc="lower left", frameon=False)
    accuracies = {
        "model/cls/top1": "class head",
        "model/dist/top1": "distillation head",
        "model/both/top1": "both heads",
    }
    _draw(below, metrics, accuracies | {"ema/both/top1": "EMA, both heads"}, marker=".")
    below.set_ylabel("validation top-1 %")
    below.set_xlabel("optimizer step")


def _draw(
    axes: Axes, metrics: Sequence[Mapping[str, Any]], names: Mapping[str, str], **style: Any
) -> None:
    for name, label in names.items():
        points = [(line["step"], line[name]) for line in metrics if name in line]
        if points and any(value for _, value in points):
            axes.plot(*zip(*points, strict=True), label=label, **style)
    if axes.lines:
        axes.legend(loc="best", frameon=False)


def _draw_grid(
    figure: SubFigure,
    images: torch.Tensor,
    titles: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    side = max(1, int(np.ceil(np.sqrt(len(images)))))
    pixels = (
        images.float().cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    )
    pictures = pixels.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    cells = np.atleast_1d(figure.subplots(side, side)).ravel()
    for cell in cells:
        cell.axis("off")
    for cell, picture, title in zip(cells, pictures, titles, strict=False):
        cell.imshow(picture, interpolation="nearest")
        cell.set_title(title, fontsize=7)
    figure.suptitle("training samples, augmented and mixed", fontsize=10)
