"""A data set as a table: one row an image, with its class, its height and width, and a check that it decodes.

The plan needs every height and width before anything is read, and a single file that does not decode costs DALI a whole
batch; so each file is decoded once, and the table is kept as Parquet. Sizes are those of the stored pixels: an EXIF rotation
is not applied, as in torchvision's loader. A changed folder is noticed by its listing (names, bytes, times), and only the
files that changed are decoded again. Order and class ids are those of torchvision's ImageFolder.
"""

import functools
import hashlib
import json
import logging
import multiprocessing
import os
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_PIXELS = 64 * 2**20
VERSION = 1
"""Rises whenever a table of an older version must not be read."""

_NAMED = 10  # files listed in an error
_CHUNK = 64  # files a worker takes at a time
_PROCESSES_FROM = 4000  # below this many files, starting processes costs more than the decoding
_PROGRESS_AFTER_S = 1.5
_DECODE_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

Checked = tuple[int, int] | str
"""Height and width of a good file, or what is wrong with a bad one."""

_log = logging.getLogger(__name__)


class DataError(ValueError):
    """A data set that cannot be used as it is; the message names the path and what is allowed."""


@dataclass(frozen=True, eq=False)
class Index:
    """One split of a data set; row i is image i."""

    root: Path
    split: str
    classes: tuple[str, ...]
    """Names of the classes; a label is a position in it."""
    paths: pa.BinaryArray
    """(N,): the files' names relative to `root`, as bytes of the file system."""
    labels: np.ndarray
    """int64 (N,)."""
    sizes: np.ndarray
    """int32 (N, 2): height and width in pixels, without EXIF rotation."""
    num_bytes: np.ndarray
    """int64 (N,): sizes of the files."""

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> Path:
        """The file of row i, below `root`."""
        return self.root / os.fsdecode(self.paths[int(i)].as_py())

    def path_bytes(self, rows: np.ndarray) -> list[np.ndarray]:
        """The files of `rows` (int64 (B,)) as DALI's `io.file.read` takes them: uint8 (length,) each."""
        root = os.fsencode(self.root) + b"/"
        return [np.frombuffer(root + name, np.uint8) for name in self.paths.take(pa.array(rows)).to_pylist()]

    def fingerprint(self) -> str:
        """SHA-256 over names, bytes a file, labels and classes; the same wherever the folder lies."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([self.split, self.classes]).encode())
        names = self.paths.to_pylist()
        for part in (b"\0".join(names), self.num_bytes.astype("<i8").tobytes(), self.labels.astype("<i8").tobytes()):
            digest.update(part)
        return digest.hexdigest()


@dataclass(frozen=True)
class _Listing:
    """What the folder says before any file is opened: names, labels, bytes and modification times (ns)."""

    paths: pa.BinaryArray
    labels: np.ndarray
    num_bytes: np.ndarray
    mtimes: np.ndarray

    @property
    def keys(self) -> pa.Table:
        """A file whose row in here is unchanged is taken to be unchanged."""
        return pa.table({"path": self.paths, "num_bytes": self.num_bytes, "mtime_ns": self.mtimes})


def build_index(
    root: Path,
    split: str,
    *,
    cache_dir: Path | None = None,
    classes: Sequence[str] | None = None,
    workers: int | None = None,
) -> Index:
    """The table of `root/split/CLASS/**/*.{jpg,jpeg,png,webp,bmp}`, read from its Parquet file if the folder is unchanged.

    classes: the names that labels count; without it those of `root/train`. cache_dir: where the Parquet file is kept; without
    it `root/.fastdeit`, or the user's cache folder where root cannot be written. workers: threads or processes that decode.
    Raises DataError for a missing folder, no classes, a class unknown to train, an empty class, files that do not decode.
    """
    root = Path(os.path.abspath(root))
    names = tuple(classes) if classes is not None else _class_names(root, "train")
    listing = _list_split(root, split, names)
    places = [folder / f"{split}.parquet" for folder in ([Path(cache_dir)] if cache_dir else _cache_folders(root))]
    sizes = _known_sizes(listing, places)
    unknown = np.flatnonzero(sizes[:, 0] == 0)
    if unknown.size:
        files = [os.path.join(os.fsencode(root), name) for name in listing.paths.take(pa.array(unknown)).to_pylist()]
        sizes[unknown], bad = _check_all(files, workers or os.cpu_count() or 1)
        # bad files stay unknown in the table, so that the next try decodes only them
        _write_first(listing.keys.append_column("height", [sizes[:, 0]]).append_column("width", [sizes[:, 1]]), places)
        _refuse(bad)
    return Index(root, split, names, listing.paths, listing.labels, sizes, listing.num_bytes)


def _class_names(root: Path, split: str) -> tuple[str, ...]:
    folder = root / split
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; allowed is a folder that holds train/CLASS/IMAGE and val/CLASS/IMAGE")
    if not folder.is_dir():
        raise DataError(f"{root}: has no folder {split!r}; allowed is {split}/CLASS/IMAGE, a folder for each class")
    names = tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")))
    if not names:
        raise DataError(f"{folder}: has no class folders; allowed is {split}/CLASS/IMAGE, a folder for each class")
    return names


def _list_split(root: Path, split: str, classes: tuple[str, ...]) -> _Listing:
    present = _class_names(root, split)
    unknown = sorted(set(present) - set(classes))
    if unknown:
        shown = ", ".join(unknown[:_NAMED])
        raise DataError(f"{root / split}: classes that train does not have: {shown}; allowed are its {len(classes)} classes")
    label_of = {name: label for label, name in enumerate(classes)}
    rows: list[tuple[bytes, int, int, int]] = []
    for name in sorted(present, key=label_of.__getitem__):
        files = list(_image_files(os.fsencode(root / split / name)))
        if not files:
            raise DataError(f"{root / split / name}: no images in this class; allowed are {', '.join(EXTENSIONS)}")
        rows += [(os.path.relpath(file, os.fsencode(root)), label_of[name], *_stat(file)) for file in files]
    names, *columns = zip(*rows, strict=True)
    return _Listing(pa.array(names, pa.binary()), *(np.array(column, np.int64) for column in columns))


def _image_files(folder: bytes) -> Iterator[bytes]:
    """Images below `folder`, in ImageFolder's order: folders by name, files by name within each."""
    extensions = tuple(os.fsencode(extension) for extension in EXTENSIONS)
    for parent, _, files in sorted(os.walk(folder, followlinks=True)):
        yield from (os.path.join(parent, file) for file in sorted(files) if file.lower().endswith(extensions))


def _stat(file: bytes) -> tuple[int, int]:
    try:
        facts = os.stat(file)
    except OSError as error:
        raise DataError(f"{os.fsdecode(file)}: cannot be read: {error.strerror}") from error
    return facts.st_size, facts.st_mtime_ns


def _cache_folders(root: Path) -> list[Path]:
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [root / ".fastdeit", user / "fastdeit" / hashlib.sha256(os.fsencode(root)).hexdigest()[:16]]


def _known_sizes(listing: _Listing, places: Iterable[Path]) -> np.ndarray:
    """int32 (N, 2) from the first table that can be read; 0 where a file is new or has changed."""
    now, table = listing.keys, next(filter(None, map(_read_table, places)), None)
    if table is None:
        return np.zeros((len(now), 2), np.int32)
    known = np.stack((table["height"].to_numpy(), table["width"].to_numpy()), 1).astype(np.int32)
    was = table.select(now.column_names)
    if was.equals(now):
        return known
    row_of = {key: row for row, key in enumerate(_rows(was))}
    return np.append(known, [[0, 0]], 0).astype(np.int32)[[row_of.get(key, -1) for key in _rows(now)]]


def _rows(table: pa.Table) -> Iterator[tuple[object, ...]]:
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def _read_table(place: Path) -> pa.Table | None:
    try:
        table = pq.read_table(place)
    except (OSError, pa.ArrowInvalid):
        return None
    version = (table.schema.metadata or {}).get(b"fastdeit")
    return table if version == str(VERSION).encode() else None


def _write_first(table: pa.Table, places: Sequence[Path]) -> None:
    """Write the table to the first place that takes it; whole or not at all, several processes at once are safe."""
    table = table.replace_schema_metadata({"fastdeit": str(VERSION)})
    for place in places:
        partial = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, partial)
            os.replace(partial, place)
            return
        except OSError as error:
            _log.debug("%s: %s", place, error)
    _log.warning("the index could not be kept at %s: it will be built again", " nor at ".join(map(str, places)))


def _check_all(files: list[bytes], workers: int) -> tuple[np.ndarray, list[str]]:
    """int32 (N, 2): height and width of the files, 0 for a bad one; and what is wrong with each bad one."""
    chunks = [files[i : i + _CHUNK] for i in range(0, len(files), _CHUNK)]
    sizes, bad = np.zeros((len(files), 2), np.int32), []
    with _executor(len(files), workers) as pool:
        results = (result for chunk in pool.map(_check_files, chunks) for result in chunk)
        for row, result in enumerate(_with_progress(results, len(files))):
            if isinstance(result, str):
                bad.append(f"{os.fsdecode(files[row])}: {result}")
            else:
                sizes[row] = result
    return sizes, bad


def _refuse(bad: list[str]) -> None:
    if bad:
        shown = "\n  ".join(bad[:_NAMED] + ([f"and {len(bad) - _NAMED} more"] if len(bad) > _NAMED else []))
        allowed = f"whole {', '.join(EXTENSIONS)} files of at most {MAX_PIXELS} pixels"
        raise DataError(f"{len(bad)} unreadable image(s); allowed are {allowed}:\n  {shown}")


def _executor(files: int, workers: int) -> Executor:
    if files < _PROCESSES_FROM or workers == 1:
        return ThreadPoolExecutor(workers)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _with_progress(results: Iterable[Checked], total: int) -> Iterator[Checked]:
    """Pass `results` through; after a while, and only on a terminal, with a progress bar."""
    console, started = Console(stderr=True), time.monotonic()
    columns = (TextColumn("checking images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = progress.add_task("", total=total)
    try:
        for result in results:
            if not progress.live.is_started and time.monotonic() - started > _PROGRESS_AFTER_S:
                progress.start()
            progress.advance(task)
            yield result
    finally:
        progress.stop()


def _check_files(files: list[bytes]) -> list[Checked]:
    return [check_file(file) for file in files]


def check_file(file: bytes | str | Path) -> Checked:
    """Height and width of an image that decodes whole, else what is wrong with it."""
    try:
        with Image.open(os.fsdecode(file)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                return f"{width} x {height} pixels are more than {MAX_PIXELS}"
            image.load()
    except _DECODE_ERRORS as error:
        return f"{type(error).__name__}: {error}"
    return height, width
