"""Pictures and tables of a run's model: samples, attention, confusions."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from fastdeit.report.page.tables import Column, Table, format_number
from fastdeit.report.pictures import ClassRow, Picture, Pictures

_MOST_CLASSES = 2000
MOST_BYTES = 1_500_000
"""The largest size of the pictures on a page, in bytes; base64 makes 4 bytes of 3."""
_FORMATS = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True)
class ShownImage:
    """An image as the page places it. source: a data URL."""

    source: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Figure:
    """Images with one caption."""

    title: str
    images: tuple[ShownImage, ...]
    lines: tuple[str, ...] = ()


class PictureBudget:
    """The bytes of pictures that the page may still take; `dropped` counts those beyond."""

    def __init__(self, limit: int = MOST_BYTES) -> None:
        self._left = limit
        self.dropped = 0

    def show(self, pictures: Iterable[Picture]) -> tuple[ShownImage, ...]:
        """Return the pictures that fit, as the page places them."""
        return tuple(shown for picture in pictures if (shown := self._show(picture)) is not None)

    def _show(self, picture: Picture) -> ShownImage | None:
        if len(picture.data) > self._left:
            self.dropped += 1
            return None
        self._left -= len(picture.data)
        with Image.open(io.BytesIO(picture.data), formats=_FORMATS) as image:
            kind = Image.MIME[image.format or "PNG"]
            width, height = image.size
        source = f"data:{kind};base64,{base64.b64encode(picture.data).decode()}"
        return ShownImage(source, picture.alt, width, height)


def place_pictures(pictures: Sequence[Picture], budget: PictureBudget) -> tuple[Figure, ...]:
    """Return a figure for each picture that fits."""
    figures = [Figure(one.title, budget.show([one]), one.lines) for one in pictures]
    return tuple(figure for figure in figures if figure.images)


def place_confusions(pictures: Pictures, budget: PictureBudget) -> tuple[Figure, ...]:
    """Return a figure for each pair of classes; without thumbnails where they do not fit."""
    return tuple(
        Figure(
            f"{one.label}, predicted as {one.predicted}: {one.count:,}",
            budget.show(one.thumbnails),
        )
        for one in pictures.confusions
    )


def tabulate_classes(runs: Sequence[Pictures], names: Sequence[str]) -> Table | None:
    """Return a row for each class, with the top-1 of each run; of one run also what the class is
    confused with. None without classes."""
    tables = [{row.name: row for row in run.classes} for run in runs]
    classes = list(dict.fromkeys(name for table in tables for name in table))
    if not classes:
        return None
    few = _pick_lowest(classes, tables)
    which = f"the {len(few):,} lowest of {len(classes):,}" if len(few) < len(classes) else "all"
    rows = tuple(_list_cells(name, [table.get(name) for table in tables]) for name in few)
    scores = names if len(runs) > 1 else ["top-1 %"]
    columns = [Column("class"), Column("images", True), *(Column(one, True) for one in scores)]
    columns += [Column("confused with"), Column("times", True)] if len(runs) == 1 else []
    heads = ", ".join(dict.fromkeys(run.head for run in runs if run.head))
    unit = " (top-1 %)" if len(runs) > 1 else ""
    return Table(f"Classes{unit}, {which}; {heads}", tuple(columns), rows, filter="classes-table")


def _pick_lowest(classes: Sequence[str], tables: Sequence[dict[str, ClassRow]]) -> Sequence[str]:
    """Return the classes, or the few with the lowest top-1 in any run, in their order."""
    if len(classes) <= _MOST_CLASSES:
        return classes
    lowest = sorted(
        classes, key=lambda name: min(table[name].top1 for table in tables if name in table)
    )
    kept = set(lowest[:_MOST_CLASSES])
    return [name for name in classes if name in kept]


def _list_cells(name: str, found: Sequence[ClassRow | None]) -> tuple[str, ...]:
    known = next(row for row in found if row is not None)
    scores = ["" if row is None else f"{row.top1:.2f}" for row in found]
    worst = (known.confused_with, f"{known.confused:,}") if len(found) == 1 else ()
    return (name, f"{known.images:,}", *scores, *worst)


def tabulate_tokens(pictures: Pictures, name: str) -> Table | None:
    """Return cosine and attention distance by layer; None where the model has neither."""
    rows = tuple(
        (layer.name, _format(layer.cosine), _format(layer.spread), _format(layer.distance))
        for layer in pictures.tokens
    )
    columns = (
        Column("place"),
        Column("cosine", True),
        Column("its standard deviation", True),
        Column("attention distance, px", True),
    )
    return Table(f"Tokens of {name} by layer", columns, rows) if rows else None


def _format(value: float | None) -> str:
    return "" if value is None else format_number(value)


def tabulate_disagreement(pictures: Pictures, name: str) -> Table | None:
    """Return the percent of validation images on which each pair answers differently; None where
    it is not known."""
    found = pictures.disagreement
    if found is None:
        return None
    rows = tuple(
        (one, *(f"{value:.2f}" if math.isfinite(value) else "" for value in values))
        for one, values in zip(found.names, found.percent, strict=True)
    )
    columns = (Column("answers"), *(Column(one, True) for one in found.names))
    caption = f"Disagreement in {name}, % of {found.images:,} validation images"
    return Table(caption, columns, rows)
