"""The plots in sentences and tables."""

import math
from collections.abc import Sequence

import numpy as np

from fastdeit.report.page.curves import Panel, PanelKind, Series
from fastdeit.report.page.tables import Column, Table, format_number

_ROWS = 24  # of a table, for each run


def describe_panel(panel: Panel, names: Sequence[str]) -> list[str]:
    """Return a sentence for each curve: first the first curve of each run, then the others. names:
    those of the runs."""
    first = {one.run: one for one in reversed(panel.series)}
    others = [one for one in panel.series if one is not first[one.run]]
    return [
        f"{names[one.run] + ', ' if len(names) > 1 else ''}{one.name}: {_describe(panel.kind, one)}"
        for one in [*(first[run] for run in sorted(first)), *others]
    ]


def _describe(kind: PanelKind, series: Series) -> str:
    finite = np.isfinite(series.values)
    values = series.values[finite]
    steps = series.steps[finite]
    low = int(np.argmin(values))
    high = int(np.argmax(values))
    first, last, median = map(format_number, (values[0], values[-1], np.median(values)))
    middle = f"median {median}" if kind.is_level else f"from {first} to {last}"
    text = (
        f"{middle}, smallest {format_number(values[low])} at step {steps[low]:,.0f}, "
        f"largest {format_number(values[high])} at step {steps[high]:,.0f}"
    )
    text = text if values[low] < values[high] else f"always {first}"
    gaps = len(finite) - len(values)
    return f"{text}; {gaps:,} values are not finite." if gaps else f"{text}."


def tabulate_panel(panel: Panel, names: Sequence[str]) -> Table:
    """Return the values of the curves at steps that are evenly spread over each run."""
    kind = panel.kind
    shapes = sorted({one.shape for one in panel.series})
    first = ("run", "step") if len(names) > 1 else ("step",)
    titles = [*first, *(kind.measures[shape].name for shape in shapes)]
    columns = tuple(Column(title, title != "run") for title in titles)
    rows = []
    for run, name in enumerate(names):
        cells = _list_cells([one for one in panel.series if one.run == run], shapes)
        rows += [(name, *row) for row in cells] if len(names) > 1 else cells
    caption = f"{kind.title}, {kind.unit}; at most {_ROWS} steps of a run, evenly spread"
    return Table(caption, columns, tuple(rows))


def _list_cells(series: Sequence[Series], shapes: Sequence[int]) -> list[tuple[str, ...]]:
    """Return a row for each of at most `_ROWS` steps: the step, and the value of each curve."""
    values = {
        one.shape: dict(zip(one.steps.tolist(), one.values.tolist(), strict=True)) for one in series
    }
    steps = _spread(sorted({step for by_step in values.values() for step in by_step}))
    return [
        (f"{step:,.0f}", *(format_number(_find(values, shape, step)) for shape in shapes))
        for step in steps
    ]


def _find(values: dict[int, dict[float, float]], shape: int, step: float) -> float:
    return values.get(shape, {}).get(step, math.nan)


def _spread(steps: Sequence[float]) -> list[float]:
    """Return at most `_ROWS` of the steps, with the first and the last one."""
    if len(steps) <= _ROWS:
        return list(steps)
    places = np.linspace(0, len(steps) - 1, _ROWS).round().astype(int)
    return [steps[place] for place in places]
