"""Checks of a packed data set against the checksums of its manifest."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from fastdeit.data.formats.check import UNREAD, in_parallel
from fastdeit.data.packing.files import ClassFiles, hash_files
from fastdeit.data.packing.parts import SHARD_SUFFIX, PartRecord
from fastdeit.display.progress import track
from fastdeit.storage.file_hash import hash_file


def find_damage(folder: Path, records: Sequence[PartRecord], workers: int) -> dict[str, str]:
    """Return the faults of recorded parts and files, by name; read all of them."""
    splits = _list_splits(folder, records)
    faults = in_parallel(
        lambda record: _check(folder, record, splits), records, workers, processes=False
    )
    checked = zip(records, track(faults, len(records), "comparing checksums"), strict=True)
    return {record.name: fault for record, fault in checked if fault}


def find_strangers(folder: Path, records: Sequence[PartRecord]) -> list[str]:
    """Return the shards, and the files in class folders, that are in no record: they would be read
    as images of the data set."""
    known = {record.name for record in records}
    tars = [name for name in os.listdir(folder) if name.lower().endswith(SHARD_SUFFIX)]
    found = [name for name in tars if name not in known]
    for split, files in _list_splits(folder, records).items():
        recorded = [record.row_range for record in records if record.split == split]
        found += [name for name, _ in files.others(recorded)]
    return sorted(found)


def _list_splits(folder: Path, records: Sequence[PartRecord]) -> dict[str, ClassFiles]:
    """Return the files of each split whose images are files."""
    splits = {record.split for record in records if record.has_files}
    return {split: ClassFiles(folder, split) for split in sorted(splits)}


def _check(folder: Path, record: PartRecord, splits: Mapping[str, ClassFiles]) -> str:
    """Return the fault of a part or a file, or ""."""
    try:
        if record.has_files:
            names = splits[record.split].named(record.row_range)
            if len(names) != record.images:
                return f"has {len(names)} of {record.images} images"
            size, digest = hash_files(folder, names)
        else:
            size, digest = _hash_one(folder, record)
    except OSError as error:
        return f"{UNREAD}: {error.strerror or error}"
    if size != record.bytes:
        return f"has {size:,} bytes, not {record.bytes:,}"
    return "" if digest == record.sha256 else "has another checksum: its bytes have changed"


def _hash_one(folder: Path, record: PartRecord) -> tuple[int, str]:
    """Return the size and the SHA-256 of a file; "" for the latter if the size is not the recorded
    one. Raises OSError for a file that cannot be read or lies outside the folder."""
    path = PurePath(record.name)
    file = folder / path
    if path.is_absolute() or ".." in path.parts:
        raise OSError("its name leads out of the folder")
    size = file.stat().st_size
    if not file.is_file():
        raise OSError("it is no regular file")
    return size, hash_file(file) if size == record.bytes else ""
