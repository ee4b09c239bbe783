"""The index on disk: one Parquet table a split, with the facts or the fault of every image, and the
stamps of its sources.

A start only compares the stamps of folders and containers. When one differs, the split is listed
again, and only images whose name, bytes or time changed are decoded.
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

from fastdeit.data.formats.check import UNREAD, ByteRange, Checked, check_places
from fastdeit.data.formats.listing import Listing, Stamps, image_columns, is_unchanged, open_table
from fastdeit.storage.atomic import atomic_open

VERSION = 2
"""Raised whenever a table of an older version must not be read."""

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
    """Return the columns of the stored table if it was made from `source` and its sources are
    unchanged, else None."""
    for place in places:
        facts = _facts_at(place)
        if facts:
            valid = facts["source"] == source and is_unchanged(root, facts["stamps"])
            return _read(place, columns) if valid else None
    return None


def _facts_at(place: Path) -> dict[str, Any]:
    try:
        return _facts(open_table(place).schema_arrow)
    except (OSError, ValueError, pa.ArrowException):
        return {}


def table_facts(table: pa.Table) -> dict[str, Any]:
    """Return the metadata of a table: source, classes, shards, stamps; empty for one of another
    version."""
    return _facts(table.schema)


def _facts(schema: pa.Schema) -> dict[str, Any]:
    try:
        facts = json.loads((schema.metadata or {}).get(b"fastdeit", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) and facts.get("version") == VERSION else {}


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
    table = pa.table(image_columns(listing, mtime_ns=listing.mtimes))
    columns = _known(table, places)
    for row, fault in listing.faults.items():
        _fill(columns, row, fault)
    rows = np.flatnonzero([fault == _UNCHECKED for fault in columns["fault"]])
    checks: Iterable[Checked]
    if listing.facts:
        checks = [listing.facts] * len(rows)
    else:
        checks = check_places(_files(listing, root, rows), workers)
    for row, checked in zip(rows.tolist(), checks, strict=True):
        _fill(columns, row, checked)
    for name, kind in _FACTS.items():
        table = table.append_column(name, pa.array(columns[name], kind))
    facts = {
        "version": VERSION,
        "source": source,
        "classes": listing.classes,
        "shards": listing.shards,
        "stamps": _stamps(listing, columns["fault"]),
    }
    table = table.replace_schema_metadata({"fastdeit": json.dumps(facts)})
    _write_first(table, places)
    return table


def _stamps(listing: Listing, faults: Sequence[str | None]) -> Stamps:
    """Return the listing's stamps; all unsettled if some file could not be read, which may be
    readable the next time."""
    unread = any(fault and fault.startswith(UNREAD) for fault in faults)
    return {name: [size, -1 if unread else mtime] for name, (size, mtime) in listing.stamps.items()}


def _known(table: pa.Table, places: Iterable[Path]) -> dict[str, list[Any]]:
    """Return the facts of images that are unchanged in the stored table, as lists; the others have
    the fault _UNCHECKED."""
    kept = next((_read(place) for place in places if _facts_at(place)), None)
    keys = [name for name in table.column_names if name != "label"]
    if kept is None or any(name not in kept.column_names for name in keys):
        return {name: [_UNCHECKED if name == "fault" else None] * len(table) for name in _FACTS}
    # the stored row of each image, null where there is none, and so its values in `was`
    row = pc.index_in(table["name"], value_set=kept["name"].combine_chunks())
    was = kept.take(row)
    same = pc.is_valid(row)
    for name in keys[1:]:
        same = pc.and_(same, pc.fill_null(pc.equal(table[name], was[name]), False))
    unread = pc.fill_null(pc.starts_with(was["fault"], UNREAD), False)
    same = pc.and_(same, pc.invert(unread))
    facts = {}
    for name in _FACTS:
        unknown = _UNCHECKED if name == "fault" else None
        values = pc.if_else(same, was[name], pa.scalar(unknown, was[name].type))
        facts[name] = values.to_pylist()
    return facts


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


def _fill(columns: dict[str, list[Any]], row: int, checked: Checked) -> None:
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
