"""Figures of plotly as plain data, which the page draws; without importing plotly's graph objects,
which takes longer than all the rest.

Colours are names of the page's style (`--c0`), which has one for a light and one for a dark screen.
"""

import html
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastdeit.report.events import RunEvent
from fastdeit.report.page.curves import Panel, Series, thin
from fastdeit.report.pictures import TokenLayer

COLOURS = 7
"""The number of colours for curves in the style, `--c0` to `--c6`."""
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "3px 2px")
_MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
_SYMBOLS = "●■◆▲✕★✚"
_DASH_LENGTHS = ("none", "7 4", "2 3", "7 3 2 3", "12 4", "12 3 2 3", "3 2")
_GRID = {"gridcolor": "--grid", "zeroline": False, "linecolor": "--grid"}
_FEW = 60  # points, of which each is marked
_MOST_MARKS = 200  # of a kind, in a plot
_MOST_LINES = 40  # of a kind, beyond which its marks have no lines, which would hide the curves


class MarkStyle(NamedTuple):
    """The marks of a kind of event. letter: in the legend, beside the plot's symbol."""

    name: str
    symbol: str
    letter: str


MARKS = {
    "start": MarkStyle("start", "triangle-right-open", "▷"),
    "skipped": MarkStyle("skipped step", "x-thin-open", "✕"),
    "spike": MarkStyle("spike", "triangle-up", "▲"),
    "rollback": MarkStyle("rollback", "triangle-left", "◀"),
    "failure": MarkStyle("failure", "square", "■"),
    "quarantined": MarkStyle("images excluded", "circle-open", "○"),
}
"""The marks by kind of event."""
_OTHER = MarkStyle("other event", "diamond-open", "◇")


@dataclass(frozen=True)
class TimeAxis:
    """The axis that all plots share: optimizer steps, and epochs where every run has as many steps
    in one (else 0)."""

    last_step: int
    steps_per_epoch: int


def name_missing() -> str:
    """Return what a report lacks, in one line; "" if nothing is missing."""
    is_there = importlib.util.find_spec("plotly") is not None
    return "" if is_there else "a report needs plotly: pip install 'fastdeit[report]'"


def read_script() -> str:
    """Return the script of plotly.js. Raises ValueError if plotly is not installed."""
    missing = name_missing()
    if missing:
        raise ValueError(missing)
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def draw_panel(
    panel: Panel, names: Sequence[str], events: Sequence[Sequence[RunEvent]], axis: TimeAxis
) -> dict[str, Any]:
    """Return a figure: the curves, and marks of the events of all runs. names: those of the
    runs."""
    curves = [_draw_curve(one, names) for one in panel.series]
    marks = [
        _draw_marks(kind, run, names, found)
        for run, of_run in enumerate(events)
        for kind, found in group_events(of_run).items()
    ]
    epochs = [{"x": [], "y": [], "xaxis": "x2", "hoverinfo": "skip", "mode": "lines"}]
    return {
        "data": [*curves, *marks, *(epochs if axis.steps_per_epoch else [])],
        "layout": _lay_out(panel, axis),
        "is_timed": True,
        "steps_per_epoch": axis.steps_per_epoch,
    }


def draw_tokens(layers: Sequence[TokenLayer]) -> dict[str, Any]:
    """Return a figure of the cosine of both tokens by layer, with its standard deviation."""
    known = [layer for layer in layers if has_cosine(layer)]
    curve = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "cosine",
        "x": [_quote(layer.name) for layer in known],
        "y": [layer.cosine for layer in known],
        "error_y": {"array": [layer.spread or 0 for layer in known], "color": "--c0"},
        "line": {"color": "--c0", "width": 2},
        "marker": {"color": "--c0", "size": 6},
    }
    axes = {
        "xaxis": {**_GRID, "automargin": True, "type": "category"},
        "yaxis": {**_GRID, "title": {"text": "cosine"}, "fixedrange": True},
    }
    return {"data": [curve], "layout": axes, "is_timed": False}


def has_cosine(layer: TokenLayer) -> bool:
    """Return True if the cosine is known and finite: weights may hold NaN, which JSON lacks."""
    return layer.cosine is not None and math.isfinite(layer.cosine)


class Key(NamedTuple):
    """A curve in the legend below a plot. trace: its number in the figure."""

    trace: int
    name: str
    colour: int
    dashes: str
    symbol: str
    is_shown: bool


def list_keys(panel: Panel, names: Sequence[str]) -> list[Key]:
    """Return the legend of the figure that `draw_panel` returns."""
    keys = []
    for trace, series in enumerate(panel.series):
        colour, dash = _pick_style(series, len(names))
        name = f"{names[series.run]}, {series.name}" if len(names) > 1 else series.name
        lengths, symbol = _DASH_LENGTHS[dash], _SYMBOLS[dash]
        keys.append(Key(trace, name, colour, lengths, symbol, series.is_shown))
    return keys


def _pick_style(series: Series, runs: int) -> tuple[int, int]:
    """Return the number of a curve's colour and of its dash: of one run each measure has its own,
    of several the colour names the run and the dash the measure."""
    colour = series.shape if runs == 1 else series.run
    return colour % COLOURS, series.shape % len(_DASHES)


def group_events(events: Sequence[RunEvent]) -> dict[str, list[RunEvent]]:
    """Return the events by kind."""
    groups: dict[str, list[RunEvent]] = {}
    for event in events:
        groups.setdefault(event.kind, []).append(event)
    return groups


def find_mark(kind: str) -> MarkStyle:
    """Return how events of a kind are drawn."""
    return MARKS.get(kind, _OTHER)


def _draw_curve(series: Series, names: Sequence[str]) -> dict[str, Any]:
    colour, dash = _pick_style(series, len(names))
    thinned = thin(series)
    label = f"{names[series.run]}, {series.name}" if len(names) > 1 else series.name
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(thinned.steps) <= _FEW else "lines",
        "name": _quote(label),
        "x": thinned.steps.tolist(),
        "y": [None if np.isnan(value) else float(f"{value:.6g}") for value in thinned.values],
        "visible": True if series.is_shown else "legendonly",
        "line": {"color": f"--c{colour}", "dash": _DASHES[dash], "width": 2},
        "marker": {"symbol": _MARKERS[dash], "size": 6, "color": f"--c{colour}"},
    }


def _draw_marks(
    kind: str, run: int, names: Sequence[str], events: Sequence[RunEvent]
) -> dict[str, Any]:
    """Return symbols at the top of the plot, with vertical lines, on an axis of their own."""
    style = find_mark(kind)
    few = [events[place] for place in _spread(len(events))]
    is_rare = len(few) <= _MOST_LINES
    owner = f"{names[run]}: " if len(names) > 1 else ""
    texts = [_quote(f"{owner}{style.name}: {event.text}") for event in few]
    colour = f"--c{run % COLOURS}" if len(names) > 1 else "--mark"
    return {
        "type": "scatter",
        "mode": "lines+markers" if is_rare else "markers",
        "meta": kind,
        "yaxis": "y2",
        "x": [value for event in few for value in (event.step, event.step, None)],
        "y": [value for _ in few for value in (0, 1, None)],
        "text": [value for text in texts for value in ("", text, None)],
        "hovertemplate": "step %{x:,}<br>%{text}<extra></extra>",
        "line": {"color": colour, "width": 1, "dash": "dot"},
        "marker": {
            "symbol": style.symbol,
            "size": [value for _ in few for value in (0, 9, 0)],
            "color": colour,
            "line": {"color": colour, "width": 1.5},
        },
    }


def _spread(count: int) -> list[int]:
    """Return at most `_MOST_MARKS` places of as many events, evenly spread."""
    places = np.linspace(0, count - 1, min(count, _MOST_MARKS)).round()
    return sorted(set(places.astype(int).tolist()))


def _lay_out(panel: Panel, axis: TimeAxis) -> dict[str, Any]:
    end = max(axis.last_step, 1)
    layout = {
        "xaxis": {**_GRID, "range": [0, end], "title": {"text": "optimizer step"}},
        "yaxis": {
            **_GRID,
            "title": {"text": _quote(panel.kind.unit)},
            "type": "log" if panel.kind.logarithmic else "linear",
            "exponentformat": "e",
            "dtick": "D2" if panel.kind.logarithmic else None,
            "automargin": True,
            "fixedrange": True,
        },
        "yaxis2": {"overlaying": "y", "range": [0, 1.02], "visible": False, "fixedrange": True},
    }
    if axis.steps_per_epoch:
        layout["xaxis2"] = {
            "overlaying": "x",
            "side": "top",
            "tickmode": "auto",
            "range": [0, end / axis.steps_per_epoch],
            "title": {"text": "epoch"},
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        }
    return layout


def _quote(text: str) -> str:
    """Return a text that plotly shows as it is; it reads some tags of HTML."""
    return html.escape(text)
