"""`fastdeit index PATH`: check every image of a data set, store the tables that training starts
from, and describe them.

fastdeit index PATH [--train-split train] [--val-split val] [--bad-images skip|error] [--num-workers
N]
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich import filesize
from rich.table import Table

from fastdeit.commands.errors import one_line_errors
from fastdeit.data.formats.detect import find_split
from fastdeit.data.formats.listing import SHOWN, DataError
from fastdeit.data.index import split_table
from fastdeit.data.remote.stage import fetch_folder
from fastdeit.data.table import (
    excluded_images,
    good_images,
    note_split,
    refuse_empty_classes,
    table_facts,
    table_places,
)
from fastdeit.display.terminal import Terminal


def index_command(argv: Sequence[str]) -> int:
    """Run `fastdeit index`; return 0.

    Exit with code 2 for a data set that cannot be used, and with `--bad-images error` also for bad
    images.
    """
    parsed = _parser().parse_args(list(argv))
    terminal = Terminal()
    with one_line_errors():
        folder = fetch_folder(parsed.path, (parsed.train_split, parsed.val_split))
        root = Path(os.path.abspath(folder))
        workers = parsed.num_workers or None
        classes = None
        bad = 0
        for split in (parsed.train_split, parsed.val_split):
            found = find_split(root, split)
            table = split_table(root, split, found, classes=classes, workers=workers, again=True)
            bad += _print_split(terminal, root, split, table)
            for note in note_split(good_images(table, root, split), is_train=classes is None):
                terminal.say(f"  note: {note}")
            if classes is None:
                refuse_empty_classes(table, root, split)
            classes = table_facts(table)["classes"]
        if bad and parsed.bad_images == "error":
            hint = "--bad-images skip excludes them"
            raise DataError(f"{root}: {bad} bad image(s), named above; {hint}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdeit index",
        description="Check every image of a data set, store the tables that training starts from, "
        "and describe them.",
        allow_abbrev=False,
    )
    path = "the folder or URL that train's --data-path will name (formats: docs/data.md)"
    parser.add_argument("path", help=path)
    train = "a name, a list, or a pattern of shards (default: train)"
    parser.add_argument("--train-split", "--train_split", default="train", help=train)
    val = "in the same forms as --train-split (default: val)"
    parser.add_argument("--val-split", "--val_split", default="val", help=val)
    bad = "skip: list damaged images; error: exit with code 2, too, if there are any"
    flags = ("--bad-images", "--bad_images")
    parser.add_argument(*flags, choices=("skip", "error"), default="skip", help=bad)
    workers = "processes that decode; 0: one for each core (default: 0)"
    parser.add_argument("--num-workers", "--num_workers", type=int, default=0, help=workers)
    return parser


def _print_split(terminal: Terminal, root: Path, split: str, table: pa.Table) -> int:
    """Print a split's facts and its damaged images; return how many those are."""
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
    """Write the list beside the table, in the first place that can be written; return its path, or
    None. Remove an old list if no image is excluded."""
    for place in places:
        file = place.with_name(f"{place.stem}-left-out.txt")
        try:
            if excluded:
                text = "".join(f"{line}\n" for line in excluded)
                file.write_text(text, encoding="utf-8")
                return file
            file.unlink(missing_ok=True)
        except OSError:
            continue
    return None


def split_report(table: pa.Table) -> dict[str, str]:
    """Describe a split's table (`split_table`, all columns), as text by heading."""
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
