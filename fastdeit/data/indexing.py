"""The index of a split, read from the table that is stored with the data set, or built."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa

from fastdeit.data.checks.tables import build_table
from fastdeit.data.checks.work import AUTO, CheckKind, ImageCheck
from fastdeit.data.formats.detect import VALIDATION, SplitLocation, find_split, list_split
from fastdeit.data.formats.folder import class_folders
from fastdeit.data.formats.labels import class_names_beside
from fastdeit.data.formats.listing import DataError
from fastdeit.data.formats.parquet.files import read_classes
from fastdeit.data.index import COLUMNS, Index
from fastdeit.data.table import (
    describe_excluded,
    excluded_images,
    fresh_table,
    good_images,
    note_split,
    refuse_empty_classes,
    table_facts,
    table_places,
)

BadImages = Literal["error", "skip"]
"""The treatment of bad images: an error, or exclusion."""


def build_index(
    root: Path,
    split: str,
    *,
    cache_dir: Path | None = None,
    classes: Sequence[str] | None = None,
    workers: int | None = None,
    bad_images: BadImages = "error",
    require_classes: bool = False,
    again: bool = False,
    check: CheckKind = "auto",
) -> Index:
    """Return the index of one split, read from its Parquet file if its sources are unchanged, else
    built.

    split: `train` or `val` below `root`, in any format of docs/data.md; or, relative to root, a
    list or a pattern of tar files. classes: the names that labels number; by default those of a
    `classes.txt`, for `val` those of `train`, else the split's own. cache_dir: the folder of the
    Parquet file; by default `root/.fastdeit`, or the user's cache folder where root cannot be
    written. workers: the number of threads or processes that decode. bad_images: "skip" excludes
    them. require_classes: refuse a class folder in which no image can be used. again: compare the
    bytes and time of every file, though the folders are unchanged. check: as `ImageCheck.kind`.
    Raises DataError for a split that does not exist, has no image that can be used, or has bad ones
    with "error".
    """
    root = Path(os.path.abspath(root))
    found = find_split(root, split)
    table = split_table(
        root,
        split,
        found,
        cache_dir=cache_dir,
        classes=classes,
        workers=workers,
        again=again,
        wanted=ImageCheck(check),
    )
    good, excluded = _select_good(table, root, split, bad_images)
    if require_classes:
        refuse_empty_classes(table, root, split)
    notes = note_split(good, is_train=classes is None and split not in VALIDATION)
    facts = {"root": root, "split": split, "kind": found.feeding}
    return Index.from_table(good, table_facts(good) | facts, excluded, notes)


def _select_good(
    table: pa.Table, root: Path, split: str, bad_images: BadImages
) -> tuple[pa.Table, tuple[str, ...]]:
    """Return the rows of the good images, and the damaged ones, each with its fault. Raises
    DataError if none is good, and with "error" for any damaged one."""
    excluded = excluded_images(table)
    if excluded and bad_images == "error":
        raise DataError(f"{root}: {describe_excluded(excluded)}")
    return good_images(table, root, split), excluded


def split_table(
    root: Path,
    split: str,
    found: SplitLocation,
    *,
    cache_dir: Path | None = None,
    classes: Sequence[str] | None = None,
    workers: int | None = None,
    again: bool = False,
    columns: Sequence[str] = COLUMNS,
    wanted: ImageCheck = AUTO,
) -> pa.Table:
    """Return a table with one row for every image of the split, good or bad (then with a `fault`);
    `table_facts` reads its metadata. Arguments and errors: as for `build_index`.

    columns: those to read; wanted: how the images must have been checked.
    """
    names = list(classes) if classes is not None else None
    if names is None:
        names = _class_names(root, split, found, cache_dir=cache_dir, workers=workers)
    source = {
        "kind": found.kind,
        "paths": [os.path.relpath(path, root) for path in found.paths],
        "classes": names,
    }
    places = table_places(root, split, cache_dir)
    table = None if again else fresh_table(places, root, source, columns, wanted)
    if table is None:
        count = workers or os.cpu_count() or 1
        listing = list_split(root, found, names, count)
        table = build_table(listing, root, source, places, count, wanted)
    return table


def _class_names(
    root: Path, split: str, found: SplitLocation, *, cache_dir: Path | None, workers: int | None
) -> list[str] | None:
    """Return the names that labels number, or None if the split's own labels define them."""
    beside = class_names_beside(found.home)
    if beside and found.kind != "folder":
        return list(beside)
    if split not in VALIDATION:
        return list(class_folders(found.paths[0])) if found.kind == "folder" else None
    train = find_split(root, "train")
    if train.kind == "folder":
        return list(class_folders(train.paths[0]))
    written = read_classes(train.paths[0]) if train.kind == "parquet" else None
    if written:
        return list(written)
    table = split_table(root, "train", train, cache_dir=cache_dir, workers=workers, columns=())
    return table_facts(table)["classes"]
