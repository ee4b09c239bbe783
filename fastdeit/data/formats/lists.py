"""A list of image files and their classes: CSV, text with blanks or tabs between, or Parquet."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from fastdeit.data.formats.check import EXTENSIONS
from fastdeit.data.formats.folder import list_files
from fastdeit.data.formats.listing import (
    SHOWN,
    DataError,
    Listing,
    number_labels,
    open_table,
    stamp,
)

LIST_SUFFIXES = (".csv", ".parquet", ".txt")
_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "name")
_LABELS = ("label", "class", "target", "class_id", "label_id", "class_name", "category")


def list_listed(root: Path, file: Path, classes: Sequence[str] | None) -> Listing:
    """List the images of `file`, in its order; their paths are relative to `root` or absolute."""
    paths, raw = _read_parquet(file) if file.suffix.lower() == ".parquet" else _read_text(file)
    names = [
        os.path.normpath(os.path.relpath(path, root) if os.path.isabs(path) else path)
        for path in paths
    ]
    if not names:
        raise DataError(f"{file}: lists no images; each line must have a path and a label")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{file}: lists {name} twice")
        seen.add(name)
    folders = sorted({os.path.dirname(root / name) for name in names})
    stamps = stamp(root, [file, *filter(os.path.isdir, folders)])
    labels, known = number_labels(raw, classes, str(file), names)
    encoded = pa.array(list(map(os.fsencode, names)), pa.binary())
    return list_files(root, encoded, labels, known, stamps)


def _read_text(file: Path) -> tuple[list[str], list[str]]:
    """Return the paths and the labels of the lines; a first line without an image's name is the
    heading."""
    paths = []
    labels = []
    path, label = 0, 1  # columns
    is_first = True
    for number, row in enumerate(_read_rows(file), 1):
        if not any(row):
            continue
        if is_first and not any(cell.lower().endswith(EXTENSIONS) for cell in row):
            path, label = _columns(file, [cell.lower() for cell in row])
        elif len(row) <= max(path, label) or not row[path] or not row[label]:
            raise DataError(f"{file}, line {number}: {','.join(row)!r} is no path and label")
        else:
            paths.append(row[path])
            labels.append(row[label])
        is_first = False
    return paths, labels


def _read_rows(file: Path) -> list[list[str]]:
    """Return the cells of each line: of a CSV file, or the last word and all before it."""
    with open(file, encoding="utf-8", errors="surrogateescape", newline="") as lines:
        try:
            if file.suffix.lower() == ".csv":
                rows = list(csv.reader(lines))
            else:
                rows = [line.rsplit(maxsplit=1) for line in lines]
        except csv.Error as error:
            raise DataError(f"{file}: is no CSV file that can be read ({error})") from error
    return [[cell.strip() for cell in row] for row in rows]


def _read_parquet(file: Path) -> tuple[list[str], list[int | str | None]]:
    try:
        table = open_table(file).read()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{file}: is no Parquet file that can be read ({error})") from error
    path, label = _columns(file, [name.lower() for name in table.column_names])
    paths, labels = table.column(path).to_pylist(), table.column(label).to_pylist()
    for row, (name, value) in enumerate(zip(paths, labels, strict=True)):
        if not isinstance(name, str) or not name or not isinstance(value, int | str):
            raise DataError(
                f"{file}, row {row}: {name!r}, {value!r} is no path and label; a label must be a "
                "whole number or a name"
            )
    return paths, labels


def _columns(file: Path, names: Sequence[str]) -> tuple[int, int]:
    """Return the columns of the path and of the label."""
    path = next((names.index(word) for word in _PATHS if word in names), None)
    label = next((names.index(word) for word in _LABELS if word in names), None)
    if path is None or label is None:
        shown = ", ".join(names[:SHOWN])
        raise DataError(
            f"{file}: must have one of the columns {', '.join(_PATHS)} and one of "
            f"{', '.join(_LABELS)} (got {shown})"
        )
    return path, label
