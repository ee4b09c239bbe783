"""The index on disk: one Parquet table a split, with the facts or the fault of every image, and the
stamps of its sources.

A start only compares the stamps of folders and of files that hold images. When one differs, the
split is listed again, and only images whose name, bytes or time of modification changed are
checked. Where the time alone differs, as in a copy of the data set, an image's header is compared.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fastdeit.data.checks.facts import header_only
from fastdeit.data.checks.jobs import DECODED
from fastdeit.data.checks.work import ImageCheck
from fastdeit.data.formats.check import (
    MAX_BYTES,
    MAX_PIXELS,
)
from fastdeit.data.formats.file_names import EXTENSIONS
from fastdeit.data.formats.labels import UNKNOWN, note_labels
from fastdeit.data.formats.listing import (
    SHOWN,
    DataError,
    Listing,
    Stamp,
    Stamps,
    is_unchanged,
    open_table,
    read_columns,
)
from fastdeit.display.text import printable
from fastdeit.storage.json_values import load_json
from fastdeit.storage.urls import find_user_cache

VERSION = 3
"""Raised whenever a table of an older version must not be used as it is."""
_WITH_FACTS = (2, VERSION)  # versions whose facts of unchanged images can be used

_log = logging.getLogger(__name__)


def table_places(root: Path, split: str, cache_dir: Path | None) -> list[Path]:
    """Return the paths at which a split's table may be stored, best first; cache_dir: the only
    folder, or None."""
    name = split if re.fullmatch(r"[\w-][\w.-]*", split) else _slug(split)
    user = find_user_cache()
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    folders = [Path(cache_dir)] if cache_dir else [root / ".fastdeit", user / "fastdeit" / key]
    return [folder / f"{name}.parquet" for folder in folders]


def _slug(split: str) -> str:
    words = re.sub(r"[^a-zA-Z0-9]+", "-", split).strip("-")
    key = hashlib.sha256(os.fsencode(split)).hexdigest()
    return f"{words[:40]}-{key[:8]}"


def fresh_table(
    places: Iterable[Path],
    root: Path,
    source: dict[str, Any],
    columns: Sequence[str],
    wanted: ImageCheck,
) -> pa.Table | None:
    """Return the columns of the first stored table that was made from `source`, whose sources are
    unchanged and whose images are checked as wanted; else None."""
    for place in places:
        facts = _facts_at(place)
        if facts and facts["source"] == source:
            stamps = {path: Stamp(*stamp) for path, stamp in facts["stamps"].items()}
            table = _read(place, columns) if is_unchanged(root, stamps) else None
            if table is not None and _is_checked(table, wanted):
                return table
    return None


def _is_checked(table: pa.Table, wanted: ImageCheck) -> bool:
    """Return True if no image of a table needs a deeper check."""
    return not (header_only(table) & (wanted.needed(len(table)) == DECODED)).any()


def _facts_at(place: Path, versions: Sequence[int] = (VERSION,)) -> dict[str, Any]:
    try:
        return _facts(open_table(place).schema_arrow, versions)
    except (OSError, ValueError, pa.ArrowException):
        return {}


def table_facts(table: pa.Table) -> dict[str, Any]:
    """Return the metadata of a table: source, classes, shards, notes, stamps; empty for a table of
    another version."""
    return _facts(table.schema, (VERSION,))


def _facts(schema: pa.Schema, versions: Sequence[int]) -> dict[str, Any]:
    try:
        facts = load_json((schema.metadata or {}).get(b"fastdeit", b"{}"))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) and facts.get("version") in versions else {}


def describe_table(
    table: pa.Table, source: dict[str, Any], listing: Listing, stamps: Stamps
) -> pa.Table:
    """Return the table with the metadata that `table_facts` reads."""
    facts = {
        "version": VERSION,
        "source": source,
        "classes": listing.classes,
        "shards": listing.shards,
        "notes": listing.notes,
        "stamps": stamps,
    }
    return table.replace_schema_metadata({"fastdeit": json.dumps(facts)})


def _read(place: Path, columns: Sequence[str] | None = None) -> pa.Table | None:
    try:
        # memory-mapped: the pages are in the kernel's cache, not in our memory
        table = open_table(place)
        if columns is not None:
            columns = [name for name in columns if name in table.schema_arrow.names]
        return read_columns(table, columns)
    except (OSError, ValueError, pa.ArrowException):
        return None


def stored_table(places: Sequence[Path]) -> pa.Table | None:
    """Return the newest stored table, also of an earlier version with usable facts, or None."""
    found = [place for place in places if _facts_at(place, _WITH_FACTS)]
    if not found:
        return None
    newest = max(found, key=lambda place: place.stat().st_mtime_ns)
    if not _facts_at(newest):
        _log.warning("%s: is of an earlier version; the data set is listed again", newest)
    return _read(newest)


def excluded_images(table: pa.Table) -> tuple[str, ...]:
    """Return the bad images of a split's table, each with its fault."""
    bad = table.select(["name", "fault"]).filter(pc.is_valid(table["fault"]))
    pairs = zip(bad["name"].to_pylist(), bad["fault"].to_pylist(), strict=True)
    return tuple(f"{printable(os.fsdecode(name).rstrip('/'))}: {fault}" for name, fault in pairs)


def describe_excluded(excluded: Sequence[str]) -> str:
    """Return the text of an error on bad images, of which it names some."""
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
    return (*facts["notes"], *labels, *_note_check(good))


def note_counts(n_train: int, n_val: int) -> list[str]:
    """Return a note if there are more validation than training images, as in exchanged splits."""
    if n_val <= n_train:
        return []
    counts = f"{n_val:,} validation images, but {n_train:,} training images"
    return [f"{counts}: are the splits exchanged?"]


def _note_check(good: pa.Table) -> list[str]:
    count = int(header_only(good).sum())
    advice = "`fastdeit index PATH --check decode` decodes each"
    return [f"headers only: {count:,} of {len(good):,} images; {advice}"] if count else []
