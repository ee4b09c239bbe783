"""`fastdeit pack DATA OUTPUT`: write a data set again, with smaller images, in tar shards
(WebDataset) or class folders; training then decodes in less time.

fastdeit pack DATA OUTPUT [--resize 288] [--quality 90] [--copy] [--format shards|folder]
fastdeit pack OUTPUT --verify

Each image is shrunk once and stored as a JPEG, so its pixels differ from the source's; the command
reports the difference. The same command continues after an interrupt.

Exit codes: 0; 1: --verify found damage; 2: a mistake in the command line, a data set or a folder
that cannot be used; 130: interrupted.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.filesize import decimal

from fastdeit.commands.errors import one_line_errors
from fastdeit.config.options import parse_options
from fastdeit.config.parse import Section, require, require_value
from fastdeit.data.formats.listing import SHOWN
from fastdeit.data.indexing import build_index
from fastdeit.data.packing.encode import Encoding, Subsampling
from fastdeit.data.packing.job import Packing, ShardSize
from fastdeit.data.packing.manifest import MANIFEST, read_manifest
from fastdeit.data.packing.pack import Summary, pack
from fastdeit.data.packing.parts import Layout, PartRecord
from fastdeit.data.packing.trial import AREAS, SIZE, Trial
from fastdeit.data.packing.verify import find_damage, find_strangers
from fastdeit.display.terminal import Terminal
from fastdeit.display.text import printable, quote_words
from fastdeit.storage.urls import is_url

_INTERRUPTED = 130
_TEACHER = ("--model", "regnety_040", "--distillation-type", "none")
"""The flags of a first run on a new data set, which trains the teacher of later students."""
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


@dataclass(frozen=True)
class ImageFlags(Section):
    """The images to write."""

    resize: int = 288
    """Pixels of the short side; smaller images are not enlarged. 288 is enough for 224 x 224 in
    training and evaluation, 440 for 384 x 384."""
    quality: int = 90
    """Quality of the JPEG files, 1 to 100."""
    subsampling: Subsampling = "4:2:0"
    """4:2:0 halves the resolution of colours; 4:4:4 stores the full one, in about 1.25 times the
    bytes and 1.4 times the time of decoding."""
    copy: bool = False
    """Copy the bytes of every image, without a change."""
    bad_images: Literal["skip", "error"] = "skip"
    """skip: exclude damaged images, and list them; error: exit."""

    def check(self) -> None:
        self._require_each(["resize"], 1)
        self._require("quality", 1 <= self.quality <= 100, "1 to 100")
        is_default = self.encoding == Encoding(copy=self.copy)
        allowed = "given without --resize, --quality and --subsampling: no image is encoded"
        self._require("copy", not self.copy or is_default, allowed)

    @property
    def encoding(self) -> Encoding:
        return Encoding(self.resize, self.quality, self.subsampling, self.copy)


@dataclass(frozen=True)
class OutputFlags(Section):
    """The files to write."""

    format: Layout = "shards"
    """shards: tar files as WebDataset's, for any source; folder: a folder for each class."""
    shard_size: str = "5000"
    """Size of a shard: a number of images, or of bytes, such as 256MB (about)."""
    train_split: str = "train"
    """Training split in DATA: a name, a list, or a pattern of shards; its name in OUTPUT is
    train."""
    val_split: str = "val"
    """Validation split in DATA, in the same forms; its name in OUTPUT is val."""
    num_workers: int = 0
    """Processes that read and write; 0: one for each core."""
    verify: bool = False
    """Compare a packed data set with its checksums, and write nothing."""

    def check(self) -> None:
        self._require_each(["num_workers"], 0)
        parse_shard_size(self.shard_size)

    @property
    def workers(self) -> int:
        return self.num_workers or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class PackOptions:
    """The flags of `fastdeit pack`."""

    data: tyro.conf.Positional[str]
    """The folder or URL of a data set, in any format of docs/data.md."""
    output: tyro.conf.Positional[str] = ""
    """A new folder, or that of an interrupted packing."""
    images: ImageFlags = field(default_factory=ImageFlags)
    files: OutputFlags = field(default_factory=OutputFlags)


def parse_shard_size(text: str) -> ShardSize:
    """Return the size that --shard-size names. Raises SettingError."""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(?:([kMG]i?)B)?", text)
    allowed = "a number of images, or of bytes, such as 5000 or 256MB"
    number = float(match[1]) if match else 0.0
    unit = (match[2] if match else "") or ""
    require(number >= 1 and (bool(unit) or number.is_integer()), "shard_size", text, allowed)
    if unit:
        return ShardSize(bytes=int(number * _UNITS[unit]))
    return ShardSize(images=int(number))


def pack_command(argv: Sequence[str]) -> int:
    """Run `fastdeit pack`; return its exit code."""
    terminal = Terminal()
    with one_line_errors():
        options = parse_options(argv, PackOptions, "fastdeit pack", __doc__ or "")
        if options.files.verify:
            return _verify(terminal, options)
        try:
            job = _make_job(options)
            summary = pack(job)
        except KeyboardInterrupt:
            again = "interrupted; the same command continues"
            Terminal(stderr=True).say(f"{options.output}: {again}")
            return _INTERRUPTED
    _report(terminal, job, summary)
    return 0


def _verify(terminal: Terminal, options: PackOptions) -> int:
    require_value(not options.output, "OUTPUT", options.output, "absent with --verify")
    folder = Path(options.data)
    manifest = read_manifest(folder)
    damaged = find_damage(folder, manifest.files, options.files.workers)
    faults = [f"{name}: {fault}" for name, fault in damaged.items()]
    faults += [f"{name}: is no part of it" for name in find_strangers(folder, manifest.files)]
    for fault in faults:
        terminal.say(f"{folder}: {fault}")
    if not faults:
        terminal.say(f"{folder}: {_count(manifest.files)}: all checksums are right")
    return 1 if faults else 0


def _make_job(options: PackOptions) -> Packing:
    """Index the source, and return the task. Raises ValueError for a source or a folder that cannot
    be used."""
    if not options.output:
        raise ValueError("OUTPUT must be given (--help explains it)")
    flags = options.files
    is_folder = not is_url(options.output)
    require_value(is_folder, "OUTPUT", options.output, "a folder of this machine")
    source = Path(os.path.abspath(_find_source(options)))
    output = Path(os.path.abspath(options.output))
    is_outside = source.resolve() not in (output.resolve(), *output.resolve().parents)
    require_value(is_outside, "OUTPUT", options.output, f"outside of {source}")
    bad_images = options.images.bad_images
    train = build_index(source, flags.train_split, bad_images=bad_images, workers=flags.workers)
    val = build_index(
        source,
        flags.val_split,
        classes=train.classes,
        bad_images=bad_images,
        workers=flags.workers,
    )
    return Packing(
        source={"train": train, "val": val},
        output=output,
        encoding=options.images.encoding,
        layout=flags.format,
        shard_size=parse_shard_size(flags.shard_size),
        bad_images=bad_images,
        workers=flags.workers,
    )


def _find_source(options: PackOptions) -> Path:
    if not is_url(options.data):
        return Path(options.data)
    from fastdeit.data.remote.stage import fetch_folder  # torch imports slowly

    return fetch_folder(options.data, (options.files.train_split, options.files.val_split))


def _report(terminal: Terminal, job: Packing, summary: Summary) -> None:
    files = summary.manifest.files
    trial = summary.trial
    before = sum(int(index.num_bytes.sum()) for index in job.source.values())
    after = sum(record.bytes for record in files)
    ratio = f"{after / before:.2f} times the source's {decimal(before)}"
    terminal.say(f"{job.output}: {_count(files)}, {decimal(after)}, {ratio}")
    if summary.written_before:
        terminal.say(f"  {summary.written_before} parts were there before, with right checksums")
    terminal.say(f"  pixels {_describe_pixels(trial)}")
    if trial.psnr_db:
        terminal.say(f"  decoding takes {trial.decode_ratio:.2f} times as long as the source's")
    _report_excluded(terminal, job, files)
    if job.layout == "folder" and np.any(np.diff(job.source["train"].labels) < 0):
        other = "not in the source's order, so the plan is another"
        terminal.say(f"  note: a folder is listed class by class, {other}; shards keep the order")
    train = ("fastdeit", "train", "--data-path", job.output, *_TEACHER)
    terminal.say(f"  next: {quote_words(*train)}")


def _count(files: Sequence[PartRecord]) -> str:
    """Return the numbers of images and shards of each split, as text."""
    counts = []
    for split in dict.fromkeys(record.split for record in files if record.split):
        parts = [record for record in files if record.split == split]
        images = f"{sum(record.images for record in parts):,} images of {split}"
        shards = f"{len(parts)} shard{'s' * (len(parts) > 1)}"
        counts.append(f"{images} in {'class folders' if parts[0].has_files else shards}")
    return ", ".join(counts)


def _describe_pixels(trial: Trial) -> str:
    if not trial.psnr_db:
        return "are equal to the source's"
    first, *others = trial.psnr_db
    shares = [f"{value} dB of {area:.0%}" for area, value in zip(AREAS[1:], others, strict=True)]
    values = f"{first} dB of whole images, {' and '.join(shares)} of their area"
    return f"differ from the source's; PSNR at {SIZE} pixels: {values} ({trial.images} images)"


def _report_excluded(terminal: Terminal, job: Packing, files: Sequence[PartRecord]) -> None:
    excluded = [line for index in job.source.values() for line in index.excluded]
    excluded += [fault for record in files for _, fault in record.faults]
    for line in excluded[:SHOWN]:
        terminal.say(f"  excluded: {printable(line)}")
    if len(excluded) > SHOWN:
        terminal.say(f"  and {len(excluded) - SHOWN} more; all are in {MANIFEST}")
