"""The packing of a data set: its splits are divided into parts, which are written in parallel."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from fastdeit.data.formats.check import in_parallel
from fastdeit.data.formats.listing import DataError
from fastdeit.data.index import Index
from fastdeit.data.packing.describe import describe, describe_settings
from fastdeit.data.packing.job import HEADERS, Packing
from fastdeit.data.packing.manifest import (
    UNFINISHED,
    Manifest,
    begin,
    find_written,
    finish,
    lock_folder,
)
from fastdeit.data.packing.names import list_class_folders, list_label_texts
from fastdeit.data.packing.parts import Part, PartRecord, write_part
from fastdeit.data.packing.trial import Trial, try_images
from fastdeit.display.progress import ProgressBar, TimeLeft
from fastdeit.display.terminal import Terminal
from fastdeit.storage.free_space import find_free_bytes

_PROCESSES_FROM = 2000  # images; below it, starting processes costs more than they save
_SPARE = 1.05  # times the estimated room is required: images differ from those of the trial


@dataclass(frozen=True)
class Summary:
    """The result of a packing."""

    manifest: Manifest
    trial: Trial
    """The trial of some training images."""
    written_before: int
    """The number of parts that were complete before."""


def pack(job: Packing) -> Summary:
    """Write a packed data set, or the parts of it that are missing; it is complete when this
    returns.

    Raises DataError, before anything is written, for a folder that cannot be used and a disk that
    is too small; later for images that cannot be read, and for a disk that fails: the same call
    then continues.
    """
    homes = _name_homes(job)
    trial = try_images(job.source["train"], job.encoding, job.workers)
    size = job.shard_size.count_images(trial.mean_bytes)
    settings = describe_settings(job, size)
    with lock_folder(job.output):
        written = find_written(job.output, settings, job.workers)
        if job.bad_images == "error":
            _refuse_faults(job.output, written)
        known = {record.name for record in written}
        parts = [part for part in _divide(job, size, homes) if part.name not in known]
        _require_room(job.output, parts, trial.mean_bytes)
        try:
            begin(job.output, settings, written)
            records = [*written, *_write_parts(parts, job.workers)]
            manifest = describe(job, settings, trial, records)
            finish(job.output, manifest)
        except OSError as error:
            reason = error.strerror or error
            cure = "the same command continues"
            raise DataError(f"{job.output}: cannot be written: {reason}; {cure}") from None
    return Summary(manifest, trial, len(written))


def _refuse_faults(folder: Path, written: Sequence[PartRecord]) -> None:
    """Raise DataError for a part that lacks a damaged image."""
    for record in written:
        for _, fault in record.faults:
            raise DataError(f"{folder}: {record.name} is without a damaged image: {fault}")


def _name_homes(job: Packing) -> tuple[str, ...]:
    """Return, for each class, the text of its label or the name of its folder."""
    train = job.source["train"]
    if job.layout == "folder":
        return tuple(list_class_folders(train.classes, train.labels))
    return tuple(list_label_texts(train.classes))


def _divide(job: Packing, size: int, homes: tuple[str, ...]) -> Iterator[Part]:
    """Yield the parts of all splits, `size` images each, in order."""
    for split, index in job.source.items():
        table = index.to_table()
        facts = {name: getattr(index, name) for name in ("root", "classes", "kind", "shards")}
        for number, first in enumerate(range(0, len(index), size)):
            rows = Index.from_table(table.slice(first, size), facts | {"split": split})
            yield Part(
                folder=job.output,
                split=split,
                number=number,
                first=first,
                source=rows,
                layout=job.layout,
                homes=homes,
                encoding=job.encoding,
                bad_images=job.bad_images,
                progress=job.output / UNFINISHED,
            )


def _require_room(folder: Path, parts: Sequence[Part], mean_bytes: float) -> None:
    """Raise DataError if the disk has less room than the parts need; mean_bytes: the mean size of
    an image."""
    images = sum(len(part.source) for part in parts)
    needed = int(images * (mean_bytes + HEADERS) * _SPARE)
    free = find_free_bytes(folder)
    if needed > free:
        rooms = f"about {decimal(needed)} are needed, {decimal(free)} are free"
        raise DataError(f"{folder}: the disk is too small: {rooms}")


def _write_parts(parts: Sequence[Part], workers: int) -> Iterator[PartRecord]:
    """Write parts in parallel, with a progress bar; yield their records."""
    total = sum(len(part.source) for part in parts)
    bar = ProgressBar(Terminal(stderr=True), total, "packing", transient=True)
    left = TimeLeft(total)
    bar.start()
    done = 0
    try:
        for record in in_parallel(write_part, parts, workers, processes=total >= _PROCESSES_FROM):
            done += record.rows
            waiting = left.describe(done)
            facts = f"{done:,}/{total:,} images" + (f", {waiting} left" if waiting else "")
            bar.update(done, facts, line=f"packing: {facts}" if done < total else "")
            yield record
    finally:
        bar.stop()
