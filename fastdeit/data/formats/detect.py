"""The detection of a split below a data path: its place, its format and its images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastdeit.data.formats.cifar.files import find_cifar, list_cifar
from fastdeit.data.formats.file_names import has_word, is_litter
from fastdeit.data.formats.folder import class_folders, image_files, list_folder
from fastdeit.data.formats.idx import idx_files, list_idx
from fastdeit.data.formats.imagenet import list_flat, truth_file
from fastdeit.data.formats.listing import SHOWN, DataError, Listing
from fastdeit.data.formats.lists import LIST_SUFFIXES, list_listed
from fastdeit.data.formats.parquet.files import SUFFIX, find_parquet, holds_images
from fastdeit.data.formats.parquet.images import list_parquet
from fastdeit.data.formats.shards.patterns import expand_pattern, refuse_compressed
from fastdeit.data.formats.shards.scan import list_shards
from fastdeit.display.text import printable

VALIDATION = ("val", "validation", "test")
"""The names of the split that is evaluated, and whose classes are those of `train`."""

_TAR = re.compile(r"\.(tar|tgz|tar\.\w+)$", re.IGNORECASE)
Feeding = Literal["files", "shards", "idx", "cifar", "parquet"]
"""The ways in which images are stored, see `SplitLocation.feeding`."""
_FORMATS = (
    "{split}/CLASS/IMAGE, tar shards in {split}, {split}.csv, .tsv, .parquet or .txt, MNIST's or "
    "CIFAR's files, or {split}-*.parquet with images (docs/data.md)"
)
# the folders of the splits in Kaggle's download and in the Hub's repositories
_INNER = (Path("ILSVRC/Data/CLS-LOC"), Path("data"))


@dataclass(frozen=True)
class SplitLocation:
    """The place of a split: its kind, and the folders or files to read."""

    kind: Literal["folder", "flat", "shards", "idx", "cifar", "list", "parquet"]
    paths: tuple[Path, ...]

    @property
    def feeding(self) -> Feeding:
        """Return how the images are stored: one file each, in shards, as pixels in the files of
        MNIST or CIFAR, or in Parquet files."""
        if self.kind == "folder" or self.kind == "flat" or self.kind == "list":
            return "files"
        return self.kind

    @property
    def is_list(self) -> bool:
        """Return True if the images are named in a file, and may lie anywhere."""
        return self.kind == "list"

    @property
    def home(self) -> Path:
        """Return the folder that may hold a `classes.txt`."""
        return self.paths[0].parent


def find_split(root: Path, split: str) -> SplitLocation:
    """Find a split: a name such as `train`; or, relative to root, the name of a list or a pattern
    of tar files.

    A `val` that does not exist may be called `validation` or `test`. Raises DataError, which names
    what was found instead.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; a data set is a folder with train and val")
    if re.search(r"[{\[]", split) and (root / split).is_dir():
        return _in_folder(root / split)
    if split.lower().endswith(LIST_SUFFIXES):
        return _found_list(root, split)
    if re.search(r"[*?{\[]", split) or _TAR.search(split):
        return SplitLocation("shards", _plain(expand_pattern(root, split)))
    for name in VALIDATION if split == "val" else (split,):
        for base in (root, *(root / inner for inner in _INNER)):
            if (base / name).is_dir():
                return _in_folder(base / name)
            found = _in_root(base, name) if base.is_dir() else None
            if found:
                return found
    expected = _FORMATS.format(split=split)
    if split == "train" and set(class_folders(root)).isdisjoint(VALIDATION) and _has_classes(root):
        expected = "two splits: docs/data.md#one-folder-of-classes divides class folders"
    raise DataError(f"{root}: holds no {split!r}; found {_shown(root)}; expected {expected}")


def list_split(
    root: Path, found: SplitLocation, classes: Sequence[str] | None, workers: int
) -> Listing:
    """Return the listing of a split's images.

    classes: the names that labels number, if they are known; workers: threads or processes. Raises
    DataError for files that cannot be read, and for labels that are not classes.
    """
    first, *rest = found.paths
    if found.kind == "shards":
        return list_shards(root, found.paths, classes, workers)
    if found.kind == "list":
        return list_listed(root, first, classes)
    if found.kind == "idx":
        return list_idx(root, first, rest[0], classes)
    if found.kind == "parquet":
        return list_parquet(root, found.paths, classes, workers)
    if found.kind == "cifar":
        return list_cifar(root, found.paths, classes)
    if found.kind == "flat":
        return list_flat(root, first, rest[0], classes or ())
    return list_folder(root, first, classes or class_folders(first))


def refuse_unordered(root: Path, split: str) -> None:
    """Raise DataError for a split whose images cannot be read in any order, as training does."""
    found = find_split(root, split)
    if found.kind == "parquet":
        raise DataError(
            f"{found.home}: training reads images in random order, which Parquet files do not "
            f"allow; write them to shards: fastdeit pack {root} OUTPUT --copy (docs/imagenet.md)"
        )


def _has_classes(root: Path) -> bool:
    """Return True if two or more folders in `root` have images."""
    return sum(bool(image_files(root / name)) for name in class_folders(root)) > 1


def _found_list(root: Path, split: str) -> SplitLocation:
    pattern = split.lower().endswith(SUFFIX) and re.search(r"[*?{\[]", split)
    files = expand_pattern(root, split) if pattern else (root / split,)
    if not files[0].is_file():
        raise DataError(f"{root / split}: no such file; found {_shown(root)}")
    return _one_list(files)


def _one_list(files: tuple[Path, ...]) -> SplitLocation:
    """Return the place of a list of image files, or of Parquet files that hold the images
    themselves. Raises DataError for several lists."""
    if files[0].suffix.lower() == SUFFIX and holds_images(files[0]):
        return SplitLocation("parquet", files)
    if len(files) > 1:
        raise DataError(f"{files[0]} and {len(files) - 1} more hold no images; name one list")
    return SplitLocation("list", files)


def _in_folder(folder: Path) -> SplitLocation:
    """Find the split in its own folder. Raises DataError if that has none."""
    entries = sorted(entry for entry in folder.iterdir() if not _is_hidden(entry.name))
    if class_folders(folder):
        return SplitLocation("folder", (folder,))
    shards = [entry for entry in entries if _TAR.search(entry.name)]
    if shards:
        return SplitLocation("shards", _plain(shards))
    tables = find_parquet(folder)
    if tables:
        return SplitLocation("parquet", tables)
    if image_files(folder):
        truth = truth_file(folder)
        if truth:
            return SplitLocation("flat", (folder, truth))
    expected = _FORMATS.format(split=folder.name)
    raise DataError(
        f"{folder}: has no class folders, no tar shards and no file with labels; "
        f"expected {expected}"
    )


def _in_root(root: Path, split: str) -> SplitLocation | None:
    """Find the split among the files in the data path itself, or return None."""
    for suffix in LIST_SUFFIXES:
        if (root / f"{split}{suffix}").is_file():
            return _one_list((root / f"{split}{suffix}",))
    names = sorted(entry.name for entry in root.iterdir() if not is_litter(entry.name))
    shards = [root / name for name in names if _TAR.search(name) and has_word(name, split)]
    if shards:
        return SplitLocation("shards", _plain(shards))
    tables = find_parquet(root, split)
    if tables:
        return SplitLocation("parquet", tables)
    pair = idx_files(root, split)
    if pair:
        return SplitLocation("idx", pair)
    has_cifar = split in ("train", *VALIDATION)
    files = find_cifar(root, is_train=split == "train") if has_cifar else ()
    return SplitLocation("cifar", files) if files else None


def _plain(shards: Sequence[Path]) -> tuple[Path, ...]:
    refuse_compressed(shards)
    return tuple(shards)


def _shown(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if not _is_hidden(entry.name))
    shown = ", ".join(map(printable, names[:SHOWN])) or "nothing"
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or is_litter(name)
