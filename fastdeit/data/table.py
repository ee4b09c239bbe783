"""The index on disk: one Parquet table a split, with the facts or the fault of every image, and the
stamps of its sources.

A start only compares the stamps of folders and containers. When one differs, the split is listed
again, and only images whose name, bytes or time of modification changed are decoded. Where the time
of change alone differs, as in a copy of the data set, an image's header is compared.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastdeit.data.formats.check import (
    MAX_BYTES,
    MAX_PIXELS,
    UNREAD,
    ByteRange,
    Checked,
    ImageInfo,
    check_places,
)
from fastdeit.data.formats.file_names import EXTENSIONS
from fastdeit.data.formats.labels import UNKNOWN, note_labels
from fastdeit.data.formats.listing import (
    SHOWN,
    UNSETTLED,
    DataError,
    Listing,
    Stamp,
    Stamps,
    have_true_times,
    image_columns,
    is_unchanged,
    open_table,
)
from fastdeit.display.text import printable
from fastdeit.storage.atomic import atomic_open

VERSION = 3
"""Raised whenever a table of an older version must not be used as it is."""
_WITH_FACTS = (2, VERSION)  # versions whose facts of unchanged images hold

_FACTS = {
    "height": pa.int32(),
    "width": pa.int32(),
    "format": pa.string(),
    "mode": pa.string(),
    "orientation": pa.int8(),
    "fault": pa.string(),
}
_UNCHECKED = ""  # fault of an image that is not checked yet
_log = logging.getLogger(__name__)

_Columns = dict[str, list[Any]]
"""The columns of _FACTS."""


def table_places(root: Path, split: str, cache_dir: Path | None) -> list[Path]:
    """Return where a split's table may be stored, best first."""
    name = split if re.fullmatch(r"[\w-][\w.-]*", split) else _slug(split)
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    folders = [Path(cache_dir)] if cache_dir else [root / ".fastdeit", user / "fastdeit" / key]
    return [folder / f"{name}.parquet" for folder in folders]


def _slug(split: str) -> str:
    words = re.sub(r"[^a-zA-Z0-9]+", "-", split).strip("-")
    key = hashlib.sha256(os.fsencode(split)).hexdigest()
    return f"{words[:40]}-{key[:8]}"


def fresh_table(
    places: Iterable[Path], root: Path, source: dict[str, Any], columns: Sequence[str]
) -> pa.Table | None:
    """Return the columns of the first stored table that was made from `source` and whose sources
    are unchanged, else None."""
    for place in places:
        facts = _facts_at(place)
        if facts and facts["source"] == source:
            stamps = {path: Stamp(*stamp) for path, stamp in facts["stamps"].items()}
            table = _read(place, columns) if is_unchanged(root, stamps) else None
            if table is not None:
                return table
    return None


def _facts_at(place: Path, versions: Sequence[int] = (VERSION,)) -> dict[str, Any]:
    try:
        return _facts(open_table(place).schema_arrow, versions)
    except (OSError, ValueError, pa.ArrowException):
        return {}


def table_facts(table: pa.Table) -> dict[str, Any]:
    """Return the metadata of a table: source, classes, shards, stamps; empty for one of another
    version."""
    return _facts(table.schema, (VERSION,))


def _facts(schema: pa.Schema, versions: Sequence[int]) -> dict[str, Any]:
    try:
        facts = json.loads((schema.metadata or {}).get(b"fastdeit", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) and facts.get("version") in versions else {}


def _read(place: Path, columns: Sequence[str] | None = None) -> pa.Table | None:
    try:
        # memory-mapped: the pages are in the kernel's cache, not in our memory
        table = open_table(place)
        if columns is not None:
            columns = [name for name in columns if name in table.schema_arrow.names]
        return table.read(columns=columns)
    except (OSError, ValueError, pa.ArrowException):
        return None


def build_table(
    listing: Listing, root: Path, source: dict[str, Any], places: Sequence[Path], workers: int
) -> pa.Table:
    """Build and store the table of a listing: unchanged images have their facts from the stored
    table, the others are decoded."""
    times = {"mtime_ns": listing.mtimes, "ctime_ns": listing.ctimes}
    table = pa.table(image_columns(listing, **times))
    columns = _known(table, places)
    for row, fault in listing.faults.items():
        _fill(columns, row, fault)
    rows = np.flatnonzero([fault == _UNCHECKED for fault in columns["fault"]])
    checks = _check(listing, root, rows, columns, workers)
    for row, checked in zip(rows.tolist(), checks, strict=True):
        _fill(columns, row, checked)
    for name, kind in _FACTS.items():
        table = table.append_column(name, pa.array(columns[name], kind))
    facts = {
        "version": VERSION,
        "source": source,
        "classes": listing.classes,
        "shards": listing.shards,
        "notes": listing.notes,
        "stamps": _stamps(listing, columns["fault"]),
    }
    table = table.replace_schema_metadata({"fastdeit": json.dumps(facts)})
    _write_first(table, places)
    return table


def _check(
    listing: Listing, root: Path, rows: np.ndarray, columns: _Columns, workers: int
) -> Iterable[Checked]:
    if listing.facts:
        return [listing.facts] * len(rows)
    names = ImageInfo._fields
    known = [
        ImageInfo(*(columns[name][row] for name in names)) if columns["height"][row] else None
        for row in rows.tolist()
    ]
    return check_places(_files(listing, root, rows), known, workers)


def _stamps(listing: Listing, faults: Sequence[str | None]) -> Stamps:
    """Return the listing's stamps; all unsettled if some file could not be read, which may be
    readable the next time, or if equal stamps would not show that nothing changed."""
    unread = any(fault and fault.startswith(UNREAD) for fault in faults)
    if not unread and have_true_times(stamp.ctime for stamp in listing.stamps.values()):
        return listing.stamps
    return {path: stamp._replace(mtime=UNSETTLED) for path, stamp in listing.stamps.items()}


def _known(table: pa.Table, places: Sequence[Path]) -> _Columns:
    """Return the facts of the images that have the same bytes and time of modification in the
    stored table. The fault is _UNCHECKED if the time of change differs, and for all others."""
    kept = _stored(places)
    keys = [name for name in table.column_names if name not in ("label", "ctime_ns")]
    if kept is None or any(name not in kept.column_names for name in keys):
        return {name: [_UNCHECKED if name == "fault" else None] * len(table) for name in _FACTS}
    # the stored row of each image, null where there is none, and so its values in `was`
    row = pc.index_in(table["name"], value_set=kept["name"].combine_chunks())
    was = kept.take(row)
    alike = pc.is_valid(row)
    for name in keys[1:]:
        alike = pc.and_(alike, pc.fill_null(pc.equal(table[name], was[name]), False))
    unread = pc.fill_null(pc.starts_with(was["fault"], UNREAD), False)
    same = pc.and_(alike, pc.invert(unread))
    same = pc.and_(same, _same_ctimes(table, was))
    facts = {}
    for name in _FACTS:
        unknown = _UNCHECKED if name == "fault" else None
        is_known = same if name == "fault" else alike
        values = pc.if_else(is_known, was[name], pa.scalar(unknown, was[name].type))
        facts[name] = values.to_pylist()
    return facts


def _same_ctimes(table: pa.Table, was: pa.Table) -> pa.Array:
    """Return bool (N,): which images have the time of change that they had; none if it says nothing
    here, or if the table of an earlier version has no such column."""
    ctimes = table["ctime_ns"]
    if "ctime_ns" not in was.column_names or not have_true_times(ctimes.to_pylist()):
        return pa.scalar(False)
    return pc.fill_null(pc.equal(ctimes, was["ctime_ns"]), False)


def _stored(places: Sequence[Path]) -> pa.Table | None:
    """Return the newest stored table, also of an earlier version whose facts hold, or None."""
    found = [place for place in places if _facts_at(place, _WITH_FACTS)]
    if not found:
        return None
    newest = max(found, key=lambda place: place.stat().st_mtime_ns)
    if not _facts_at(newest):
        _log.warning("%s: is of an earlier version; the data set is listed again", newest)
    return _read(newest)


def _files(listing: Listing, root: Path, rows: np.ndarray) -> list[ByteRange]:
    names = [os.fsdecode(name) for name in listing.names.take(pa.array(rows)).to_pylist()]
    if listing.shard is None or listing.offset is None:
        return [(os.path.join(root, name), -1, 0) for name in names]
    shards = [os.path.join(root, shard) for shard in listing.shards]
    ranges = zip(
        listing.shard[rows].tolist(),
        listing.offset[rows].tolist(),
        listing.num_bytes[rows].tolist(),
        strict=True,
    )
    return [(shards[shard], offset, length) for shard, offset, length in ranges]


def _fill(columns: _Columns, row: int, checked: Checked) -> None:
    facts = (0, 0, None, None, None, checked) if isinstance(checked, str) else (*checked, None)
    for name, value in zip(_FACTS, facts, strict=True):
        columns[name][row] = value


def _write_first(table: pa.Table, places: Sequence[Path]) -> None:
    """Write the table to the first place that can be written; whole or not at all, also when
    several processes write at once."""
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic_open(place) as file:
                pq.write_table(table, file, compression="zstd")
            return
        except OSError as error:
            _log.debug("%s: %s", place, error)
    names = " nor at ".join(map(str, places))
    _log.warning("the index cannot be stored at %s: it will be built again", names)


def excluded_images(table: pa.Table) -> tuple[str, ...]:
    """Return the bad images of a split's table, each with its fault."""
    bad = table.select(["name", "fault"]).filter(pc.is_valid(table["fault"]))
    pairs = zip(bad["name"].to_pylist(), bad["fault"].to_pylist(), strict=True)
    return tuple(f"{printable(os.fsdecode(name).rstrip('/'))}: {fault}" for name, fault in pairs)


def describe_excluded(excluded: Sequence[str]) -> str:
    """Return an error's text on bad images, of which it names some."""
    kinds = ", ".join(EXTENSIONS)
    lines = [
        f"{len(excluded)} bad image(s); every image must be a whole {kinds} of at most "
        f"{MAX_PIXELS} pixels and {MAX_BYTES} bytes (--bad-images skip excludes the others):",
        *excluded[:SHOWN],
    ]
    if len(excluded) > SHOWN:
        lines.append(f"and {len(excluded) - SHOWN} more")
    return "\n  ".join(lines)


def good_images(table: pa.Table, root: Path, split: str) -> pa.Table:
    """Return the rows of a split's table that can be used. Raises DataError if there is none."""
    good = table.filter(pc.is_null(table["fault"]))
    if not len(good):
        lines = [f"{root}: {split!r} holds no image that can be used", *excluded_images(table)]
        raise DataError("\n  ".join(lines[: SHOWN + 1]))
    return good


def refuse_empty_classes(table: pa.Table, root: Path, split: str) -> None:
    """Raise DataError for a class folder in which no image of the split's table can be used."""
    facts = table_facts(table)
    is_good = pc.is_null(table["fault"])
    usable = set(table.filter(is_good)["label"].unique().to_pylist())
    bad = table.filter(pc.invert(is_good))
    for label in sorted(set(bad["label"].to_pylist()) - usable - {UNKNOWN}):
        if facts["source"]["kind"] == "folder":
            of_class = excluded_images(bad.filter(pc.equal(bad["label"], label)))
            name = printable(facts["classes"][label])
            message = f"{root}: the class {name} of {split!r} holds no image that can be used"
            hint = "repair its images, or remove its folder"
            raise DataError("\n  ".join([message, *of_class[:SHOWN], hint]))


def note_split(good: pa.Table, *, is_train: bool) -> tuple[str, ...]:
    """Return notes on a split's usable images, and on their labels if these define the classes."""
    facts = table_facts(good)
    labels = note_labels(good["label"].to_numpy(), facts["classes"]) if is_train else []
    return (*facts["notes"], *labels)
