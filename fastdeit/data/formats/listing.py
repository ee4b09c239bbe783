"""The listing of a split, before any image is decoded: one form for all formats."""

import mmap
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastdeit.data.formats.check import ImageInfo
from fastdeit.distributed.errors import RunError

SHOWN = 10
"""Number of names that an error lists."""
MAX_CLASSES = 2**20
UNKNOWN = -1
"""Label of an image that has none; it has a fault too."""
_SETTLED_S = 2.0  # file systems count time in steps of up to so much

Stamps = dict[str, list[int]]
"""From a path relative to the root to its bytes (-1: a folder) and modification time in ns (-1: may
still have changed)."""


class DataError(RunError, ValueError):
    """A data set that cannot be used as it is; the message names the path and what is required."""


@dataclass(frozen=True)
class Listing:
    """The images of a split in the order of their rows, good ones and bad ones."""

    classes: tuple[str, ...]
    names: pa.BinaryArray
    """(N,): paths relative to the root, or SHARD/MEMBER, as bytes of the file system."""
    labels: np.ndarray
    """int64 (N,)."""
    num_bytes: np.ndarray
    """int64 (N,): of the encoded image."""
    mtimes: np.ndarray
    """int64 (N,): of the file that holds it, in ns."""
    stamps: Stamps
    """All that has to be unchanged for the listing to hold."""
    faults: Mapping[int, str] = field(default_factory=dict)
    """From a row to what is known to be wrong with it already."""
    facts: ImageInfo | None = None
    """Of every image, where none has to be decoded."""
    shards: tuple[str, ...] = ()
    """Container files, relative to the root; empty where each image is a file."""
    shard: np.ndarray | None = None
    """int32 (N,): position in `shards`."""
    offset: np.ndarray | None = None
    """int64 (N,): where the encoded image begins in its shard."""


class _Images(Protocol):
    """Interface that `Listing` and the index share."""

    @property
    def names(self) -> pa.BinaryArray: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def num_bytes(self) -> np.ndarray: ...
    @property
    def shard(self) -> np.ndarray | None: ...
    @property
    def offset(self) -> np.ndarray | None: ...


def image_columns(images: _Images, **others: np.ndarray) -> dict[str, Any]:
    """Return the columns of a table of images: name, label, num_bytes, then `others`, then shard
    and offset, if they lie in shards."""
    columns = {"name": images.names, "label": images.labels, "num_bytes": images.num_bytes}
    columns |= others
    if images.shard is not None:
        columns |= {"shard": images.shard, "offset": images.offset}
    return columns


def open_table(file: Path) -> pq.ParquetFile:
    """Open a Parquet file, memory-mapped.

    Raises ValueError for one of more rows than bytes (no table of different names is so small),
    OSError or ArrowException for what is no Parquet file.
    """
    with file.open("rb") as opened:
        content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    # not by its path: arrow takes names in UTF-8 alone
    table = pq.ParquetFile(pa.py_buffer(content))
    rows = table.metadata.num_rows
    if rows > len(content):
        raise ValueError(f"{rows:,} rows in {len(content):,} bytes")
    return table


def stamp(root: Path, paths: Iterable[Path | str]) -> Stamps:
    """Return the stamps of files and folders.

    A path that changed a moment ago may change again unseen, so it is stamped as unsettled. Raises
    OSError for a path that does not exist.
    """
    now = time.time_ns()
    stamps = {}
    for path in paths:
        facts = os.stat(path)
        size = -1 if os.path.isdir(path) else facts.st_size
        settled = now - facts.st_mtime_ns > _SETTLED_S * 1e9
        stamps[os.path.relpath(path, root)] = [size, facts.st_mtime_ns if settled else -1]
    return stamps


def is_unchanged(root: Path, stamps: Stamps) -> bool:
    """Return True if no stamped path has changed."""
    try:
        return all(
            mtime >= 0 and _facts(os.path.join(root, path), size) == (size, mtime)
            for path, (size, mtime) in stamps.items()
        )
    except OSError:
        return False


def _facts(path: str, size: int) -> tuple[int, int]:
    facts = os.stat(path)
    return (-1 if size < 0 else facts.st_size), facts.st_mtime_ns


def number_labels(
    raw: Sequence[int | str | None],
    classes: Sequence[str] | None,
    where: str,
    names: Sequence[str | bytes],
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return int64 (N,) labels and the classes' names, from numbers or names of classes; None
    becomes UNKNOWN.

    classes: None takes the numbers from 0 to the largest, or the sorted names. A text is a class's
    name if it is one, else a number. where, names: of the list and of its rows, for the error.
    Raises DataError for a label that is no class.
    """
    distinct = [value for value in dict.fromkeys(raw) if value is not None]
    known = tuple(classes) if classes is not None else _own_classes(distinct, where)
    place_of = {name: place for place, name in enumerate(known)}
    number_of: dict[int | str | None, int] = {None: UNKNOWN}
    for value in distinct:
        number_of[value] = _number(value, place_of)
        if not 0 <= number_of[value] < len(known):
            few = f": {', '.join(known)}" if len(known) <= SHOWN else ""
            name = os.fsdecode(names[raw.index(value)])
            raise DataError(
                f"{where}: {name} has the label {value!r}, not one of the {len(known)} classes{few}"
            )
    return np.array([number_of[value] for value in raw], np.int64), known


def _own_classes(distinct: Sequence[int | str], where: str) -> tuple[str, ...]:
    numbers = [int(value) for value in distinct if isinstance(value, int) or value.isdecimal()]
    if len(numbers) == len(distinct):
        most = max(numbers, default=-1)
        if most >= MAX_CLASSES:
            raise DataError(
                f"{where}: a label must be 0 to {MAX_CLASSES - 1}, or a name (got {most})"
            )
        return tuple(map(str, range(most + 1)))
    if not all(isinstance(value, str) for value in distinct):
        raise DataError(
            f"{where}: some labels are numbers, some are names; all must be the one or the other"
        )
    return tuple(sorted(map(str, distinct)))


def _number(value: int | str, place_of: Mapping[str, int]) -> int:
    """Return the number of a class, -1 if the value is none."""
    if isinstance(value, int):
        return value
    return place_of.get(value, int(value) if value.isdecimal() else -1)


def class_names_beside(folder: Path) -> tuple[str, ...] | None:
    """Return the lines of `classes.txt` in `folder`, or None if there is no such file.

    Raises DataError for an empty line and for a name that is there twice.
    """
    file = folder / "classes.txt"
    if not file.is_file():
        return None
    lines = file.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    names = tuple(line.strip() for line in lines)
    if not all(names) or len(set(names)) < len(names) or not names:
        raise DataError(f"{file}: has empty or repeated lines; each line must name a class")
    return names
