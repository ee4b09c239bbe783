"""All pictures of a run; what cannot be drawn is a note."""

from collections.abc import Callable
from typing import Any, TypeVar

from fastdeit.analysis.disagreement import compare_answers
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.data.snapshot import read_classes
from fastdeit.data.table import table_places
from fastdeit.display.terminal import note_failure
from fastdeit.display.text import printable
from fastdeit.report.drawing.answers import draw_confusions, list_classes
from fastdeit.report.drawing.attention import analyse_run, choose_weights, list_layers
from fastdeit.report.drawing.samples import draw_samples, find_data, find_settings
from fastdeit.report.pictures import Pictures
from fastdeit.report.predictions import RecordedPredictions
from fastdeit.report.record import RunRecord

_ANALYSED = 8  # validation images whose attention is drawn
_MODELS = {"ema": "EMA, both heads", "model": "both heads"}
_Value = TypeVar("_Value")


class _Drawing:
    """The parts of `Pictures` that could be drawn; `notes` has a line for each that could not."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def attempt(self, what: str, draw: Callable[[], _Value]) -> _Value | None:
        """Return what `draw` returns; None, with a note, if it fails in any way."""
        with note_failure(what, self.notes.append):
            try:
                return draw()
            except (OSError, ValueError) as error:
                self.notes.append(f"no {what}: {printable(' '.join(str(error).split()))}")
        return None


def draw_pictures(record: RunRecord, *, images: int = 16) -> Pictures:
    """Draw a run's first samples, attention maps and confusions, on the CPU; nothing is written
    into its folder.

    images: the largest number of samples; of the validation images at most 8 are drawn. Nothing is
    raised for data or weights that do not exist: `Pictures.notes` names what is missing.
    """
    drawing = _Drawing()
    parts: dict[str, Any] = {}
    parts["samples"] = drawing.attempt("grid of samples", lambda: draw_samples(record, images))
    index = drawing.attempt("index of the validation images", lambda: find_validation(record))
    parts |= _draw_attention(drawing, record, index, min(images, _ANALYSED))
    parts |= _draw_answers(drawing, record, index)
    found = {name: part for name, part in parts.items() if part is not None}
    return Pictures(**found, notes=tuple(drawing.notes))


def find_validation(record: RunRecord) -> Index:
    """Return the index of a run's validation images, from the table that is stored beside the data.

    Raises ValueError if there is none: a report does not decode a whole data set.
    """
    settings = find_settings(record)
    data = settings.data
    root = find_data(settings)
    places = table_places(root, data.val_split, None)
    if not any(place.is_file() for place in places):
        raise ValueError(f"{root} has no stored index; `fastdeit index {root}` makes it")
    classes = read_classes(record.folder.train_images)
    return build_index(
        root, data.val_split, classes=classes, bad_images="skip", check=data.index_check
    )


def _draw_attention(
    drawing: _Drawing, record: RunRecord, index: Index | None, count: int
) -> dict[str, Any]:
    """Return the parts that need weights and validation images."""
    if index is None:
        return {}
    found = drawing.attempt("picture of attention", lambda: analyse_run(record, index, count))
    if found is None:
        return {}
    analysis, pictures = found
    drawing.notes += analysis.notes
    return {"attention": pictures, "tokens": list_layers(analysis)}


def _draw_answers(drawing: _Drawing, record: RunRecord, index: Index | None) -> dict[str, Any]:
    """Return the parts that the recorded predictions show."""
    found = record.predictions
    if found is None:
        drawing.notes.append("the run has recorded no predictions; `fastdeit evaluate` scores them")
        return {}
    if index is not None and index.fingerprint() != found.images:
        drawing.notes.append("the validation images have changed since the newest evaluation")
        index = None
    chosen = choose_weights(record)
    model = chosen if f"{chosen}/both" in found.answers else "model"
    name = f"{model}/both"
    count = drawing.attempt("count of the answers", lambda: _count_answers(found, name)) or {}
    worst = drawing.attempt("picture of a confusion", lambda: draw_confusions(found, name, index))
    pairs = {} if worst is None else {"confusions": worst}
    return {"head": _MODELS[model], **count, **pairs}


def _count_answers(found: RecordedPredictions, name: str) -> dict[str, Any]:
    return {
        "confusions": draw_confusions(found, name, None),
        "classes": list_classes(found, name),
        "disagreement": compare_answers(found.labels, found.answers),
    }
