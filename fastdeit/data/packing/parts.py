"""A part of a packed data set: consecutive images of a split, written by one process and recorded.

A part is a tar shard, or files in class folders. Its bytes depend on the images and the settings
alone, not on the time, the user or the number of processes.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

from fastdeit.data.formats.check import UNREAD
from fastdeit.data.formats.listing import DataError
from fastdeit.data.index import Index
from fastdeit.data.indexing import BadImages
from fastdeit.data.packing.encode import Encoding, Packed, pack_image
from fastdeit.data.packing.files import hash_files
from fastdeit.data.packing.names import name_image
from fastdeit.storage.atomic import atomic_open
from fastdeit.storage.file_hash import hash_file
from fastdeit.storage.jsonl import append_lines

SHARD_SUFFIX = ".tar"
Layout = Literal["shards", "folder"]


@dataclass(frozen=True)
class PartRecord:
    """The record of a written part, a shard or files in class folders; or of a file without images,
    which has no split."""

    name: str
    """The name of the shard; SPLIT/ROW with the first row where images are files."""
    bytes: int
    sha256: str
    """The SHA-256 of the shard; where images are files, that of `hash_files`."""
    split: str = ""
    first: int = 0
    """The row of the first image in the source's index."""
    rows: int = 0
    """The number of rows of the source's index, good and bad."""
    images: int = 0
    """The number of images that were written."""
    faults: list[tuple[int, str]] = field(default_factory=list)
    """The rows whose images were not written, each with its fault."""

    @property
    def has_files(self) -> bool:
        """Return True if the images are files in class folders."""
        return bool(self.split) and not self.name.endswith(SHARD_SUFFIX)

    @property
    def row_range(self) -> range:
        """Return the rows of the source's index."""
        return range(self.first, self.first + self.rows)


@dataclass(frozen=True)
class Part:
    """A part that is to be written."""

    folder: Path
    """The folder of the packed data set."""
    split: str
    number: int
    first: int
    """The row of the first image in the source's index."""
    source: Index
    """The source's index, with the rows of this part alone."""
    layout: Layout
    homes: tuple[str, ...]
    """The text of each class's label, or the name of each class's folder."""
    encoding: Encoding
    bad_images: BadImages
    progress: Path
    """The file of JSON lines to which the record is appended."""

    @property
    def name(self) -> str:
        if self.layout == "shards":
            return f"{self.split}-{self.number:06d}{SHARD_SUFFIX}"
        return f"{self.split}/{self.first:08d}"


class _Sample(NamedTuple):
    name: str
    """The name without an extension."""
    home: str
    image: Packed


def write_part(part: Part) -> PartRecord:
    """Write a part, record it, and return the record.

    Raises DataError for an image that cannot be read, and with bad_images "error" for one that is
    damaged; OSError if the part cannot be written.
    """
    faults: list[tuple[int, str]] = []
    samples = _pack_images(part, faults)
    if part.layout == "shards":
        file = part.folder / part.name
        _write_shard(file, samples)
        facts = file.stat().st_size, hash_file(file)
    else:
        facts = hash_files(part.folder, _write_files(part, samples))
    rows = len(part.source)
    images = rows - len(faults)
    record = PartRecord(part.name, *facts, part.split, part.first, rows, images, faults)
    append_lines(part.progress, [record])
    return record


def _pack_images(part: Part, faults: list[tuple[int, str]]) -> Iterator[_Sample]:
    """Yield the images of a part; add those that are damaged to `faults`."""
    source = part.source
    for place in range(len(source)):
        row = part.first + place
        name = source.name(place)
        try:
            data = source.read(place)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{source.root / name}: {UNREAD}: {reason}") from error
        height, width = source.sizes[place].tolist()
        packed = pack_image(data, (height, width), part.encoding)
        if isinstance(packed, Packed):
            yield _Sample(name_image(row, name), part.homes[source.labels[place]], packed)
        elif part.bad_images == "error":
            raise DataError(f"{source.root / name}: {packed} (--bad-images skip excludes it)")
        else:
            faults.append((row, f"{name}: {packed}"))


def _write_shard(file: Path, samples: Iterator[_Sample]) -> None:
    """Write a tar file, whole or not at all: KEY.jpg, then KEY.cls with the label."""
    with (
        atomic_open(file) as opened,
        tarfile.open(fileobj=opened, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for sample in samples:
            _add_member(tar, sample.name + sample.image.suffix, sample.image.data)
            _add_member(tar, f"{sample.name}.cls", sample.home.encode("utf-8", "surrogateescape"))


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, no owner
    member.size = len(data)
    tar.addfile(member, BytesIO(data))


def _write_files(part: Part, samples: Iterator[_Sample]) -> list[str]:
    """Write CLASS/NAME.jpg for each image; return the names below the data set's folder. `describe`
    waits until all files are on the disk."""
    names = []
    for sample in samples:
        folder = part.folder / part.split / sample.home
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / (sample.name + sample.image.suffix)
        file.write_bytes(sample.image.data)
        names.append(os.path.join(part.split, sample.home, file.name))
    return names
