"""Tables of checked images, built from a listing and from what is stored.

The results so far are stored every minute, so an interrupt loses few of them. Several processes may
check parts of one split: each adds the results of the others to the table that it stores.
"""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastdeit.data.checks.facts import Facts
from fastdeit.data.checks.jobs import DECODED
from fastdeit.data.checks.work import ImageCheck, check_images
from fastdeit.data.formats.check import UNREAD, ByteRange
from fastdeit.data.formats.listing import (
    UNSETTLED,
    Listing,
    Stamps,
    have_true_times,
    image_columns,
)
from fastdeit.data.table import describe_table, stored_table
from fastdeit.display.progress import track
from fastdeit.storage.atomic import atomic_open, open_no_link

_STORE_EVERY_S = 60.0
_STORING_SHARE = 20  # storing takes at most 1 / _STORING_SHARE of the time
_NEVER = -1  # time of change of an image whose facts must be compared again
_KEYS = ("name", "num_bytes", "mtime_ns", "shard", "offset")
_log = logging.getLogger(__name__)


def build_table(
    listing: Listing,
    root: Path,
    source: dict[str, Any],
    places: Sequence[Path],
    workers: int,
    wanted: ImageCheck,
) -> pa.Table:
    """Build and store the table of a listing: the facts of unchanged images come from the stored
    table, the others are checked.

    After an interrupt the stored table has the images that were checked, and is not fresh.
    """
    building = _Building(listing, source, places)
    facts = building.facts
    total = int((~facts.is_sure | (facts.depth < wanted.needed(len(facts)))).sum())

    def files(rows: np.ndarray) -> list[ByteRange]:
        return _files(listing, root, rows)

    checks = check_images(facts, listing.num_bytes, files, wanted, workers)
    try:
        for _ in track(checks, total, "checking images"):
            building.store_in_time()
    finally:
        table = building.store()
    return table


class _Building:
    """A table while its images are checked."""

    def __init__(self, listing: Listing, source: dict[str, Any], places: Sequence[Path]) -> None:
        self._listing = listing
        self._source = source
        self._places = places
        times = {"mtime_ns": listing.mtimes, "ctime_ns": listing.ctimes}
        self._images = pa.table(image_columns(listing, **times))
        self._seen = _identities(places)  # of the stored tables whose facts are in `facts`
        self.facts = _facts(listing, self._images, places)
        self._stored_at = time.monotonic()
        self._pause = _STORE_EVERY_S

    def store_in_time(self) -> None:
        """Store the results so far, if the last time was more than a minute ago."""
        started = time.monotonic()
        if started - self._stored_at >= self._pause:
            self.store()
            self._stored_at = time.monotonic()
            self._pause = max(_STORE_EVERY_S, _STORING_SHARE * (self._stored_at - started))

    def store(self) -> pa.Table:
        """Store the table at the first place that can be written, with the results that other
        processes have stored there meanwhile; return it."""
        for place in self._places:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                with _locked(place):
                    self._add_stored()
                    table = self._table()
                    with atomic_open(place) as file:
                        pq.write_table(table, file, compression="zstd")
                    self._seen = _identities(self._places)
                return table
            except OSError as error:
                _log.debug("%s: %s", place, error)
        names = " nor at ".join(map(str, self._places))
        _log.warning("the index cannot be stored at %s: it will be built again", names)
        return self._table()

    def _add_stored(self) -> None:
        if _identities(self._places) != self._seen:
            theirs = _known(self._images, self._places)
            ours = np.where(self.facts.is_sure, self.facts.depth, 0)
            rows = np.flatnonzero(theirs.is_sure & (theirs.depth > ours))
            self.facts.take(theirs, rows)

    def _table(self) -> pa.Table:
        """Return the table of the images that were checked; it is fresh if these are all."""
        table = self._images
        for name, column in self.facts.columns().items():
            table = table.append_column(name, column)
        stamps = _stamps(self._listing, self.facts.faults())
        if not self.facts.is_sure.all():
            stamps = _unsettled(stamps)
            ctimes = np.where(self.facts.is_sure, self._listing.ctimes, _NEVER)
            place = table.column_names.index("ctime_ns")
            table = table.set_column(place, "ctime_ns", pa.array(ctimes))
            table = table.filter(pa.array(self.facts.depth > 0))
        return describe_table(table, self._source, self._listing, stamps)


def _facts(listing: Listing, images: pa.Table, places: Sequence[Path]) -> Facts:
    """Return the facts of a listing's images that are known before any is checked."""
    if listing.facts:
        facts = Facts.of_alike(len(images), listing.facts)
    elif listing.checked is not None:
        every = np.ones(len(images), bool)
        facts = Facts.of_table(listing.checked, every, every)
    else:
        facts = _known(images, places)
    for row, fault in listing.faults.items():
        facts.set(row, fault, DECODED)
    return facts


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Wait until no other process stores a table at a place; do not wait on a file system without
    locks. Raises OSError if no file can be written there."""
    lock_file = place.with_name(f".{place.name}.lock")
    with open(lock_file, "ab", opener=open_no_link) as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _identities(places: Sequence[Path]) -> list[tuple[int, int] | None]:
    """Return values of the tables at the places, which differ after another table is stored."""
    found: list[tuple[int, int] | None] = []
    for place in places:
        try:
            facts = place.stat()
            found.append((facts.st_ino, facts.st_mtime_ns))
        except OSError:
            found.append(None)
    return found


def _stamps(listing: Listing, faults: Mapping[int, str]) -> Stamps:
    """Return the listing's stamps. All are unsettled if a file could not be read, as it may be
    readable next time, or if the file system's times do not show all changes."""
    unread = any(fault.startswith(UNREAD) for fault in faults.values())
    if not unread and have_true_times([stamp.ctime for stamp in listing.stamps.values()]):
        return listing.stamps
    return _unsettled(listing.stamps)


def _unsettled(stamps: Stamps) -> Stamps:
    return {path: stamp._replace(mtime=UNSETTLED) for path, stamp in stamps.items()}


def _known(table: pa.Table, places: Sequence[Path]) -> Facts:
    """Return the stored facts of the images whose byte count and time of modification are those in
    the stored table; the facts are sure if the time of change is the same, too."""
    kept = stored_table(places)
    keys = [name for name in _KEYS if name in table.column_names]
    if kept is None or any(name not in kept.column_names for name in keys):
        return Facts(len(table))
    was, alike = _align(table["name"].combine_chunks(), kept)
    for name in keys[1:]:
        alike = pc.and_(alike, pc.fill_null(pc.equal(table[name], was[name]), False))
    is_alike = np.asarray(alike.to_numpy(zero_copy_only=False))
    return Facts.of_table(was, is_alike, is_alike & _same_ctimes(table, was))


def _align(names: pa.BinaryArray, kept: pa.Table) -> tuple[pa.Table, pa.Array]:
    """Return the stored row of each image, without its name, and bool (N,): whether there is one;
    where there is none, the row has nulls."""
    known = kept["name"].combine_chunks()
    kept = kept.drop_columns(["name"])
    if names.equals(known):
        return kept, pa.array(np.ones(len(names), bool))
    row = pc.index_in(names, value_set=known)
    return kept.take(row), pc.is_valid(row)


def _same_ctimes(table: pa.Table, was: pa.Table) -> np.ndarray:
    """Return bool (N,): whether an image's time of change is the stored one; False for all if this
    file system has no true times, or the table of an earlier version has no such column."""
    ctimes = table["ctime_ns"].to_numpy()
    if "ctime_ns" not in was.column_names or not have_true_times(ctimes):
        return np.zeros(len(table), bool)
    return np.asarray(ctimes == pc.fill_null(was["ctime_ns"], _NEVER).to_numpy())


def _files(listing: Listing, root: Path, rows: np.ndarray) -> list[ByteRange]:
    names = [os.fsdecode(name) for name in listing.names.take(pa.array(rows)).to_pylist()]
    if listing.shard is None or listing.offset is None:
        return [(os.path.join(root, name), -1, 0) for name in names]
    shards = [os.path.join(root, listing.shards[shard]) for shard in listing.shard[rows].tolist()]
    offsets = listing.offset[rows].tolist()
    return list(zip(shards, offsets, listing.num_bytes[rows].tolist(), strict=True))
