"""A data set as a table: one row an image, with its class, its height and width, and where its
bytes are.

The plan needs every height and width before anything is read, and a single image that does not
decode costs DALI a whole batch; so each image is decoded once, and only good ones are rows. Image
files, tar shards and the files of MNIST and CIFAR have the same table.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fastdeit.data.checks.facts import HEADER_ONLY, header_only
from fastdeit.data.formats.check import (
    UNREAD,
    check_image,
    raise_own_fault,
    read_place,
)
from fastdeit.data.formats.cifar.files import read_batch
from fastdeit.data.formats.detect import Feeding
from fastdeit.data.formats.idx import read_images
from fastdeit.data.formats.listing import DataError, image_columns
from fastdeit.data.formats.parquet.images import ParquetImages
from fastdeit.data.formats.shards.reader import ShardReader
from fastdeit.display.text import printable

_BY_NUMBER: dict[str, Callable[[Path], np.ndarray | ParquetImages]] = {
    "idx": read_images,
    "cifar": lambda file: read_batch(file).rows,
    "parquet": ParquetImages,
}
"""The readers of files in which an image has a number instead of an offset, by kind."""
_MOST_OPEN = 8  # files of numbered images
_ARRAYS = ("name", "label", "num_bytes", "height", "width", "shard", "offset")
COLUMNS = (*_ARRAYS, "fault", HEADER_ONLY)
"""The columns of a stored table that `Index.from_table` reads."""


@dataclass(frozen=True, eq=False)
class Index:
    """One split of a data set; row i is image i, and every row was good when it was checked."""

    root: Path
    split: str
    classes: tuple[str, ...]
    """The names of the classes; a label is a place in it."""
    kind: Feeding
    names: pa.BinaryArray
    """(N,): paths relative to `root`, or SHARD/MEMBER, in the bytes that the file system has."""
    labels: np.ndarray
    """int64 (N,)."""
    sizes: np.ndarray
    """int32 (N, 2): height and width in pixels, without EXIF rotation."""
    num_bytes: np.ndarray
    """int64 (N,): bytes of the encoded images."""
    shards: tuple[str, ...] = ()
    """The files that hold images, relative to `root`; empty where each image is a file."""
    shard: np.ndarray | None = None
    """int32 (N,): the place in `shards` of an image's file."""
    offset: np.ndarray | None = None
    """int64 (N,): the byte at which an image begins in its shard; in files of pixels and in Parquet
    files, the image's number."""
    header_only: np.ndarray | None = None
    """bool (N,): whether the header of an image alone was checked; None: this is so for none."""
    excluded: tuple[str, ...] = ()
    """Damaged images, which are no rows, each with its fault. Not part of the fingerprint."""
    notes: tuple[str, ...] = ()
    """Facts about the labels, for the user."""

    def __repr__(self) -> str:
        """Return one line; the fields would fill pages."""
        counts = f"{len(self):,} images, {len(self.classes):,} classes"
        return f"<Index of {self.split} in {self.root}: {counts}>"

    @classmethod
    def from_table(
        cls,
        table: pa.Table,
        facts: dict[str, Any],
        excluded: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> "Index":
        """Return the index of a table that has the columns of `to_table`, and perhaps others.

        facts: root, split, classes, kind and shards.
        """
        names = [name for name in _ARRAYS if name in table.column_names]
        column = {name: table[name].combine_chunks() for name in names}
        array = {name: values.to_numpy() for name, values in column.items() if name != "name"}
        return cls(
            Path(facts["root"]),
            facts["split"],
            tuple(facts["classes"]),
            facts["kind"],
            names=column["name"],
            labels=array["label"],
            sizes=np.stack((array["height"], array["width"]), 1).astype(np.int32),
            num_bytes=array["num_bytes"],
            shards=tuple(facts["shards"]),
            shard=array.get("shard"),
            offset=array.get("offset"),
            header_only=header_only(table) if HEADER_ONLY in table.column_names else None,
            excluded=excluded,
            notes=notes,
        )

    def to_table(self) -> pa.Table:
        """Return the rows as a table: name, label, num_bytes, height, width, header_only, shard,
        offset."""
        height, width = self.sizes.T
        others = {} if self.header_only is None else {HEADER_ONLY: self.header_only}
        return pa.table(image_columns(self, height=height, width=width, **others))

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        """Return the image's name for messages and records, relative to `root`: it is made
        printable, so it may differ from that of the file."""
        return printable(self._file_name(row))

    def _file_name(self, row: int) -> str:
        return os.fsdecode(self.names[int(row)].as_py())

    @property
    def feeds_paths(self) -> bool:
        """Return True if `encoded` returns paths for DALI's io.file.read, not encoded images."""
        return self.kind == "files"

    def encoded(self, rows: np.ndarray) -> Sequence[np.ndarray] | np.ndarray:
        """Return what DALI takes for `rows` (int64 (B,)), uint8 (length,) each: paths that end in
        zero bytes, or encoded images.

        Raises OSError for a shard that does not exist any more, DataError for another file.
        """
        if self.kind == "files":
            # one array, whose rows have one length: DALI accepts it at once
            names = self.names.take(pa.array(rows)).to_pylist()
            paths = np.array([self._prefix + name for name in names])
            return paths.view(np.uint8).reshape(len(rows), -1)
        assert self.shard is not None and self.offset is not None
        if self.kind in _BY_NUMBER:
            places = zip(self.shard[rows].tolist(), self.offset[rows].tolist(), strict=True)
            return [self._open_numbered(shard)[number] for shard, number in places]
        return self._shard_reader.read(self.shard[rows], self.num_bytes[rows], self.offset[rows])

    def read(self, row: int) -> bytes:
        """Return the bytes of the encoded image. Raises OSError when they cannot be read."""
        if self.kind == "files":
            return read_place((os.path.join(self.root, self._file_name(row)), -1, 0))
        assert self.shard is not None and self.offset is not None
        if self.kind in _BY_NUMBER:
            try:
                return self.encoded(np.array([row]))[0].tobytes()
            except (DataError, IndexError) as error:
                raise OSError(str(error)) from error
        path = self._shard_path(self.shard[row])
        return read_place((path, int(self.offset[row]), int(self.num_bytes[row])))

    def check(self, row: int) -> str | None:
        """Return the fault that an image has now (unreadable, damaged, another size than in the
        index), or None. Raises OSError when this process may open no more files."""
        try:
            checked = check_image(self.read(row))
        except OSError as error:
            raise_own_fault(error)
            return f"{UNREAD}: {error.strerror or error}"
        if isinstance(checked, str):
            return checked
        indexed = tuple(self.sizes[row].tolist())
        if checked[:2] == indexed:
            return None
        return f"is {checked[:2]} high and wide, the index has {indexed}: was it replaced?"

    def beyond_the_end(self, row: int) -> np.ndarray:
        """Return int64 (n,): of all images in the shard that holds `row`, those for which its file
        is now too short; none for an image file."""
        if self.shard is None or self.offset is None or self.kind in _BY_NUMBER:
            return np.zeros(0, np.int64)
        neighbours = np.flatnonzero(self.shard == self.shard[row])
        try:
            size = os.path.getsize(self._shard_path(self.shard[row]))
        except OSError:
            size = 0
        ends = self.offset[neighbours] + self.num_bytes[neighbours]
        return neighbours[ends > size]

    def count_files(self, rows: np.ndarray) -> int:
        """Return the number of files that hold the images `rows` (int64 (n,))."""
        return len(rows) if self.shard is None else len(np.unique(self.shard[rows]))

    def fingerprint(self) -> str:
        """Return a SHA-256 over names, byte counts, labels and classes; it does not depend on where
        the data set lies."""
        return self._fingerprint

    @functools.cached_property
    def _open_numbered(self) -> Callable[[int], np.ndarray | ParquetImages]:
        """Return a function from a place in `shards` to the encoded images of that file by number,
        uint8 (length,) each; the files used last stay open."""
        # each index has its own function: a later index may be of files that were replaced
        read = _BY_NUMBER[self.kind]
        return functools.lru_cache(_MOST_OPEN)(lambda shard: read(self.root / self.shards[shard]))

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields: another process opens the files itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _shard_path(self, shard: int) -> str:
        return os.path.join(self.root, self.shards[shard])

    @functools.cached_property
    def _shard_reader(self) -> ShardReader:
        return ShardReader([os.path.join(self.root, shard) for shard in self.shards])

    @functools.cached_property
    def _prefix(self) -> bytes:
        return os.path.join(os.fsencode(self.root), b"")

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([self.split, self.classes]).encode())
        # the names as arrow holds them: one text, and the offset at which each begins
        _, offset_buffer, text_buffer = self.names.buffers()
        offsets = np.frombuffer(offset_buffer, np.int32)[self.names.offset :][: len(self) + 1]
        digest.update(memoryview(text_buffer or b"")[offsets[0] : offsets[-1]])
        digest.update(np.diff(offsets).astype("<i4").data)
        digest.update(self.num_bytes.astype("<i8").data)
        digest.update(self.labels.astype("<i8").data)
        return digest.hexdigest()
