"""The predictions of the newest evaluation of a run, in a file of its folder.

The file holds the most probable class of every head for each validation image. So classes,
confusions and disagreement can be counted, and two runs compared image by image, without a model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastdeit.storage.atomic import atomic_open
from fastdeit.storage.json_values import load_json

_KEY = b"fastdeit"
_SMALL = np.iinfo(np.int16).max


@dataclass(frozen=True)
class RecordedPredictions:
    """One evaluation of a run: one row for each image, in the order of the validation images."""

    step: int
    """The number of optimizer steps done."""
    images: str
    """The hash of the validation images (`Index.fingerprint`)."""
    classes: tuple[str, ...]
    rows: np.ndarray
    """The rows of the validation images, int32 (N,); those that could not be read are absent."""
    labels: np.ndarray
    """The labels, int32 (N,): positions in `classes`."""
    answers: Mapping[str, np.ndarray]
    """The most probable classes, int32 (N,) by MODEL/HEAD; MODEL is model, ema or teacher."""


def write_predictions(path: Path, predictions: RecordedPredictions) -> None:
    """Write predictions as a Parquet file, whole or not at all. Raises OSError."""
    small = len(predictions.classes) <= _SMALL
    kind = pa.int16() if small else pa.int32()
    columns = {"row": pa.array(predictions.rows, pa.int32())}
    named = {"label": predictions.labels, **predictions.answers}
    columns |= {name: pa.array(values).cast(kind) for name, values in named.items()}
    facts = {name: getattr(predictions, name) for name in ("step", "images", "classes")}
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(facts)})
    with atomic_open(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_predictions(path: Path) -> RecordedPredictions | None:
    """Return what `write_predictions` wrote; None if there is no file. Raises ValueError for any
    other file, and OSError."""
    if not path.is_file():
        return None
    try:
        # no thread of Arrow's, as in data/formats/listing.py
        with path.open("rb") as file:
            table = pq.ParquetFile(file, pre_buffer=False).read(use_threads=False)
        facts = _read_facts(table.schema)
        columns = {name: table[name].to_numpy().astype(np.int32) for name in table.column_names}
        return RecordedPredictions(
            step=int(facts["step"]),
            images=str(facts["images"]),
            classes=tuple(map(str, facts["classes"])),
            rows=columns.pop("row"),
            labels=columns.pop("label"),
            answers=columns,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged: {error!r}") from None


def _read_facts(schema: pa.Schema) -> dict[str, Any]:
    return dict(load_json((schema.metadata or {})[_KEY]))


def remove_later(path: Path, step: int) -> None:
    """Remove predictions of a step after `step`, or that are damaged: the run evaluates again.
    Raises OSError."""
    if not path.is_file():
        return
    try:
        is_later = int(_read_facts(pq.read_schema(path))["step"]) > step
    except (KeyError, TypeError, ValueError):
        is_later = True
    if is_later:
        path.unlink()
