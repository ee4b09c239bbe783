"""A list of image files and their classes: CSV, text with blanks or tabs between, or Parquet."""

import csv
import dataclasses
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from fastdeit.data.formats.file_names import is_image, is_litter
from fastdeit.data.formats.folder import list_files
from fastdeit.data.formats.labels import Label, number_labels, read_label
from fastdeit.data.formats.listing import (
    SHOWN,
    DataError,
    Listing,
    open_table,
    read_columns,
    read_text,
    stamp,
)
from fastdeit.display.text import printable, shorten

LIST_SUFFIXES = (".csv", ".tsv", ".parquet", ".txt")
_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "name")
_LABELS = ("label", "class", "target", "class_id", "label_id", "class_name", "category")
_DELIMITERS = (",", ";", "\t")
_BLANKS = " "


class _Entry(NamedTuple):
    """One image of a list."""

    place: str
    """The place of the entry in the list, as `line 3`."""
    path: str
    label: Label


def list_listed(root: Path, file: Path, classes: Sequence[str] | None) -> Listing:
    """List the images of `file`, in its order; their paths are relative to `root` or absolute.

    classes: the names that labels number, or None. Raises DataError for a list that cannot be read,
    without images, or with one twice, and for labels that are not in `classes`.
    """
    read = _read_parquet if file.suffix.lower() == ".parquet" else _read_text
    images: list[_Entry] = []
    litter: list[str] = []
    for place, path, label in read(file):
        name = _relative(root, path)
        if is_litter(name):
            litter.append(name)
        else:
            images.append(_Entry(place, name, label))
    if not images:
        raise DataError(f"{file}: lists no images; each line must have a path and a label")
    _refuse_repeated(file, images)
    folders = sorted({os.path.dirname(entry.path) for entry in images})
    stamps = stamp(root, [file, *filter(os.path.isdir, (root / folder for folder in folders))])

    def place_of(row: int) -> str:
        entry = images[row]
        return f"{file}, {entry.place}: {printable(entry.path)}"

    labels, known = number_labels([entry.label for entry in images], classes, place_of)
    names = pa.array([os.fsencode(entry.path) for entry in images], pa.binary())
    listing = list_files(root, names, labels, known, stamps)
    return dataclasses.replace(listing, notes=_note_litter(file, litter))


def _relative(root: Path, path: str) -> str:
    """Return a path relative to `root`; one with backslashes that does not exist is read as a path
    of Windows."""
    if "\\" in path and not os.path.lexists(root / path):
        path = path.replace("\\", "/")
    return os.path.normpath(os.path.relpath(path, root) if os.path.isabs(path) else path)


def _refuse_repeated(file: Path, entries: Sequence[_Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.path in seen:
            raise DataError(f"{file}: lists {printable(entry.path)} twice")
        seen.add(entry.path)


def _note_litter(file: Path, litter: Sequence[str]) -> tuple[str, ...]:
    if not litter:
        return ()
    shown = f"{len(litter)}, such as {printable(litter[0])}"
    return (f"{file}: files that are no part of a data set are ignored: {shown}",)


def _read_text(file: Path) -> Iterator[_Entry]:
    """Yield the entries of the lines; a first line without an image's name is the heading. Raises
    DataError."""
    lines = list(io.StringIO(read_text(file), newline=""))
    columns: tuple[int, int] | None = None
    try:
        for number, cells in _split(lines, _find_delimiter(file, lines)):
            if not any(cells):
                continue
            if columns is None and not any(map(is_image, cells)):
                columns = _columns(file, cells)
                continue
            columns = columns or (0, 1)
            path, label = (cells[column] if column < len(cells) else "" for column in columns)
            yield _entry(file, f"line {number}", path, label)
    except csv.Error as error:
        raise DataError(f"{file}: is no CSV file that can be read ({error})") from error


def _find_delimiter(file: Path, lines: Sequence[str]) -> str:
    """Return the first delimiter with which the first line is a heading, or an image and a label;
    with _BLANKS, the last word is the label."""
    first = next((line for line in lines if line.strip()), "")
    delimiters = (_BLANKS, *_DELIMITERS) if file.suffix.lower() == ".txt" else _DELIMITERS
    for delimiter in delimiters:
        cells = next((cells for _, cells in _split([first], delimiter)), [])
        if len(cells) > 1 and (any(map(is_image, cells)) or _find_columns(cells)):
            return delimiter
    return delimiters[0]


def _split(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line. Raises csv.Error."""
    if delimiter == _BLANKS:
        for number, line in enumerate(lines, 1):
            words = line.strip().rsplit("\t" if "\t" in line.strip() else None, maxsplit=1)
            yield number, [word.strip().strip('"') for word in words]
        return
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    for row in rows:
        yield rows.line_num, [cell.strip() for cell in row]


def _read_parquet(file: Path) -> Iterator[_Entry]:
    """Yield the entries of the rows. Raises DataError."""
    try:
        table = read_columns(open_table(file))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{file}: is no Parquet file that can be read ({error})") from error
    path, label = _columns(file, table.column_names)
    columns = table.column(path).to_pylist(), table.column(label).to_pylist()
    for row, (name, value) in enumerate(zip(*columns, strict=True)):
        yield _entry(file, f"row {row}", name, value)


def _entry(file: Path, place: str, path: object, value: object) -> _Entry:
    """Return an entry of a list. Raises DataError for an entry without a path or a label."""
    if not isinstance(path, str) or not path or "\0" in path:
        raise DataError(f"{file}, {place}: {shorten(repr(path), 100)} is no path of an image")
    try:
        label = read_label(value)
    except ValueError as error:
        raise DataError(f"{file}, {place}: {printable(path)}: {error}") from None
    if label is None:
        raise DataError(
            f"{file}, {place}: {printable(path)} has no label (got {value!r}); remove the images "
            "that have no class"
        )
    return _Entry(place, path, label)


def _columns(file: Path, names: Sequence[str]) -> tuple[int, int]:
    """Return the numbers of the columns of paths and of labels. Raises DataError if one is
    missing."""
    found = _find_columns(names)
    if found is None:
        shown = ", ".join(map(printable, names[:SHOWN]))
        raise DataError(
            f"{file}: must have one of the columns {', '.join(_PATHS)} and one of "
            f"{', '.join(_LABELS)} (got {shown})"
        )
    return found


def _find_columns(names: Sequence[str]) -> tuple[int, int] | None:
    lower = [name.lower() for name in names]
    path = next((lower.index(word) for word in _PATHS if word in lower), None)
    label = next((lower.index(word) for word in _LABELS if word in lower), None)
    return None if path is None or label is None else (path, label)
