"""WebDataset shards: tar files in which the members of a sample have one key.

One pass over the headers finds the place of each image; nothing is unpacked, an image is read in
place.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from fastdeit.data.formats.check import EXTENSIONS, UNREAD, in_parallel
from fastdeit.data.formats.listing import DataError, Listing, number_labels, stamp
from fastdeit.display.progress import track

MAX_LABEL_BYTES = 2**20
MAX_EXPANSION = 100_000

_KEY = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")
# keys of a .json member with a class
_NUMBERS = ("label", "cls", "class_id")
_NAMES = ("class_name", "class", "cls_name")
_EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_MAX_HEADER = 2**16  # bytes of a member's extended header: names are up to 4,096 long
_MAX_TAIL = 2**20  # zeros that may follow a tar's end
_PROCESSES_FROM = 64  # shards; below it, starting processes costs more than the reading


def expand_pattern(root: Path, pattern: str) -> tuple[Path, ...]:
    """Return the files of a pattern below root, sorted: `{000..127}` and `{a,b}` are replaced, then
    `*`, `?` and `[...]` matched.

    Raises DataError for a file that braces name and that does not exist, and when nothing matches.
    """
    files: list[Path] = []
    for name in _braces(pattern):
        if re.search(r"[*?\[]", name):
            files += (path for path in root.glob(name) if path.is_file())
        elif not (root / name).is_file():
            raise DataError(f"{root / name}: no such file; the pattern {pattern!r} names it")
        else:
            files.append(root / name)
    if not files:
        raise DataError(
            f"{root}: nothing matches {pattern!r}; it must be a name or a pattern of tar files "
            "below this folder"
        )
    return tuple(sorted(set(files)))


def _braces(pattern: str) -> list[str]:
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not found:
        return [pattern]
    first, last, names = found.groups()
    if names is None and not 0 <= int(last) - int(first) < MAX_EXPANSION:
        raise DataError(
            f"{pattern!r}: {first}..{last} must be a rising range of at most {MAX_EXPANSION} "
            "numbers"
        )
    if names:
        inner = names.split(",")
    else:
        inner = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    expanded: list[str] = []
    for text in inner:
        expanded += _braces(before + text + after)
    return expanded


def refuse_compressed(shards: Sequence[Path]) -> None:
    """Raise DataError for a shard that is no file or not named .tar."""
    for shard in shards:
        if not shard.is_file():
            raise DataError(f"{shard}: is no regular file; a shard must be a plain .tar file")
        if shard.suffix != ".tar":
            raise DataError(
                f"{shard}: a compressed shard cannot be read in any order; unpack it to a plain "
                ".tar file first"
            )


@dataclass
class Scan:
    """The samples that one pass over a shard found."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    labels: list[int | str | None] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)

    def add(
        self,
        name: str,
        offset: int = 0,
        length: int = 0,
        label: int | str | None = None,
        fault: str = "",
    ) -> None:
        if fault:
            self.faults[len(self.names)] = fault
        self.names.append(name)
        self.offsets.append(offset)
        self.lengths.append(length)
        self.labels.append(label)

    def extend(self, other: "Scan", prefix: str) -> None:
        """Add the samples of another shard, their names after `prefix`."""
        first = len(self.names)
        self.faults |= {first + row: fault for row, fault in other.faults.items()}
        self.names += [prefix + name for name in other.names]
        self.offsets += other.offsets
        self.lengths += other.lengths
        self.labels += other.labels


def list_shards(
    root: Path, shards: Sequence[Path], classes: Sequence[str] | None, workers: int
) -> Listing:
    """List the images of the shards, in the order of shards and members; labels from `.cls` or
    `.json`.

    Raises DataError for labels that are not in `classes`.
    """
    stamps = stamp(root, shards)
    many = len(shards) >= _PROCESSES_FROM
    results = in_parallel(scan_shard, list(map(os.fspath, shards)), workers, processes=many)
    scans = list(track(results, len(shards), "reading shards"))
    files = tuple(os.path.relpath(shard, root) for shard in shards)
    all_samples = Scan()
    counts = []
    for file, scan in zip(files, scans, strict=True):
        all_samples.extend(scan, f"{file}/")
        counts.append(len(scan.names))
    names = all_samples.names
    labels, known = number_labels(all_samples.labels, classes, str(root), names)
    mtimes = [os.stat(shard).st_mtime_ns for shard in shards]
    return Listing(
        classes=known,
        names=pa.array([name.encode("utf-8", "surrogateescape") for name in names], pa.binary()),
        labels=labels,
        num_bytes=np.array(all_samples.lengths, np.int64),
        mtimes=np.repeat(mtimes, counts).astype(np.int64),
        stamps=stamps,
        faults=all_samples.faults,
        shards=files,
        shard=np.repeat(np.arange(len(shards), dtype=np.int32), counts),
        offset=np.array(all_samples.offsets, np.int64),
    )


def scan_shard(shard: str) -> Scan:
    """Return the samples of a tar file: headers and labels are read, images are skipped. A file
    that is no shard has a fault."""
    scan = Scan()
    try:
        with open(shard, "rb") as raw, tarfile.open(fileobj=raw, mode="r:", tarinfo=_Member) as tar:
            samples = _Samples(os.path.getsize(shard))
            for member in _members(tar):
                samples.take(member, tar)
            samples.close(scan, _end_fault(raw, tar.offset))
    except tarfile.TarError as error:
        scan.add("", fault=f"is not a plain tar file ({error})")
    except OSError as error:
        scan.add("", fault=f"{UNREAD}: {error.strerror or error}")
    return scan


class _Member(tarfile.TarInfo):
    """A member whose extended headers are short: tarfile reads them whole, whatever length a shard
    claims."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and not 0 <= self.size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes, at most {_MAX_HEADER:,}")
        # made to be overridden, says tarfile's source
        return super()._proc_member(tar)  # type: ignore[misc]


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members up to the end, or to where the file is cut."""
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, ValueError, OverflowError):
            return
        # a negative size would lead back, and so to an endless loop
        if member is None or tar.offset <= member.offset:
            return
        # tarfile keeps all, and there may be millions
        tar.members.clear()  # type: ignore[attr-defined]
        yield member


def _end_fault(raw: BinaryIO, end: int) -> str:
    """Return what is wrong behind the last member; "" for the zeros that end a tar file."""
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


class _Samples:
    """Members joined to samples by their key: the path up to the first dot of the last name."""

    def __init__(self, shard_bytes: int) -> None:
        self._size = shard_bytes
        self._images: dict[str, tarfile.TarInfo] = {}
        self._labels: dict[str, int | str] = {}
        self._faults: dict[str, str] = {}

    def take(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        fault = self._fault(member)
        found = _KEY.match(member.name)
        key, extension = (found[1], f".{found[2].lower()}") if found else ("", "")
        if fault:
            self._faults[member.name] = fault
        elif key and extension in EXTENSIONS:
            self._take_image(key, member)
        elif key and extension in (".cls", ".json"):
            try:
                label = _read_label(member, tar)
            except (ValueError, OSError, RecursionError) as error:
                self._faults[member.name] = f"is no label: {error}"
                return
            # .cls is made for this, .json may hold anything
            if label is not None and (extension == ".cls" or key not in self._labels):
                self._labels[key] = label

    def _take_image(self, key: str, member: tarfile.TarInfo) -> None:
        if key in self._images:
            first = self._images[key].name
            self._faults[member.name] = f"is the second image of its sample, the first is {first}"
        else:
            self._images[key] = member

    def _fault(self, member: tarfile.TarInfo) -> str:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            return "leads out of the archive"
        if member.isdir():
            return ""
        if not member.isreg() or member.issparse():
            return "is a link, a device or a sparse file, no regular member"
        missing = member.offset_data + member.size - self._size
        return f"is cut: the shard ends {missing} bytes before it does" if missing > 0 else ""

    def close(self, scan: Scan, end_fault: str) -> None:
        """Add everything to `scan`: the images in their order, then what is no sample."""
        for key, member in self._images.items():
            label = self._labels.get(key)
            fault = "" if label is not None else "has no label: no .cls or .json member of its key"
            scan.add(member.name, member.offset_data, member.size, label, fault)
        for name, fault in self._faults.items():
            scan.add(name, fault=fault)
        if end_fault:
            scan.add("", fault=end_fault)


def _read_label(member: tarfile.TarInfo, tar: tarfile.TarFile) -> int | str | None:
    """Return the class of a `.cls` or `.json` member, or None if a `.json` has none. Raises
    ValueError for what cannot be a class."""
    if member.size > MAX_LABEL_BYTES:
        raise ValueError(f"{member.size} bytes are more than {MAX_LABEL_BYTES}")
    opened = tar.extractfile(member)
    assert opened is not None
    text = opened.read().decode("utf-8").strip()
    if member.name.lower().endswith(".cls"):
        return int(text)
    values = json.loads(text)
    if not isinstance(values, dict):
        return None
    numbers = (values[name] for name in _NUMBERS if type(values.get(name)) is int)
    names = (values[name] for name in _NAMES if isinstance(values.get(name), str))
    return next(numbers, next(names, None))
