"""Checks of a packed data set against the checksums of its manifest."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastdeit.data.formats.check import UNREAD, in_parallel
from fastdeit.data.packing.parts import SHARD_SUFFIX, PartRecord, hash_files, list_rows
from fastdeit.display.progress import track
from fastdeit.storage.file_hash import hash_file

_Rows = Mapping[str, Mapping[int, str]]
"""From a split to its files by row, where images are files."""


def find_damage(folder: Path, records: Sequence[PartRecord], workers: int) -> dict[str, str]:
    """Return what is wrong with the recorded parts and files, by name; each is read."""
    rows = _list_splits(folder, records)
    faults = in_parallel(
        lambda record: _check(folder, record, rows), records, workers, processes=False
    )
    checked = zip(records, track(faults, len(records), "comparing checksums"), strict=True)
    return {record.name: fault for record, fault in checked if fault}


def find_strangers(folder: Path, records: Sequence[PartRecord]) -> list[str]:
    """Return the shards, and the files in class folders, that no record has: they would be read as
    images of the data set."""
    known = {record.name for record in records}
    tars = [name for name in os.listdir(folder) if name.lower().endswith(SHARD_SUFFIX)]
    found = [name for name in tars if name not in known]
    for split, files in _list_splits(folder, records).items():
        of_split = [record for record in records if record.split == split]
        recorded = {row for record in of_split for row in record.row_range}
        found += [file for row, file in files.items() if row not in recorded]
    return sorted(found)


def _list_splits(folder: Path, records: Sequence[PartRecord]) -> _Rows:
    splits = {record.split for record in records if record.has_files}
    return {split: list_rows(folder, split) for split in sorted(splits)}


def _check(folder: Path, record: PartRecord, rows: _Rows) -> str:
    """Return what is wrong with a part or a file, or ""."""
    try:
        if record.has_files:
            files = rows[record.split]
            names = [files[row] for row in record.row_range if row in files]
            if len(names) != record.images:
                return f"has {len(names)} of {record.images} images"
            size, digest = hash_files(folder, names)
        else:
            size = (folder / record.name).stat().st_size
            digest = hash_file(folder / record.name) if size == record.bytes else ""
    except OSError as error:
        return f"{UNREAD}: {error.strerror or error}"
    if size != record.bytes:
        return f"has {size:,} bytes, not {record.bytes:,}"
    return "" if digest == record.sha256 else "has another checksum: its bytes have changed"
