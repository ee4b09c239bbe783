"""A data set as a table: one row an image, with its class, its height and width, and where its bytes are.

The plan needs every height and width before anything is read, and a single image that does not decode costs DALI a whole batch;
so each image is decoded once, and only good ones are rows. Image files, tar shards and IDX files look the same from here on.
"""

import functools
import hashlib
import json
import mmap
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastdeit.data.check import EXTENSIONS, MAX_BYTES, MAX_PIXELS, UNREAD, check_image, read_place
from fastdeit.data.folder import class_folders, list_folder
from fastdeit.data.idx import list_idx, read_images
from fastdeit.data.imagenet import list_flat
from fastdeit.data.layout import VALIDATION, Found, find_split
from fastdeit.data.listing import SHOWN, DataError, Listing, class_names_beside
from fastdeit.data.lists import list_listed
from fastdeit.data.shards import list_shards
from fastdeit.data.table import build_table, fresh_table, table_facts, table_places

BadImages = Literal["error", "skip"]
_COLUMNS = ("name", "label", "num_bytes", "height", "width", "fault", "shard", "offset")
_SPARE_FILES = 512  # descriptors left to everything else


@dataclass(frozen=True, eq=False)
class Index:
    """One split of a data set; row i is image i, and every row decoded when it was indexed."""

    root: Path
    split: str
    classes: tuple[str, ...]
    """Names of the classes; a label is a position in it."""
    kind: Literal["files", "shards", "idx"]
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

    def feed(self, rows: np.ndarray) -> list[np.ndarray]:
        """What DALI takes for `rows` (int64 (B,)): uint8 (length,) each, paths or views of the encoded images.

        Raises OSError for a shard, DataError for an IDX file, that is not there any more.
        """
        if self.kind == "files":
            root = self._prefix
            return [np.frombuffer(root + name, np.uint8) for name in self.names.take(pa.array(rows)).to_pylist()]
        if self.shard is None or self.offset is None:
            raise AssertionError("only image files have no shards")
        if self.kind == "idx":
            pixels = read_images(self.root / self.shards[0])
            return list(pixels[self.offset[rows]])
        starts = self.offset[rows]
        ranges = zip(self.shard[rows].tolist(), starts.tolist(), (starts + self.num_bytes[rows]).tolist(), strict=True)
        return [self._range(*place) for place in ranges]

    def read(self, row: int) -> bytes:
        """The encoded image. Raises OSError when it cannot be read."""
        if self.kind == "files":
            return read_place((os.path.join(self.root, self.name(row)), -1, 0))
        assert self.shard is not None and self.offset is not None
        if self.kind == "idx":
            try:
                return self.feed(np.array([row]))[0].tobytes()
            except (DataError, IndexError) as error:
                raise OSError(str(error)) from error
        shard = os.path.join(self.root, self.shards[self.shard[row]])
        return read_place((shard, int(self.offset[row]), int(self.num_bytes[row])))

    def check(self, row: int) -> str | None:
        """What is wrong with an image now: unreadable, damaged, or of another size than here; None if nothing."""
        try:
            checked = check_image(self.read(row))
        except OSError as error:
            return f"{UNREAD}: {error.strerror or error}"
        indexed = tuple(self.sizes[row].tolist())
        if isinstance(checked, str) or checked[:2] == indexed:
            return checked if isinstance(checked, str) else None
        return f"is {checked[:2]} high and wide, the index has {indexed}: was it replaced?"

    def fingerprint(self) -> str:
        """SHA-256 over names, bytes of each image, labels and classes; the same wherever the data set lies."""
        return self._fingerprint

    def entry(self, row: int) -> dict[str, Any]:
        """A row as JSON takes it, for `restored`."""
        height, width = self.sizes[row].tolist()
        entry = {"row": int(row), "name": self.name(row), "label": int(self.labels[row])}
        entry |= {"num_bytes": int(self.num_bytes[row]), "height": height, "width": width}
        if self.shard is not None and self.offset is not None:
            entry |= {"shard": self.shards[self.shard[row]], "offset": int(self.offset[row])}
        return entry

    def restored(self, entries: Sequence[dict[str, Any]]) -> "Index":
        """This index with rows as they were when `entry` told them, so that its fingerprint is the one of then.

        A row that is still at its place gets its bytes and size again; one that is not there is inserted. Such rows are
        placeholders: whoever restores them must not draw them. Raises DataError for an entry beyond the end.
        """
        gone: list[tuple[int, dict[str, Any]]] = []
        ordered = sorted(entries, key=lambda entry: entry["row"])
        for entry in ordered:
            row = entry["row"] - len(gone)  # in this index
            if row > len(self):
                raise DataError(
                    f"{self.root}, {self.split!r}: row {entry['row']} ({entry['name']}) is beyond its {len(self)} rows"
                )
            if row == len(self) or self.name(row) != entry["name"]:
                gone.append((row, entry))
        index, rows = _with_rows(self, gone), [entry["row"] for entry in ordered]
        labels, sizes, num_bytes = index.labels.copy(), index.sizes.copy(), index.num_bytes.copy()
        labels[rows] = [entry["label"] for entry in ordered]
        num_bytes[rows] = [entry["num_bytes"] for entry in ordered]
        sizes[rows] = np.array([(entry["height"], entry["width"]) for entry in ordered], np.int32).reshape(-1, 2)
        return replace(index, labels=labels, sizes=sizes, num_bytes=num_bytes)

    def _range(self, shard: int, start: int, stop: int) -> np.ndarray:
        mapped, whole = self._maps.get(shard) or self._map(shard)
        if stop <= len(whole):
            # the disk starts on all of a batch at once, instead of page by page when DALI copies
            first = start - start % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, first, stop - first)
        return whole[start:stop]

    def _map(self, shard: int) -> tuple[mmap.mmap, np.ndarray]:
        """A whole shard, mapped, also as uint8 (bytes,); it stays mapped."""
        _allow_open_files(len(self.shards))
        with open(os.path.join(self.root, self.shards[shard]), "rb") as opened:
            if not os.fstat(opened.fileno()).st_size:
                raise OSError(f"{opened.name}: is empty")
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps.setdefault(shard, (mapped, np.frombuffer(mapped, np.uint8)))

    @functools.cached_property
    def _maps(self) -> dict[int, tuple[mmap.mmap, np.ndarray]]:
        return {}

    @functools.cached_property
    def _prefix(self) -> bytes:
        return os.path.join(os.fsencode(self.root), b"")

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([self.split, self.classes]).encode())
        offsets = np.frombuffer(self.names.buffers()[1], np.int32)[self.names.offset :][: len(self) + 1]
        text = memoryview(self.names.buffers()[2] or b"")[offsets[0] : offsets[-1]]
        digest.update(text)
        for part in (np.diff(offsets).astype("<i4"), self.num_bytes.astype("<i8"), self.labels.astype("<i8")):
            digest.update(part.data)
        return digest.hexdigest()


def _with_rows(index: Index, rows: Sequence[tuple[int, dict[str, Any]]]) -> Index:
    """The index with entries inserted, each before the row that goes with it; their sizes are still to be filled in."""
    if not rows:
        return index
    before, entries = [row for row, _ in rows], [entry for _, entry in rows]
    order = np.insert(np.arange(len(index)), before, len(index) + np.arange(len(rows)))
    more = pa.array([os.fsencode(entry["name"]) for entry in entries], pa.binary())
    names = pa.concat_arrays([index.names, more]).take(pa.array(order))
    changed: dict[str, Any] = {
        name: np.insert(getattr(index, name), before, 0, axis=0) for name in ("labels", "num_bytes", "sizes")
    }
    if index.shard is not None and index.offset is not None:
        shards = tuple(dict.fromkeys((*index.shards, *(entry["shard"] for entry in entries))))
        shard = np.insert(index.shard, before, [shards.index(entry["shard"]) for entry in entries])
        offset = np.insert(index.offset, before, [entry["offset"] for entry in entries])
        changed |= {"shards": shards, "shard": shard, "offset": offset}
    return replace(index, names=names, **changed)


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files, as far as it may, so that `count` more fit: a mapped file counts as open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


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
    """The table of one split, read from its Parquet file if what it was made from is unchanged, else built.

    split: `train` or `val` below `root`, in any format of docs/data.md; or relative to root a list or a pattern of tar files.
    classes: the names that labels count; without it those of a `classes.txt`, for `val` of `train`, else its own. cache_dir:
    where the Parquet file is kept, else `root/.fastdeit`, or the user's cache folder where root cannot be written. workers:
    threads or processes that decode. bad_images: "skip" leaves them out. again: look at every file's bytes and time, though
    the folders are unchanged. Raises DataError for what cannot be used, with "error" also for images that do not decode.
    """
    root = Path(os.path.abspath(root))
    found = find_split(root, split)
    table = split_table(root, split, found, cache_dir=cache_dir, classes=classes, workers=workers, again=again)
    facts = table_facts(table)
    left_out = left_out_of(table)
    if left_out and bad_images == "error":
        raise DataError(_refusal(left_out))
    good = table.filter(pc.is_null(table["fault"])) if left_out else table
    if not len(good):
        raise DataError("\n  ".join([f"{root}: {split!r} holds no image that can be used", *left_out[:SHOWN]]))
    column = {name: good[name].combine_chunks() for name in good.column_names if name != "fault"}
    shards = {name: column[name].to_numpy() for name in ("shard", "offset") if name in column}
    return Index(
        root,
        split,
        tuple(facts["classes"]),
        _KINDS.get(found.kind, "files"),
        names=column["name"],
        labels=column["label"].to_numpy(),
        sizes=np.stack((column["height"].to_numpy(), column["width"].to_numpy()), 1).astype(np.int32),
        num_bytes=column["num_bytes"].to_numpy(),
        shards=tuple(facts["shards"]),
        left_out=left_out,
        **shards,
    )


_KINDS: dict[str, Literal["shards", "idx"]] = {"shards": "shards", "idx": "idx"}


def split_table(
    root: Path,
    split: str,
    found: Found,
    *,
    cache_dir: Path | None = None,
    classes: Sequence[str] | None = None,
    workers: int | None = None,
    again: bool = False,
    columns: Sequence[str] = _COLUMNS,
) -> pa.Table:
    """A row for every image of the split, good or bad (then with a `fault`); `table_facts` reads what it says of itself."""
    names = _class_names(root, split, found, classes, cache_dir, workers)
    source = {"kind": found.kind, "paths": [os.path.relpath(path, root) for path in found.paths], "classes": names}
    places = table_places(root, split, cache_dir)
    table = None if again else fresh_table(places, root, source, columns)
    if table is None:
        count = workers or os.cpu_count() or 1
        table = build_table(_list(root, found, names, count), root, source, places, count)
    return table


def _class_names(
    root: Path, split: str, found: Found, given: Sequence[str] | None, cache_dir: Path | None, workers: int | None
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
    return table_facts(split_table(root, "train", train, cache_dir=cache_dir, workers=workers, columns=()))["classes"]


def _list(root: Path, found: Found, classes: Sequence[str] | None, workers: int) -> Listing:
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


def _refusal(left_out: Sequence[str]) -> str:
    more = [f"and {len(left_out) - SHOWN} more"] if len(left_out) > SHOWN else []
    allowed = f"whole {', '.join(EXTENSIONS)} images of at most {MAX_PIXELS} pixels and {MAX_BYTES} bytes, or --bad-images skip"
    return "\n  ".join([f"{len(left_out)} bad image(s); allowed are {allowed}:", *left_out[:SHOWN], *more])
