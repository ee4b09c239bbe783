"""`fastdeit index PATH`: check the images of a data set, store the index for training, and describe
it.

fastdeit index PATH [--check auto|headers|decode] [--part I/N] [--train-split train] [--val-split
val] [--bad-images skip|error] [--num-workers N]

An image that was checked is not checked again unless it has changed. The same command continues
after an interrupt.

Exit codes: 0; 2: a mistake in the command line, a data set that cannot be used, or bad images with
--bad-images error; 130: interrupted.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro
from rich import filesize
from rich.table import Table

from fastdeit.commands.errors import one_line_errors
from fastdeit.config.options import parse_options
from fastdeit.config.parse import require
from fastdeit.data.checks.facts import header_only
from fastdeit.data.checks.work import CheckKind, ImageCheck
from fastdeit.data.formats.detect import find_split
from fastdeit.data.formats.listing import SHOWN, DataError
from fastdeit.data.indexing import split_table
from fastdeit.data.remote.stage import fetch_folder
from fastdeit.data.table import (
    excluded_images,
    good_images,
    note_counts,
    note_split,
    refuse_empty_classes,
    table_facts,
    table_places,
)
from fastdeit.display.terminal import Terminal
from fastdeit.storage.atomic import atomic_write_text

_INTERRUPTED = 130


@dataclass(frozen=True)
class IndexOptions:
    """The flags of `fastdeit index`."""

    path: tyro.conf.Positional[str]
    """The folder or URL of the data set, as --data-path of train (formats: docs/data.md)."""
    train_split: str = "train"
    """Training split: a name, a list, or a pattern of shards."""
    val_split: str = "val"
    """Validation split, in the same forms as --train-split."""
    check: CheckKind = "auto"
    """decode: decode each image; headers: check the first bytes of each, in a twentieth of the
    time; auto: decode, but headers for more than 100,000 images or 8 GiB of them."""
    part: str = "1/1"
    """Part of each split that --check decode decodes, I/N: the I-th of N."""
    bad_images: Literal["skip", "error"] = "skip"
    """skip: list damaged images; error: exit with code 2, too, if there are any."""
    num_workers: int = 0
    """Processes that check images; 0: one for each core."""


def index_command(argv: Sequence[str]) -> int:
    """Run `fastdeit index`; return its exit code."""
    terminal = Terminal()
    with one_line_errors():
        options = parse_options(argv, IndexOptions, "fastdeit index", __doc__ or "")
        require(options.num_workers >= 0, "num_workers", options.num_workers, "0 or more")
        wanted = ImageCheck(options.check, parse_part(options.part, options.check))
        folder = fetch_folder(options.path, (options.train_split, options.val_split))
        root = Path(os.path.abspath(folder))
        try:
            bad = _index_splits(terminal, root, options, wanted)
        except KeyboardInterrupt:
            line = f"{root}: interrupted; the same command continues"
            Terminal(stderr=True).say(line)
            return _INTERRUPTED
        if bad and options.bad_images == "error":
            hint = "--bad-images skip excludes them"
            raise DataError(f"{root}: {bad} bad image(s), named above; {hint}")
    return 0


def parse_part(text: str, check: CheckKind) -> tuple[int, int]:
    """Return the two numbers of --part. Raises SettingError, also for a part of images that are not
    decoded."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    number, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    require(1 <= number <= parts, "part", text, "I/N, from 1/N to N/N")
    require(parts == 1 or check == "decode", "check", check, f"decode with --part {text}")
    return number, parts


def _index_splits(terminal: Terminal, root: Path, options: IndexOptions, wanted: ImageCheck) -> int:
    """Index both splits and print their facts; return the number of bad images."""
    workers = options.num_workers or None
    classes = None
    bad = 0
    counts = []
    for split in (options.train_split, options.val_split):
        found = find_split(root, split)
        table = split_table(
            root, split, found, classes=classes, workers=workers, again=True, wanted=wanted
        )
        bad += _print_split(terminal, root, split, table)
        good = good_images(table, root, split)
        counts.append(len(good))
        for note in note_split(good, is_train=classes is None):
            terminal.say(f"  note: {note}")
        if classes is None:
            refuse_empty_classes(table, root, split)
        classes = table_facts(table)["classes"]
    for note in note_counts(*counts):
        terminal.say(f"  note: {note}")
    return bad


def _print_split(terminal: Terminal, root: Path, split: str, table: pa.Table) -> int:
    """Print a split's facts and its damaged images; return the number of the latter."""
    shown = Table("split", split, title=None)
    for name, text in split_report(table).items():
        shown.add_row(name, text)
    terminal.show(shown)
    excluded = excluded_images(table)
    written = _write_excluded(table_places(root, split, None), excluded)
    for line in excluded[:SHOWN]:
        terminal.say(f"  excluded: {line}")
    if len(excluded) > SHOWN:
        terminal.say(f"  and {len(excluded) - SHOWN} more")
    if excluded and written:
        terminal.say(f"  all of them: {written}")
    return len(excluded)


def _write_excluded(places: Sequence[Path], excluded: Sequence[str]) -> Path | None:
    """Write the list of excluded images beside the table, at the first place that can be written;
    return its path, or None. Remove an old list if no image is excluded."""
    for place in places:
        file = place.with_name(f"{place.stem}-left-out.txt")
        try:
            if excluded:
                text = "".join(f"{line}\n" for line in excluded)
                atomic_write_text(file, text)
                return file
            file.unlink(missing_ok=True)
        except OSError:
            continue
    return None


def split_report(table: pa.Table) -> dict[str, str]:
    """Return the facts of a split's table (`split_table`, all columns), as text by heading."""
    good = table.filter(pc.is_null(table["fault"]))
    report = {"images": f"{len(good):,}", "excluded": f"{len(table) - len(good):,}"}
    if not len(good):
        return report
    modes = {mode: count for mode, count in _counts(good["mode"]).items() if mode != "RGB"}
    turned = {turn: count for turn, count in _counts(good["orientation"]).items() if turn != 1}
    return report | {
        "classes": _classes(good["label"].to_numpy(), len(table_facts(table)["classes"])),
        "height x width": _sizes(good),
        "bytes": _bytes(good["num_bytes"].to_numpy()),
        "decoded": f"{int((~header_only(good)).sum()):,}",
        "formats": _listed(_counts(good["format"])),
        "not RGB": _listed(modes),
        "EXIF-rotated (not applied)": _listed(turned, "orientation "),
    }


def _counts(column: pa.ChunkedArray) -> dict[Any, int]:
    found = pc.value_counts(column).to_pylist()
    return {
        entry["values"]: entry["counts"]
        for entry in sorted(found, key=lambda entry: -entry["counts"])
    }


def _listed(counts: Mapping[Any, int], prefix: str = "") -> str:
    return ", ".join(f"{prefix}{name}: {count:,}" for name, count in counts.items()) or "none"


def _classes(labels: np.ndarray, classes: int) -> str:
    counts = np.bincount(labels, minlength=classes)
    return f"{classes:,}, of {counts.min():,} to {counts.max():,} images"


def _sizes(good: pa.Table) -> str:
    heights, widths = good["height"].to_numpy(), good["width"].to_numpy()
    order = np.argsort(heights.astype(np.int64) * widths, kind="stable")
    places = {"smallest": order[0], "median": order[len(order) // 2], "largest": order[-1]}
    return ", ".join(f"{name} {heights[row]} x {widths[row]}" for name, row in places.items())


def _bytes(num_bytes: np.ndarray) -> str:
    total = filesize.decimal(int(num_bytes.sum()))
    return f"{total}, {filesize.decimal(int(num_bytes.mean()))} per image"
