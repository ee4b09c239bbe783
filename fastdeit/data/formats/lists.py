"""A list of image files and their classes: CSV, text with blanks or tabs between, or Parquet."""

import csv
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from fastdeit.data.formats.check import EXTENSIONS
from fastdeit.data.formats.folder import list_files
from fastdeit.data.formats.listing import DataError, Listing, number_labels, open_table, stamp

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
        raise DataError(f"{file}: lists no images; allowed is a path and a label on each line")
    seen: set[str] = set()
    twice = next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]
    if twice is not None:
        raise DataError(f"{file}: lists {twice} twice")
    folders = sorted({os.path.dirname(root / name) for name in names})
    stamps = stamp(root, [file, *filter(os.path.isdir, folders)])
    labels, known = number_labels(raw, classes, str(file), names)
    return list_files(
        root, pa.array(list(map(os.fsencode, names)), pa.binary()), labels, known, stamps
    )


def _read_text(file: Path) -> tuple[list[str], list[str]]:
    """Return the paths and the labels of the lines; a first line without an image's name is the
    heading."""
    with open(file, encoding="utf-8", errors="surrogateescape", newline="") as lines:
        try:
            rows = (
                list(csv.reader(lines))
                if file.suffix.lower() == ".csv"
                else [line.rsplit(maxsplit=1) for line in lines]
            )
        except csv.Error as error:
            raise DataError(f"{file}: is no CSV file that can be read ({error})") from error
    filled = [
        (number, [cell.strip() for cell in row])
        for number, row in enumerate(rows, 1)
        if any(map(str.strip, row))
    ]
    path, label = 0, 1
    if filled and not any(cell.lower().endswith(EXTENSIONS) for cell in filled[0][1]):
        path, label = _columns(file, [cell.lower() for cell in filled.pop(0)[1]])
    for number, row in filled:
        if len(row) <= max(path, label) or not row[path] or not row[label]:
            raise DataError(f"{file}, line {number}: {','.join(row)!r} is no path and label")
    return [row[path] for _, row in filled], [row[label] for _, row in filled]


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
                f"{file}, row {row}: {name!r}, {value!r} is no path and label; labels are whole numbers or names"
            )
    return paths, labels


def _columns(file: Path, names: Sequence[str]) -> tuple[int, int]:
    found = [
        next((names.index(word) for word in words if word in names), None)
        for words in (_PATHS, _LABELS)
    ]
    if found[0] is None or found[1] is None:
        shown = ", ".join(itertools.islice(names, 10))
        raise DataError(
            f"{file}: has the columns {shown}; allowed is one of {', '.join(_PATHS)} and one of {', '.join(_LABELS)}"
        )
    return found[0], found[1]
