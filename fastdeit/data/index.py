"""A data set as a table: one row an image, with its class, its height and width, and where its
bytes are.

The plan needs every height and width before anything is read, and a single image that does not
decode costs DALI a whole batch; so each image is decoded once, and only good ones are rows. Image
files, tar shards and IDX files look the same from here on.
"""

import functools
import hashlib
import io
import json
import os
import resource
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastdeit.data.formats.check import (
    EXTENSIONS,
    MAX_BYTES,
    MAX_PIXELS,
    UNREAD,
    check_image,
    read_place,
)
from fastdeit.data.formats.detect import VALIDATION, Feeding, SplitLocation, find_split
from fastdeit.data.formats.folder import class_folders, list_folder
from fastdeit.data.formats.idx import list_idx, read_images
from fastdeit.data.formats.imagenet import list_flat
from fastdeit.data.formats.listing import SHOWN, DataError, Listing, class_names_beside
from fastdeit.data.formats.lists import list_listed
from fastdeit.data.formats.shards import list_shards
from fastdeit.data.table import build_table, fresh_table, table_facts, table_places

BadImages = Literal["error", "skip"]
_COLUMNS = ("name", "label", "num_bytes", "height", "width", "fault", "shard", "offset")
_READERS = 8  # of shards at once
_SPARE_FILES = 512  # descriptors left to everything else


@dataclass(frozen=True, eq=False)
class Index:
    """One split of a data set; row i is image i, and every row decoded when it was indexed."""

    root: Path
    split: str
    classes: tuple[str, ...]
    """Names of the classes; a label is a position in it."""
    kind: Feeding
    names: pa.BinaryArray
    """(N,): paths relative to `root`, or SHARD/MEMBER, as bytes of the file system."""
    labels: np.ndarray
    """int64 (N,)."""
    sizes: np.ndarray
    """int32 (N, 2): height and width in pixels, without EXIF rotation."""
    num_bytes: np.ndarray
    """int64 (N,): of the encoded images."""
    shards: tuple[str, ...] = ()
    """Container files relative to `root`; empty for image files."""
    shard: np.ndarray | None = None
    """int32 (N,): position in `shards`."""
    offset: np.ndarray | None = None
    """int64 (N,): where an image begins in its shard; for IDX its number."""
    left_out: tuple[str, ...] = ()
    """Images that are no rows, each with what is wrong with it. Not part of the fingerprint."""

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        """The image's name, relative to `root`, for messages."""
        return os.fsdecode(self.names[int(row)].as_py())

    @property
    def feeds_paths(self) -> bool:
        """Whether `feed` gives paths, for DALI's io.file.read, instead of encoded images."""
        return self.kind == "files"

    def encoded(self, rows: np.ndarray) -> Sequence[np.ndarray] | np.ndarray:
        """What DALI takes for `rows` (int64 (B,)): uint8 (length,) each, paths that end in zero
        bytes, or the encoded images.

        Raises OSError for a shard, DataError for an IDX file, that is not there any more.
        """
        if self.kind == "files":
            # one array of rows of one length: DALI takes it in at once
            paths = np.array(
                [self._prefix + name for name in self.names.take(pa.array(rows)).to_pylist()]
            )
            return paths.view(np.uint8).reshape(len(rows), -1)
        if self.shard is None or self.offset is None:
            raise AssertionError("only image files have no shards")
        if self.kind == "idx":
            pixels = read_images(self.root / self.shards[0])
            return list(pixels[self.offset[rows]])
        shards, lengths, starts = (
            column[rows].tolist() for column in (self.shard, self.num_bytes, self.offset)
        )
        ranges = [*zip(map(self._opened, shards), lengths, starts, strict=True)]
        # the disk is asked for several at a time, without the interpreter's lock
        parts = self._readers.map(_read_ranges, (ranges[i::_READERS] for i in range(_READERS)))
        read: list[Any] = [None] * len(ranges)
        for i, part in enumerate(parts):
            read[i::_READERS] = part
        return read

    def read(self, row: int) -> bytes:
        """The encoded image. Raises OSError when it cannot be read."""
        if self.kind == "files":
            return read_place((os.path.join(self.root, self.name(row)), -1, 0))
        assert self.shard is not None and self.offset is not None
        if self.kind == "idx":
            try:
                return self.encoded(np.array([row]))[0].tobytes()
            except (DataError, IndexError) as error:
                raise OSError(str(error)) from error
        shard = os.path.join(self.root, self.shards[self.shard[row]])
        return read_place((shard, int(self.offset[row]), int(self.num_bytes[row])))

    def check(self, row: int) -> str | None:
        """What is wrong with an image now: unreadable, damaged, or of another size than here; None
        if nothing."""
        try:
            checked = check_image(self.read(row))
        except OSError as error:
            return f"{UNREAD}: {error.strerror or error}"
        indexed = tuple(self.sizes[row].tolist())
        if isinstance(checked, str) or checked[:2] == indexed:
            return checked if isinstance(checked, str) else None
        return f"is {checked[:2]} high and wide, the index has {indexed}: was it replaced?"

    def beyond_the_end(self, row: int) -> np.ndarray:
        """int64: the images, of the shard in which `row` lies, that its file is now too short for;
        none of an image file."""
        if self.shard is None or self.offset is None or self.kind == "idx":
            return np.zeros(0, np.int64)
        mine = np.flatnonzero(self.shard == self.shard[row])
        try:
            size = os.path.getsize(os.path.join(self.root, self.shards[self.shard[row]]))
        except OSError:
            size = 0
        return mine[self.offset[mine] + self.num_bytes[mine] > size]

    def count_files(self, rows: np.ndarray) -> int:
        """In how many files the images `rows` (int64 (n,)) lie."""
        return len(rows) if self.shard is None else len(np.unique(self.shard[rows]))

    def fingerprint(self) -> str:
        """SHA-256 over names, bytes of each image, labels and classes; the same wherever the data
        set lies."""
        return self._fingerprint

    def _opened(self, shard: int) -> int:
        """The shard's descriptor; it stays open. A map would be faster to set up, and a failing
        disk would kill the process."""
        if shard not in self._files:
            _allow_open_files(len(self.shards))
            path = os.path.join(self.root, self.shards[shard])
            self._files[shard] = open(path, "rb", buffering=0)  # noqa: SIM115
        return self._files[shard].fileno()

    @functools.cached_property
    def _files(self) -> dict[int, io.FileIO]:
        return {}

    @functools.cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_READERS, "shards")

    @functools.cached_property
    def _prefix(self) -> bytes:
        return os.path.join(os.fsencode(self.root), b"")

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([self.split, self.classes]).encode())
        offsets = np.frombuffer(self.names.buffers()[1], np.int32)[self.names.offset :][
            : len(self) + 1
        ]
        text = memoryview(self.names.buffers()[2] or b"")[offsets[0] : offsets[-1]]
        digest.update(text)
        for part in (
            np.diff(offsets).astype("<i4"),
            self.num_bytes.astype("<i8"),
            self.labels.astype("<i8"),
        ):
            digest.update(part.data)
        return digest.hexdigest()


def _read_ranges(ranges: Sequence[tuple[int, int, int]]) -> list[np.ndarray]:
    """uint8 arrays of (descriptor, length, offset); shorter than asked where the file ends."""
    return [np.frombuffer(os.pread(*one), np.uint8) for one in ranges]


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files, as far as it may, so that `count` more fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE,
            (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard),
        )


def build_index(
    root: Path,
    split: str,
    *,
    cache_dir: Path | None = None,
    classes: Sequence[str] | None = None,
    workers: int | None = None,
    bad_images: BadImages = "error",
    again: bool = False,
) -> Index:
    """The table of one split, read from its Parquet file if what it was made from is unchanged,
    else built.

    split: `train` or `val` below `root`, in any format of docs/data.md; or relative to root a list
    or a pattern of tar files. classes: the names that labels count; without it those of a
    `classes.txt`, for `val` of `train`, else its own. cache_dir: where the Parquet file is kept,
    else `root/.fastdeit`, or the user's cache folder where root cannot be written. workers: threads
    or processes that decode. bad_images: "skip" leaves them out. again: look at every file's bytes
    and time, though the folders are unchanged. Raises DataError for what cannot be used, with
    "error" also for images that do not decode.
    """
    root = Path(os.path.abspath(root))
    found = find_split(root, split)
    table = split_table(
        root, split, found, cache_dir=cache_dir, classes=classes, workers=workers, again=again
    )
    left_out = left_out_of(table)
    if left_out and bad_images == "error":
        raise DataError(_refusal(root, left_out))
    good = table.filter(pc.is_null(table["fault"])) if left_out else table
    if not len(good):
        raise DataError(
            "\n  ".join([f"{root}: {split!r} holds no image that can be used", *left_out[:SHOWN]])
        )
    return _index_of(root, split, found, good, left_out)


def _index_of(
    root: Path, split: str, found: SplitLocation, good: pa.Table, left_out: tuple[str, ...]
) -> Index:
    facts = table_facts(good)
    column = {name: good[name].combine_chunks() for name in good.column_names if name != "fault"}
    shards = {name: column[name].to_numpy() for name in ("shard", "offset") if name in column}
    return Index(
        root,
        split,
        tuple(facts["classes"]),
        found.feeding,
        names=column["name"],
        labels=column["label"].to_numpy(),
        sizes=np.stack((column["height"].to_numpy(), column["width"].to_numpy()), 1).astype(
            np.int32
        ),
        num_bytes=column["num_bytes"].to_numpy(),
        shards=tuple(facts["shards"]),
        left_out=left_out,
        **shards,
    )


def split_table(
    root: Path,
    split: str,
    found: SplitLocation,
    *,
    cache_dir: Path | None = None,
    classes: Sequence[str] | None = None,
    workers: int | None = None,
    again: bool = False,
    columns: Sequence[str] = _COLUMNS,
) -> pa.Table:
    """A row for every image of the split, good or bad (then with a `fault`); `table_facts` reads
    what it says of itself."""
    names = _class_names(root, split, found, classes, cache_dir, workers)
    source = {
        "kind": found.kind,
        "paths": [os.path.relpath(path, root) for path in found.paths],
        "classes": names,
    }
    places = table_places(root, split, cache_dir)
    table = None if again else fresh_table(places, root, source, columns)
    if table is None:
        count = workers or os.cpu_count() or 1
        table = build_table(_list(root, found, names, count), root, source, places, count)
    return table


def _class_names(
    root: Path,
    split: str,
    found: SplitLocation,
    given: Sequence[str] | None,
    cache_dir: Path | None,
    workers: int | None,
) -> list[str] | None:
    """The names that labels count, or None if the split's own labels make them."""
    if given is not None:
        return list(given)
    beside = class_names_beside(found.home)
    if beside and found.kind != "folder":
        return list(beside)
    if split not in VALIDATION:
        return list(class_folders(found.paths[0])) if found.kind == "folder" else None
    train = find_split(root, "train")
    if train.kind == "folder":
        return list(class_folders(train.paths[0]))
    return table_facts(
        split_table(root, "train", train, cache_dir=cache_dir, workers=workers, columns=())
    )["classes"]


def _list(root: Path, found: SplitLocation, classes: Sequence[str] | None, workers: int) -> Listing:
    first, *rest = found.paths
    if found.kind == "shards":
        return list_shards(root, found.paths, classes, workers)
    if found.kind == "list":
        return list_listed(root, first, classes)
    if found.kind == "idx":
        return list_idx(root, first, rest[0], classes)
    if found.kind == "flat":
        return list_flat(root, first, rest[0], classes or ())
    return list_folder(root, first, classes or class_folders(first))


def left_out_of(table: pa.Table) -> tuple[str, ...]:
    """The bad images of a split's table, each with what is wrong with it."""
    bad = table.select(["name", "fault"]).filter(pc.is_valid(table["fault"]))
    pairs = zip(bad["name"].to_pylist(), bad["fault"].to_pylist(), strict=True)
    return tuple(f"{os.fsdecode(name).rstrip('/')}: {fault}" for name, fault in pairs)


def _refusal(root: Path, left_out: Sequence[str]) -> str:
    more = [f"and {len(left_out) - SHOWN} more"] if len(left_out) > SHOWN else []
    allowed = f"whole {', '.join(EXTENSIONS)} images of at most {MAX_PIXELS} pixels and {MAX_BYTES} bytes, or --bad-images skip"
    return "\n  ".join(
        [f"{root}: {len(left_out)} bad image(s); allowed are {allowed}:", *left_out[:SHOWN], *more]
    )
