"""The listing of WebDataset shards: tar files in which the members of a sample have one key.

One pass over the headers finds the place of each image; nothing is unpacked, and images are read
from the tar file.
"""

import dataclasses
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from fastdeit.data.formats.check import UNREAD, in_parallel
from fastdeit.data.formats.file_names import EXTENSIONS
from fastdeit.data.formats.listing import SHOWN, DataError, Listing, stamp
from fastdeit.data.formats.shards.members import BoundedMember, iterate_members
from fastdeit.data.formats.shards.samples import Samples, Scan
from fastdeit.data.formats.shards.scanned import ScannedFiles
from fastdeit.display.progress import track
from fastdeit.display.text import printable

_MAX_TAIL = 2**20  # zeros that may follow a tar's end
_PROCESSES_FROM = 64  # shards; below it, starting processes costs more than the reading


def list_shards(
    root: Path, shards: Sequence[Path], classes: Sequence[str] | None, workers: int
) -> Listing:
    """List the images of the shards, in the order of shards and members; labels from `.cls` or
    `.json`.

    Raises DataError for labels that are not in `classes`, and for shards without an image.
    """
    stamps = stamp(root, shards)
    files = tuple(os.path.relpath(shard, root) for shard in shards)
    scanned = _scan_all(root, files, workers)
    if not any(scanned.counts):
        extensions = ", ".join(EXTENSIONS)
        held = _list_others(scanned.others)
        shown = ", ".join(map(printable, files[:SHOWN]))
        raise DataError(f"{root}: no image in {shown}: a member must end in {extensions} ({held})")
    listing = scanned.to_listing(root, files, stamps, classes)
    return dataclasses.replace(listing, notes=_note_lone_labels(scanned))


def _scan_all(root: Path, files: Sequence[str], workers: int) -> ScannedFiles:
    """Return the samples of all shards; files: relative to root."""
    shards = [os.path.join(root, file) for file in files]
    many = len(shards) >= _PROCESSES_FROM
    scans = in_parallel(scan_shard, shards, workers, processes=many)
    scanned = ScannedFiles()
    for file, scan in zip(files, track(scans, len(files), "reading shards"), strict=True):
        scanned.add(scan, f"{file}/")
    return scanned


def _list_others(others: Counter[str]) -> str:
    """Return a text with the number of members of each extension that are neither images nor
    labels."""
    counts = others.most_common(SHOWN)
    listed = ", ".join(f"{printable(extension)} ({count})" for extension, count in counts)
    return f"other members: {listed or 'none'}"


def _note_lone_labels(scanned: ScannedFiles) -> tuple[str, ...]:
    labels = scanned.lone_labels
    if not labels:
        return ()
    first = printable(labels[0])
    return (
        f"labels without an image: {len(labels)}, such as {first} ({_list_others(scanned.others)})",
    )


def scan_shard(shard: str) -> Scan:
    """Return the samples of a tar file: read headers and labels, and skip images. A file that is
    not a shard has a fault."""
    scan = Scan()
    try:
        with (
            open(shard, "rb") as raw,
            tarfile.open(fileobj=raw, mode="r:", tarinfo=BoundedMember) as tar,
        ):
            samples = Samples(os.path.getsize(shard))
            for member in iterate_members(tar):
                samples.take(member, tar)
            samples.close(scan, _end_fault(raw, tar.offset))
    except tarfile.TarError as error:
        scan.add("", fault=f"is not a plain tar file ({error})")
    except OSError as error:
        scan.add("", fault=f"{UNREAD}: {error.strerror or error}")
    return scan


def _end_fault(raw: BinaryIO, end: int) -> str:
    """Return the fault of the bytes after the last member; "" for the zeros that end a tar file."""
    total = raw.seek(0, os.SEEK_END)
    if end > total:
        return "is cut: its last member is longer than the file"
    raw.seek(end)
    tail = raw.read(_MAX_TAIL)
    if len(tail) < tarfile.BLOCKSIZE:
        return "is cut, or was not closed: it has no end marker"
    if any(tail[: tarfile.BLOCKSIZE]):
        return f"is damaged or cut at byte {end}: what follows is no member"
    if any(tail) or total > end + len(tail):
        return "continues after its end marker (several tars in one file?); the rest is not read"
    return ""
