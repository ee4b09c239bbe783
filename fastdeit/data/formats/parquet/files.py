"""The Parquet files of a split, and their columns of images and labels.

`datasets` writes a column `image` of {bytes, path} and describes it in the metadata `huggingface`
of the schema, with the names of the classes.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fastdeit.data.formats.file_names import has_word, is_litter
from fastdeit.data.formats.listing import SHOWN, DataError
from fastdeit.display.text import printable
from fastdeit.storage.json_values import load_json

SUFFIX = ".parquet"
_IMAGES = ("image", "img", "images", "picture", "pixel_values")
"""The names of the column that is read if several hold images."""
_NUMBERED = re.compile(r"(.*?)(\d{5})-of-(\d{5})(.*)")
_LABELS = ("label", "labels", "fine_label", "class", "target", "class_id")


class Columns(NamedTuple):
    """The columns of a file that are read."""

    encoded: str
    """The path of the column of encoded images, as `image.bytes`."""
    path: str
    """The path of the column of their names; "" if there is none."""
    label: str
    classes: tuple[str, ...] | None
    """The names of the classes, if the file has them."""


def find_parquet(folder: Path, split: str = "") -> tuple[Path, ...]:
    """Return the Parquet files with images in a folder, sorted; empty if there is none.

    split: a word that the names must have, as `train-00000-of-00294.parquet` does; "" for all.
    Raises DataError if a file of a numbered set is missing, or the first file cannot be read.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() == SUFFIX)
    named = [name for name in names if has_word(name, split) or not split]
    files = [folder / name for name in named if not is_litter(name)]
    if not files:
        return ()
    with open_parquet(files[0]) as opened:
        if _find_images(opened.schema_arrow) is None:
            return ()
    _refuse_missing(folder, [file.name for file in files])
    return tuple(files)


def _refuse_missing(folder: Path, names: Sequence[str]) -> None:
    """Raise DataError if a file of `NAME-00003-of-00294.parquet` is missing, or there are two
    versions of the set, each with all images."""
    found = [match for name in names if (match := _NUMBERED.fullmatch(name))]
    for start in dict.fromkeys(match[1] for match in found):
        numbered = [(int(match[3]), int(match[2])) for match in found if match[1] == start]
        total = numbered[0][0]
        if len({size for size, _ in numbered}) > 1 or len(set(numbered)) < len(numbered):
            raise DataError(
                f"{folder}: holds {start}00000-of-{total:05d} in two versions; remove one, or name "
                "the files by a pattern (--train-split, --val-split)"
            )
        absent = sorted(set(range(total)) - {number for _, number in numbered})
        if absent:
            end = next(match[4] for match in found if match[1] == start)
            example = f"{start}{absent[0]:05d}-of-{total:05d}{end}"
            raise DataError(
                f"{folder}: {len(absent)} of {total} files are missing, such as {example}"
            )


def holds_images(file: Path) -> bool:
    """Return True if a file is a Parquet file with a column of encoded images."""
    try:
        with open_parquet(file) as opened:
            return _find_images(opened.schema_arrow) is not None
    except DataError:
        return False


@contextlib.contextmanager
def open_parquet(file: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; do not memory-map it, as a failing disk would kill the process. Raises
    DataError, also in place of arrow's errors in the block."""
    try:
        # not by its path: arrow accepts only names in UTF-8
        with file.open("rb") as raw:
            opened = pq.ParquetFile(raw, pre_buffer=False)
            if opened.metadata.num_rows > file.stat().st_size:
                raise ValueError(f"{opened.metadata.num_rows:,} rows are more than its bytes")
            yield opened
    except DataError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{file}: is no Parquet file that can be read; fetch it again ({reason})"
        ) from error


def find_columns(file: Path, schema: pa.Schema) -> Columns:
    """Return the columns of images and labels. Raises DataError if one is missing."""
    images = _find_images(schema)
    features = _read_features(schema)
    label = _find_label(schema, features)
    if images is None or label is None:
        shown = ", ".join(f"{printable(one.name)}: {one.type}" for one in list(schema)[:SHOWN])
        raise DataError(
            f"{file}: must have a column of images ({{bytes, path}}, or bytes) and one of labels, "
            f"{', '.join(_LABELS)} (got {shown})"
        )
    return Columns(*images, label, _read_classes(file, features.get(label)))


def read_classes(file: Path) -> tuple[str, ...] | None:
    """Return the names of the classes, or None if a file has none; read no image. Raises
    DataError."""
    with open_parquet(file) as opened:
        return find_columns(file, opened.schema_arrow).classes


def _find_images(schema: pa.Schema) -> tuple[str, str] | None:
    """Return the paths of the columns of encoded images and of their names, or None. If several
    columns hold images, take the one whose name comes first in `_IMAGES`."""
    found: dict[str, tuple[str, str]] = {}
    for column in schema:
        if pa.types.is_struct(column.type):
            inner = {field.name: field.type for field in column.type}
            if _is_bytes(inner.get("bytes")):
                path = f"{column.name}.path" if "path" in inner else ""
                found[column.name] = f"{column.name}.bytes", path
    if not found:
        others = [column for column in schema if column.name not in _LABELS]
        found = {column.name: (column.name, "") for column in others if _is_bytes(column.type)}
    if len(found) == 1:
        return next(iter(found.values()))
    return next((found[name] for name in _IMAGES if name in found), None)


def _is_bytes(kind: pa.DataType | None) -> bool:
    return kind in (pa.binary(), pa.large_binary(), pa.binary_view())


def _read_features(schema: pa.Schema) -> dict[str, Any]:
    """Return the description of each column by `datasets`; empty if there is none."""
    try:
        facts = load_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = facts["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _find_label(schema: pa.Schema, features: dict[str, Any]) -> str | None:
    """Return the column of labels, one that `datasets` describes if there is any: of several the
    one that has the first name of `_LABELS`, so the fine label before the coarse one."""
    described = [
        name
        for name in schema.names
        if isinstance(features.get(name), dict) and features[name].get("_type") == "ClassLabel"
    ]
    named = [name for name in _LABELS if name in (described or schema.names)]
    return next(iter([*named, *described]), None)


def _read_classes(file: Path, feature: object) -> tuple[str, ...] | None:
    """Return the names of the classes, or None if there are none. Raises DataError for names that
    are not texts or are repeated."""
    names = feature.get("names") if isinstance(feature, dict) else None
    if not names:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: the names of its classes must be a list of texts")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        shown = printable(repeated[0])
        raise DataError(
            f"{file}: two classes are called '{shown}'; name all in a classes.txt beside the files"
        )
    return tuple(names)
