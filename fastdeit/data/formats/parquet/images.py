"""The images of Parquet files: read in order, a few at a time, as pages have no random access."""

import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fastdeit.data.checks.facts import tabulate
from fastdeit.data.formats.check import MAX_BYTES, Checked, check_image, in_parallel
from fastdeit.data.formats.labels import Label, class_names_beside, read_label
from fastdeit.data.formats.listing import DataError, Listing, stamp
from fastdeit.data.formats.parquet.files import Columns, find_columns, open_parquet
from fastdeit.data.formats.shards.samples import Scan
from fastdeit.data.formats.shards.scanned import ScannedFiles
from fastdeit.display.progress import track
from fastdeit.display.text import shorten

_AT_ONCE = 32  # images in memory
_MAX_STEM = 200  # the last characters of a name in the file, which differ most
_PROCESSES_FROM = 2**28  # bytes; below it, starting processes costs more than the decoding


class _Checked(NamedTuple):
    """The images of a file, with their rows as offsets, and the facts of each."""

    scan: Scan
    facts: pa.Table
    classes: tuple[str, ...] | None


def list_parquet(
    root: Path, files: Sequence[Path], classes: Sequence[str] | None, workers: int
) -> Listing:
    """List the images of Parquet files, in the order of files and rows; an image's offset is its
    row. Each image is decoded, since it has to be read anyway.

    classes: the names that labels number; None: those of the files, or those of the labels. Raises
    DataError for a file that cannot be read, for files that name different classes, and for labels
    that are not in `classes`.
    """
    stamps = stamp(root, files)
    paths = [os.path.relpath(file, root) for file in files]
    many = sum(file.stat().st_size for file in files) >= _PROCESSES_FROM
    found = in_parallel(_check_file, files, workers, processes=many)
    scanned = ScannedFiles()
    beside = class_names_beside(files[0].parent)
    facts: list[pa.Table] = []
    named: tuple[str, ...] | None = None
    for path, checked in zip(paths, track(found, len(files), "reading Parquet files"), strict=True):
        scanned.add(checked.scan, f"{path}/")
        facts.append(checked.facts)
        named = named or checked.classes
        if checked.classes and not beside:
            _check_names(f"{root}: {path}", checked.classes, named or (), classes or ())
    listing = scanned.to_listing(root, paths, stamps, classes or named)
    return dataclasses.replace(listing, checked=pa.concat_tables(facts))


def _check_names(
    place: str, own: Sequence[str], before: Sequence[str], classes: Sequence[str]
) -> None:
    """Raise DataError if a file names other classes than the files before it, or has a name of
    `classes` in another place. If no name is in `classes`, the names are those of another language
    or of WordNet, and are accepted."""
    if own != before:
        raise DataError(f"{place} names other classes than the files before it")
    if set(own) & set(classes) and list(own) != list(classes):
        raise DataError(
            f"{place} names other classes than train, or in another order; name all in a "
            "classes.txt beside the files if its labels count those of train"
        )


def _check_file(file: Path) -> _Checked:
    """Return the names, labels and facts of all images of a file. Raises DataError."""
    with open_parquet(file) as opened:
        columns = find_columns(file, opened.schema_arrow)
    scan = Scan()
    found: list[Checked] = []
    wanted = [columns.encoded, columns.label, *filter(None, [columns.path])]
    for batch in _iterate(file, wanted):
        for data, path, value in _rows(batch, columns):
            row = len(found)
            label = _read_label(file, row, value)
            scan.add(_name(row, path), row, len(data or b""), label)
            found.append("has no label" if label is None else _check(data, path))
    return _Checked(scan, tabulate(found), columns.classes)


def _rows(batch: pa.RecordBatch, columns: Columns) -> Iterator[tuple[bytes | None, str, object]]:
    """Yield the encoded image, the name ("" if there is none) and the label of each row."""
    encoded = _values(batch, columns.encoded)
    paths = _values(batch, columns.path) if columns.path else pa.nulls(len(batch))
    for data, path, label in zip(encoded, paths, batch.column(columns.label), strict=True):
        name = path.as_py()
        yield data.as_py(), name if isinstance(name, str) else "", label.as_py()


def _values(batch: pa.RecordBatch, column: str) -> pa.Array:
    """Return a column, or the field of one, by its path."""
    if column in batch.schema.names:
        return batch.column(column)
    outer, _, inner = column.rpartition(".")
    struct = batch.column(outer)
    # flatten: where the struct is null, its fields are null, too
    return struct.flatten()[struct.type.get_field_index(inner)]


def _name(row: int, path: str) -> str:
    stem = os.path.basename(path).replace("\0", "")[-_MAX_STEM:]
    return f"{row:06d}_{stem}" if stem else f"{row:06d}"


def _read_label(file: Path, row: int, value: object) -> Label | None:
    try:
        return read_label(value)
    except ValueError as error:
        raise DataError(f"{file}, row {row}: {error}") from None


def _check(data: bytes | None, path: str) -> Checked:
    if data is None:
        return f"is not in the file, which has its name alone: {shorten(path, _MAX_STEM)!r}"
    if len(data) > MAX_BYTES:
        return f"{len(data)} bytes are more than {MAX_BYTES}"
    return check_image(data)


def _iterate(file: Path, columns: Sequence[str], first_group: int = 0) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file in order, a few at a time, from a row group on. Raises DataError."""
    with open_parquet(file) as opened:
        groups = list(range(first_group, opened.metadata.num_row_groups))
        # as in read_columns
        yield from opened.iter_batches(_AT_ONCE, groups, list(columns), use_threads=False)


class ParquetImages:
    """The encoded images of a file, by row. Rows that are asked for in rising order are read once;
    for another row, its row group is read again."""

    def __init__(self, file: Path) -> None:
        with open_parquet(file) as opened:
            self._column = find_columns(file, opened.schema_arrow).encoded
            facts = opened.metadata
            counts = [facts.row_group(i).num_rows for i in range(facts.num_row_groups)]
        self._file = file
        self._firsts = np.cumsum([0, *counts])
        self._lock = threading.Lock()
        self._first = 0
        self._batch = pa.array([], pa.binary())
        self._batches = _iterate(file, [self._column], 0)

    def __getitem__(self, row: int) -> np.ndarray:
        """Return an encoded image, uint8 (length,). Raises IndexError for a row that does not
        exist, DataError for a file that cannot be read."""
        if not 0 <= row < self._firsts[-1]:
            raise IndexError(f"{self._file}: has {self._firsts[-1]} rows (got {row})")
        with self._lock:
            group = int(np.searchsorted(self._firsts, row, side="right")) - 1
            if row < self._first or self._firsts[group] > self._first + len(self._batch):
                self._start(group)
            try:
                self._read_to(row)
            except DataError:
                self._start(group)  # the fault may be temporary, and a generator ends with an error
                raise
            data = self._batch[row - self._first].as_py() or b""
        return np.frombuffer(data, np.uint8)

    def _read_to(self, row: int) -> None:
        while row >= self._first + len(self._batch):
            batch = next(self._batches, None)
            if batch is None:
                raise DataError(f"{self._file}: has no row {row} any more: was it replaced?")
            self._first += len(self._batch)
            self._batch = _values(batch, self._column)

    def _start(self, group: int) -> None:
        self._batches = _iterate(self._file, [self._column], group)
        self._batch = pa.array([], pa.binary())
        self._first = int(self._firsts[group])
