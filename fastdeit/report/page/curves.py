"""The curves of the page: what the log of one or several runs has over the optimizer steps, in
panels.

A long curve is thinned so that no extreme is lost: of each interval of it the smallest and the
largest value are drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from fastdeit.report.events import read_number
from fastdeit.report.record import Line, RunRecord

PARTS = 400
"""The number of intervals of a thinned curve, which has two points in each."""


class Measure(NamedTuple):
    """A field of the log as a curve."""

    field: str
    name: str
    scale: float = 1.0
    aside: bool = False
    """True if it is not drawn at first where several runs are compared."""


@dataclass(frozen=True)
class PanelKind:
    """Curves that share an axis of values."""

    title: str
    unit: str
    measures: tuple[Measure, ...]
    logarithmic: bool = False
    is_level: bool = False
    """True if the sentence names the median, in place of first and last value."""


@dataclass(frozen=True)
class Series:
    """One curve of one run. steps, values: float64 (S,); NaN for a value that is not finite."""

    run: int
    shape: int
    """The position of its measure in the panel, which decides dash and marker."""
    name: str
    steps: np.ndarray
    values: np.ndarray
    is_shown: bool = True


@dataclass(frozen=True)
class Panel:
    """A plot before it is drawn."""

    kind: PanelKind
    series: tuple[Series, ...]
    """The curves, with all their points."""


_TOP1 = (
    Measure("ema/both/top1", "EMA, both heads"),
    Measure("model/both/top1", "both heads"),
    Measure("model/cls/top1", "class head", aside=True),
    Measure("model/dist/top1", "distillation head", aside=True),
    Measure("ema/cls/top1", "EMA, class head", aside=True),
    Measure("ema/dist/top1", "EMA, distillation head", aside=True),
    Measure("teacher/both/top1", "teacher", aside=True),
)
_ACCURACY = PanelKind("Validation accuracy", "top-1 %", _TOP1)
_TRAINING = (
    PanelKind(
        "Training loss",
        "loss",
        (
            Measure("loss", "total"),
            Measure("base", "to the labels", aside=True),
            Measure("distill", "to the teacher", aside=True),
        ),
    ),
    PanelKind("Learning rate", "learning rate", (Measure("lr", "learning rate"),)),
    PanelKind(
        "Gradient norm",
        "norm before clipping",
        (
            Measure("grad_norm", "mean since the last line"),
            Measure("grad_norm_max", "largest since the last line", aside=True),
        ),
        logarithmic=True,
    ),
    PanelKind("Throughput", "images/s", (Measure("images_per_s", "images/s"),), is_level=True),
    PanelKind(
        "Wait for data", "% of the time", (Measure("data_wait", "wait", 100),), is_level=True
    ),
    PanelKind("Memory", "GB", (Measure("memory_gb", "largest use"),), is_level=True),
    PanelKind("MFU", "% of the device's peak", (Measure("mfu", "MFU", 100),), is_level=True),
    PanelKind(
        "Model FLOP/s", "TFLOP/s of a device", (Measure("tflops", "TFLOP/s"),), is_level=True
    ),
)
_WITH_TEACHER = {"base", "distill"}  # without a teacher, the total and 0
_REPLACED = {"Model FLOP/s": "MFU"}  # the same curve by another unit


def list_panels(records: Sequence[RunRecord]) -> list[Panel]:
    """Return the panels for which at least one run has numbers."""
    panels = [_make_panel(_ACCURACY, records, evaluated=True)]
    panels += [_make_panel(kind, records) for kind in _TRAINING]
    found = {panel.kind.title: panel for panel in panels if panel.series}
    return [panel for title, panel in found.items() if _REPLACED.get(title) not in found]


def _make_panel(kind: PanelKind, records: Sequence[RunRecord], evaluated: bool = False) -> Panel:
    alone = len(records) == 1
    series: list[Series] = []
    for run, record in enumerate(records):
        lines = record.evaluations if evaluated else record.lines
        curves = _read_curves(kind, lines, run, alone)
        series += curves
        if evaluated and curves:
            series += _draw_teacher(record, run, alone)
    return Panel(kind, tuple(series))


def _read_curves(kind: PanelKind, lines: Sequence[Line], run: int, alone: bool) -> list[Series]:
    """Return the curves of a run that have a finite value."""
    has_teacher = any(read_number(line.get("distill", 0)) != 0 for line in lines)
    curves = []
    for shape, measure in enumerate(kind.measures):
        steps, values = _read_column(lines, measure)
        is_copy = measure.field in _WITH_TEACHER and not has_teacher
        if np.isfinite(values).any() and not is_copy:
            is_shown = alone or not measure.aside
            curves.append(Series(run, shape, measure.name, steps, values, is_shown))
    return curves


def _read_column(lines: Sequence[Line], measure: Measure) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of the lines that have a field, in the order of the steps; NaN for
    what is not finite."""
    found = [line for line in lines if measure.field in line]
    steps = np.array([line["step"] for line in found], np.float64)
    values = np.array([read_number(line[measure.field]) for line in found], np.float64)
    values[~np.isfinite(values)] = math.nan
    order = np.argsort(steps, kind="stable")
    return steps[order], values[order] * measure.scale


def _draw_teacher(record: RunRecord, run: int, alone: bool) -> list[Series]:
    """Return the teacher's accuracy as a level line, as the end of a run measures it."""
    top1 = record.results.get("teacher/both/top1", math.nan)
    if not math.isfinite(top1):
        return []
    steps = np.array([0, record.last_step], np.float64)
    shape = len(_TOP1) - 1
    return [Series(run, shape, _TOP1[shape].name, steps, np.full(2, top1), alone)]


def thin(series: Series) -> Series:
    """Return a curve with at most `2 * PARTS + 1` points: of each interval of it those of the
    smallest and the largest value, and the last point."""
    count = len(series.steps)
    if count <= 2 * PARTS:
        return series
    kept = {count - 1}
    for part in np.array_split(np.arange(count), PARTS):
        kept |= {int(part[place]) for place in _find_extremes(series.values[part])}
    rows = sorted(kept)
    return replace(series, steps=series.steps[rows], values=series.values[rows])


def _find_extremes(values: np.ndarray) -> tuple[int, int]:
    """Return where the smallest and the largest value is; 0 where none is finite, which draws a
    gap."""
    if not np.isfinite(values).any():
        return (0, 0)
    return (int(np.nanargmin(values)), int(np.nanargmax(values)))


def find_steps_per_epoch(record: RunRecord) -> int:
    """Return the optimizer steps of an epoch as the log shows them; 0 if it does not."""
    lines = [line for line in (*record.lines, *record.evaluations) if _has_whole_epoch(line)]
    if not lines:
        return 0
    last = max(lines, key=lambda line: line["step"])
    return round(last["step"] / read_number(last["epoch"]))


def _has_whole_epoch(line: Line) -> bool:
    epoch = read_number(line.get("epoch"))
    return math.isfinite(epoch) and epoch >= 1
