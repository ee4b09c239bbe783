"""ImageNet's validation images in one folder, with a file of their classes, whose name and form
depend on the distribution.

ILSVRC2012_validation_ground_truth.txt of the devkit: line i is the class number of image i in the
devkit's own order; meta.mat beside it translates numbers to synsets.

LOC_val_solution.csv of Kaggle: name of the image, then its synset and boxes.

val.txt of Caffe and others: name of the image, then its class as a name or as a place in the sorted
synsets.
"""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastdeit.data.formats.folder import exclude_extensions, image_files, list_files
from fastdeit.data.formats.labels import number_labels
from fastdeit.data.formats.listing import DataError, Listing, read_text, stamp
from fastdeit.display.text import printable

DEVKIT = "ILSVRC2012_validation_ground_truth.txt"
KAGGLE = "LOC_val_solution.csv"
CAFFE = "val.txt"
_DEVKIT_FOLDERS = (".", "ILSVRC2012_devkit_t12/data", "devkit/data", "data")
_MAX_SYNSETS = 100_000  # ImageNet has 1,860 with their groups, WordNet 82,115 nouns
_ROOT = ("ILSVRC", "Data", "CLS-LOC")  # Kaggle's archive has its list above these folders


def truth_file(folder: Path) -> Path | None:
    """Find the file with the classes of the images in `folder`: in it, beside it, or in the devkit
    beside it; None if there is none."""
    beside = [folder, folder.parent]
    if folder.parent.parts[-len(_ROOT) :] == _ROOT:
        beside.append(folder.parents[len(_ROOT)])
    names = [KAGGLE, CAFFE, *(f"{inner}/{DEVKIT}" for inner in _DEVKIT_FOLDERS)]
    return next(
        (place / name for place in beside for name in names if (place / name).is_file()), None
    )


def list_flat(root: Path, folder: Path, truth: Path, classes: Sequence[str]) -> Listing:
    """List the images of `folder`, sorted by name, with their classes from `truth`; classes:
    train's synsets.

    Raises DataError for an image that is not in `truth`, and for a class that is not in `classes`.
    """
    stamps = stamp(root, [folder, truth])
    files = image_files(folder)
    class_of = _read_devkit(truth, files) if truth.name == DEVKIT else _read_pairs(truth)
    raw = [class_of.get(Path(name).stem) for name in files]
    if None in raw:
        missing = files[raw.index(None)]
        raise DataError(
            f"{truth}: has no class for {missing}; it must have a line for each of the "
            f"{len(files)} images"
        )
    paths = [os.fsencode(os.path.relpath(folder / name, root)) for name in files]
    names = pa.array(paths, pa.binary())
    labels, known = number_labels(raw, classes, lambda row: f"{truth}: {printable(files[row])}")
    return exclude_extensions(list_files(root, names, labels, known, stamps))


def _read_pairs(truth: Path) -> Mapping[str, str]:
    """Return the class of each image, by the stem of its name."""
    lines = read_text(truth).split("\n")
    if truth.suffix == ".csv":
        rows = list(csv.reader(lines))
    else:
        rows = [line.rsplit(maxsplit=1) for line in lines]
    pairs = [(row[0].strip(), row[1].split()) for row in rows if len(row) > 1]
    return {Path(name).stem: words[0] for name, words in pairs if words and name != "ImageId"}


def _read_devkit(truth: Path, files: Sequence[str]) -> Mapping[str, str]:
    numbers = read_text(truth).split()
    if len(numbers) != len(files) or not all(map(str.isdecimal, numbers)):
        raise DataError(
            f"{truth}: must have a number for each of the {len(files)} images "
            f"(got {len(numbers)} entries)"
        )
    synset_of = _synsets(truth.with_name("meta.mat"))
    unknown = set(map(int, numbers)) - set(synset_of)
    if unknown:
        raise DataError(
            f"{truth}: has the class number {min(unknown)}, which meta.mat does not name"
        )
    synsets = (synset_of[int(number)] for number in numbers)
    return {Path(name).stem: synset for name, synset in zip(files, synsets, strict=True)}


def _synsets(meta: Path) -> Mapping[int, str]:
    """Return the synset of each of the devkit's class numbers. Raises DataError for a file that is
    missing, damaged or too large."""
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    if not meta.is_file():
        raise DataError(
            f"{meta}: no such file; it translates the devkit's class numbers, and is in the same "
            "archive"
        )
    try:
        rows = {name: math.prod(shape) for name, shape, _ in whosmat(meta)}["synsets"]
        if rows > _MAX_SYNSETS:  # before they take memory
            raise ValueError(f"{rows:,} rows, at most {_MAX_SYNSETS:,}")
        table = np.atleast_1d(loadmat(meta, squeeze_me=True)["synsets"])
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
    except (
        MatReadError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        OSError,
        NotImplementedError,
        MemoryError,  # of a cell that claims too much
    ) as error:
        raise DataError(f"{meta}: is not the devkit's table of synsets ({error})") from error
