"""The listing of a split, before any image is decoded: one form for all formats."""

import codecs
import mmap
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastdeit.data.formats.check import ImageInfo
from fastdeit.distributed.errors import RunError

SHOWN = 10
"""The largest number of names in an error."""
_SETTLED_S = 2.0  # the longest time step of a file system

_NAMES_AT_ONCE = 2**14
MAX_LIST_BYTES = 2**31
"""The largest size of a list as text: twenty million images fit."""
UNSETTLED = -1
"""The time of modification of a file or folder that may change again with the same time."""


class Stamp(NamedTuple):
    """Facts of a file or folder that differ after it was changed or replaced.

    No program can set `ctime` and `inode`: they distinguish two versions with equal times of
    modification. The device is not included: its number differs between mounts, and between
    machines that share a data set.
    """

    size: int
    """The size in bytes; that of a folder depends, on some file systems, on its entries."""
    mtime: int
    """The time of modification in ns, or UNSETTLED."""
    ctime: int
    """The time of the last change of content, name, owner or mode, in ns."""
    inode: int


Stamps = dict[str, Stamp]
"""The stamps of files and folders, by path relative to the root."""


class DataError(RunError, ValueError):
    """The error of a data set that cannot be used as it is; the message names the path and what is
    required."""


@dataclass(frozen=True)
class Listing:
    """The images of a split in the order of their rows, good ones and bad ones."""

    classes: tuple[str, ...]
    names: pa.BinaryArray
    """(N,): paths relative to the root, or SHARD/MEMBER, in the bytes that the file system has."""
    labels: np.ndarray
    """int64 (N,): places in `classes`."""
    num_bytes: np.ndarray
    """int64 (N,): bytes of the encoded image."""
    mtimes: np.ndarray
    """int64 (N,): time of modification of the file that holds the image, in ns."""
    ctimes: np.ndarray
    """int64 (N,): time of change of that file, in ns."""
    stamps: Stamps
    """The stamps of all files and folders that must be unchanged for the listing to be right."""
    faults: Mapping[int, str] = field(default_factory=dict)
    """The faults that are known before any check, by row."""
    notes: tuple[str, ...] = ()
    """Facts for the user that are not faults."""
    facts: ImageInfo | None = None
    """The facts of every image, where all are alike and none has to be decoded."""
    checked: pa.Table | None = None
    """The facts or the fault of each image, in the columns of `Facts`, if the listing has decoded
    all."""
    shards: tuple[str, ...] = ()
    """The files that hold images, relative to the root; empty where each image is a file."""
    shard: np.ndarray | None = None
    """int32 (N,): the place in `shards` of an image's file."""
    offset: np.ndarray | None = None
    """int64 (N,): the byte at which the encoded image begins in its shard; in files of pixels and
    in Parquet files, the image's number."""


class _Images(Protocol):
    """The interface that `Listing` and the index share."""

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
    """Return the columns of a table of images: name, label, num_bytes, then `others`, then, for
    images in shards, shard and offset."""
    columns = {"name": images.names, "label": images.labels, "num_bytes": images.num_bytes}
    columns |= others
    if images.shard is not None:
        columns |= {"shard": images.shard, "offset": images.offset}
    return columns


def open_table(file: Path) -> pq.ParquetFile:
    """Open a Parquet file, memory-mapped.

    Raises ValueError for a file with more rows than bytes (no table of different names is so
    small), OSError or ArrowException for one that is not a Parquet file.
    """
    with file.open("rb") as opened:
        content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    # not by its path: arrow accepts only names in UTF-8
    table = pq.ParquetFile(pa.py_buffer(content))
    rows = table.metadata.num_rows
    if rows > len(content):
        raise ValueError(f"{rows:,} rows in {len(content):,} bytes")
    return table


def read_columns(table: pq.ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
    """Return columns of a Parquet file, by default all, read by the calling thread alone.

    Arrow's own threads may abort or stop a process that ends soon after they were used
    (apache/arrow issues 34314 and 50482).
    """
    return table.read(columns=columns, use_threads=False)


def read_text(file: Path) -> str:
    """Return the text of a list: UTF-8, or UTF-16 with a byte order mark; bytes that are not UTF-8
    become surrogates, as in names of files.

    Raises DataError for another encoding and for a file of more than `MAX_LIST_BYTES`, OSError for
    one that cannot be read.
    """
    with file.open("rb") as opened:
        data = opened.read(MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise DataError(f"{file}: must be at most {MAX_LIST_BYTES:,} bytes")
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16") if is_utf16 else data.decode("utf-8-sig", "surrogateescape")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: must be text in UTF-8 ({error})") from error
    if "\0" in text:
        raise DataError(f"{file}: must be text in UTF-8 (it has zero bytes: UTF-16, or no text?)")
    return text


def stamp(root: Path, paths: Iterable[Path | str]) -> Stamps:
    """Return the stamps of files and folders.

    A path that changed a moment ago may change again with the same time, so its time is UNSETTLED.
    Raises OSError for a path that does not exist.
    """
    now = time.time_ns()
    stamps = {}
    for path in paths:
        found = stamp_of(path)
        if now - found.mtime <= _SETTLED_S * 1e9:
            found = found._replace(mtime=UNSETTLED)
        stamps[os.path.relpath(path, root)] = found
    return stamps


def stamp_of(path: Path | str) -> Stamp:
    """Return the stamp of a file or folder as it is now. Raises OSError."""
    facts = os.stat(path)
    return Stamp(facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)


def is_unchanged(root: Path, stamps: Stamps) -> bool:
    """Return True if no stamped path has changed."""
    try:
        return all(
            stamp.mtime != UNSETTLED and stamp_of(os.path.join(root, path)) == stamp
            for path, stamp in stamps.items()
        )
    except OSError:
        return False


def have_true_times(ctimes: np.ndarray | Sequence[int]) -> bool:
    """Return False if the times of change, in ns, are all the same whole second, or 0: then the
    file system does not record them (squashfs, ISO 9660, an image of a disk), and two versions can
    have the same times."""
    times = np.asarray(ctimes, np.int64)
    times = times[times != 0]
    return bool((times % 10**9 != 0).any() or (times != times[:1]).any())


def iterate_names(names: pa.BinaryArray) -> Iterator[bytes]:
    """Yield the names one by one, with little memory."""
    for first in range(0, len(names), _NAMES_AT_ONCE):
        yield from names.slice(first, _NAMES_AT_ONCE).to_pylist()
