"""The folder of a packed data set: its manifest, the records of an unfinished one, its lock.

A part is complete once it is recorded, and a recorded part is used again only if its checksum is
right. So a packing that was interrupted at any point continues with the same command, and ends with
the same bytes as one without an interrupt.
"""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastdeit.data.formats.file_names import is_litter
from fastdeit.data.formats.listing import DataError
from fastdeit.data.packing.files import ClassFiles
from fastdeit.data.packing.parts import PartRecord
from fastdeit.data.packing.verify import find_damage
from fastdeit.display.text import printable
from fastdeit.storage.atomic import atomic_write_text, read_bounded
from fastdeit.storage.jsonl import (
    parse_record,
    read_json_lines,
    read_records,
    replace_lines,
    to_strict_json,
)

MANIFEST = "pack.json"
"""The name of the manifest, which is written last."""
UNFINISHED = "pack-unfinished.jsonl"
"""The name of the records of a packing that is not complete."""
_MAX_BYTES = 1 << 28  # the record of a part has about 200
Settings = Mapping[str, Any]
"""The settings that decide the bytes of the parts, by name."""


@dataclass(frozen=True)
class Manifest:
    """The record of a packing; the content of pack.json."""

    settings: dict[str, Any]
    source: dict[str, Any]
    """The images, bytes and excluded images of each split of the source."""
    difference: dict[str, Any]
    """The difference of the pixels to those of the source; empty if there is none."""
    files: list[PartRecord]
    """The records of all written parts and files, except this file."""
    version: int = 1


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create a folder if necessary, and lock it. Raises DataError if another process has the lock,
    or the folder cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{folder}: cannot be created: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:  # other errors: a file system without locks
            os.close(descriptor)
            raise DataError(f"{folder}: another process writes to it") from None
    try:
        yield
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            folder.rmdir()  # if nothing was written


def find_written(folder: Path, settings: Settings, workers: int) -> list[PartRecord]:
    """Return the records of the parts that are complete and undamaged.

    Raises DataError for a folder that holds anything else, or was packed with other settings.
    """
    begun = _read_begun(folder)
    if begun is None:
        _refuse_others(folder)
        return []
    was, records = begun
    _refuse_differences(folder, was, settings)
    parts = [record for record in records if record.split]
    damaged = find_damage(folder, parts, workers)
    return [record for record in parts if record.name not in damaged]


def begin(folder: Path, settings: Settings, written: Sequence[PartRecord]) -> None:
    """Mark a folder as unfinished, and remove the files that interrupted processes left of parts
    that are not in `written`."""
    replace_lines(folder / UNFINISHED, [{"settings": settings}, *map(asdict, written)])
    (folder / MANIFEST).unlink(missing_ok=True)
    _remove_leftovers(folder, written)


def finish(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which ends the packing."""
    text = json.dumps(to_strict_json(asdict(manifest)), indent=1) + "\n"
    atomic_write_text(folder / MANIFEST, text)
    (folder / UNFINISHED).unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest:
    """Read pack.json. Raises DataError, which names it, if it is not there or damaged."""
    file = folder / MANIFEST
    if not file.is_file():
        unfinished = (folder / UNFINISHED).is_file()
        reason = "is not packed completely" if unfinished else f"holds no {MANIFEST} of a packing"
        raise DataError(f"{folder}: {reason}")
    try:
        return parse_record(read_bounded(file, _MAX_BYTES), Manifest)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{file}: is damaged: {printable(reason)}") from None


def _read_begun(folder: Path) -> tuple[Settings, list[PartRecord]] | None:
    """Return the settings and the records of a packing that was begun or finished; None if the
    folder has none. Raises DataError if they are damaged."""
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        return manifest.settings, manifest.files
    lines = read_json_lines(folder / UNFINISHED)
    if not lines:
        return None
    settings = lines[0].get("settings")
    if not isinstance(settings, dict):
        raise DataError(f"{folder / UNFINISHED}: is damaged: its first line has no settings")
    records = {record.name: record for record in read_records(folder / UNFINISHED, PartRecord)}
    return settings, list(records.values())


def _refuse_others(folder: Path) -> None:
    held = [name for name in sorted(os.listdir(folder)) if not is_litter(name)]
    others = [name for name in held if not _is_partial(name) and name != UNFINISHED]
    if others:
        shown = printable(others[0])
        raise DataError(f"{folder}: must be a new or an empty folder (it holds {shown})")


def _refuse_differences(folder: Path, was: Settings, now: Settings) -> None:
    now = json.loads(json.dumps(to_strict_json(now)))  # as they are read
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if names:
        shown = "; ".join(
            f"{name} {_shorten(was.get(name))}, now {_shorten(now.get(name))}" for name in names
        )
        raise DataError(f"{folder}: was packed with other settings: {shown}; name another folder")


def _shorten(value: object) -> str:
    return printable(value)[:16]


def _is_partial(name: str) -> bool:
    """Return True for a file of `atomic_open` that a killed process has left."""
    return name.startswith(".") and name.endswith(".tmp")


def _remove_leftovers(folder: Path, records: Sequence[PartRecord]) -> None:
    """Remove the files that interrupted processes left of parts that are not recorded."""
    for name in os.listdir(folder):
        if _is_partial(name):
            (folder / name).unlink()
        elif (folder / name).is_dir():
            recorded = [record.row_range for record in records if record.split == name]
            for file, has_row in ClassFiles(folder, name).others(recorded):
                if has_row:
                    (folder / file).unlink()
