"""The curves of the ablation: validation accuracy against optimizer steps, by arm."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.arms.comparisons import Row, select_runs

PANELS = {
    "distillation": ("base", "soft", "hard", "token"),
    "the base without a part": (
        *("base", "no RandAugment", "no Mixup", "no CutMix", "no Mixup, no CutMix"),
        *("no erasing", "no DropPath", "no repeats"),
    ),
}


def average_curve(rows: Sequence[Row], arm: str, weights: str) -> dict[int, float]:
    """Return the mean accuracy in percent over an arm's seeds by step, ascending."""
    scores: dict[int, list[float]] = {}
    for row in rows:
        if (row["arm"], row["weights"]) == (arm, weights):
            scores.setdefault(int(row["step"]), []).append(float(row["top1"]))
    return {step: statistics.fmean(scores[step]) for step in sorted(scores)}


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw the mean curve of each arm under the newest conditions, and that of the base's EMA, and
    save the picture."""
    rows = select_runs(rows)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, (title, arms) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for arm in arms:
            _draw(axes, average_curve(rows, arm, "model"), arm, "-")
        axes.set(title=title, xlabel="optimizer steps", ylabel="validation top-1, %")
        _draw(axes, average_curve(rows, "base", "ema"), "base, EMA", "--")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _draw(axes: Axes, curve: dict[int, float], label: str, style: str) -> None:
    if curve:
        axes.plot(list(curve), list(curve.values()), style, label=label, marker=".")
