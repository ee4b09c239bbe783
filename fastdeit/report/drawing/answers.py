"""Counts of a run's recorded predictions, made without a model: confusions, and the answers for
each class."""

import numpy as np

from fastdeit.data.index import Index
from fastdeit.data.stored_image import read_stored_image
from fastdeit.display.pictures import draw_row
from fastdeit.inference.scores import list_confusions
from fastdeit.report.pictures import ClassRow, Confusion, Picture
from fastdeit.report.predictions import RecordedPredictions

_HEIGHT = 72  # of a thumbnail, in pixels
_PAIRS = 12  # confusions, the worst ones
_OF_PAIR = 4  # thumbnails of each


def draw_confusions(
    predictions: RecordedPredictions, head: str, index: Index | None
) -> tuple[Confusion, ...]:
    """Return the worst confusions of a head; index: that of the validation images, for thumbnails;
    None: there are no thumbnails."""
    answers = predictions.answers[head]
    names = predictions.classes
    found = []
    for pair in list_confusions(predictions.labels, answers, _PAIRS):
        places = np.flatnonzero((predictions.labels == pair.label) & (answers == pair.predicted))
        rows = predictions.rows[places[:_OF_PAIR]].tolist()
        label, predicted = names[pair.label], names[pair.predicted]
        thumbnails = [_draw(index, row, label, predicted) for row in rows] if index else []
        found.append(Confusion(label, predicted, pair.images, tuple(thumbnails)))
    return tuple(found)


def _draw(index: Index, row: int, label: str, predicted: str) -> Picture:
    pixels = np.asarray(read_stored_image(index, row))
    name = index.name(row)
    alt = f"Validation image {name}, class {label}, classified as {predicted}"
    return Picture(draw_row([pixels], _HEIGHT), name, alt)


def list_classes(predictions: RecordedPredictions, head: str) -> tuple[ClassRow, ...]:
    """Return a row for each class that has images, in their order."""
    labels, answers = predictions.labels, predictions.answers[head]
    hits = np.bincount(labels, weights=answers == labels)
    counts = np.bincount(labels)
    worst: dict[int, tuple[str, int]] = {}
    for pair in list_confusions(labels, answers, len(labels)):
        worst.setdefault(pair.label, (predictions.classes[pair.predicted], pair.images))
    return tuple(
        ClassRow(
            predictions.classes[label],
            int(counts[label]),
            100 * float(hits[label] / counts[label]),
            *worst.get(label, ("", 0)),
        )
        for label in np.flatnonzero(counts).tolist()
    )
