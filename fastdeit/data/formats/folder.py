"""Image files: a folder for each class, in torchvision's ImageFolder order; and files whose labels
are in another file."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastdeit.data.formats.check import EXTENSIONS, UNREAD
from fastdeit.data.formats.listing import SHOWN, DataError, Listing, Stamps, stamp

_EXTENSIONS = tuple(map(os.fsencode, EXTENSIONS))


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders in `folder` that are not hidden, sorted."""
    folders = (entry.name for entry in os.scandir(folder) if entry.is_dir())
    return tuple(sorted(name for name in folders if not name.startswith(".")))


def list_folder(root: Path, folder: Path, classes: Sequence[str]) -> Listing:
    """List the images of `folder/CLASS/**`, labelled by their class's place in `classes`.

    Raises DataError for a class that is not in `classes`, and for one without images.
    """
    present = class_folders(folder)
    unknown = sorted(set(present) - set(classes))
    if unknown:
        shown = ", ".join(unknown[:SHOWN])
        raise DataError(
            f"{folder}: has classes that are not among the {len(classes)} of train: {shown}"
        )
    stamps = stamp(root, [folder])
    names = []
    counts = np.zeros(len(classes), np.int64)
    for label, name in enumerate(classes):
        if name in present:
            files = _class_files(root, folder / name, stamps)
            names.append(files)
            counts[label] = len(files)
    labels = np.repeat(np.arange(len(classes)), counts)
    return list_files(root, pa.concat_arrays(names), labels, tuple(classes), stamps)


def _class_files(root: Path, folder: Path, stamps: Stamps) -> pa.BinaryArray:
    """Return the names of the images below `folder`; each folder is stamped before it is listed."""
    base = os.fsencode(folder)
    prefix = os.path.relpath(base, os.fsencode(root))
    names = []
    for parent, files in _walk(base):
        stamps |= stamp(root, [os.fsdecode(parent)])
        inner = prefix + parent[len(base) :]
        images = [file for file in sorted(files) if file.lower().endswith(_EXTENSIONS)]
        names += [inner + b"/" + image for image in images]
    if not names:
        raise DataError(f"{folder}: no images in this class ({', '.join(EXTENSIONS)})")
    return pa.array(names, pa.binary())


def _walk(folder: bytes) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield folders and the files in each, in ImageFolder's order; links are followed, but not in
    circles."""
    found: list[tuple[bytes, list[bytes]]] = []
    above: dict[bytes, tuple[tuple[int, int], ...]] = {folder: (_identity(folder),)}
    for parent, folders, files in os.walk(folder, followlinks=True):
        found.append((parent, files))
        seen = above.pop(parent)
        inner = []
        for name in folders:
            path = os.path.join(parent, name)
            identity = _identity(path)
            if identity not in seen:
                above[path] = (*seen, identity)
                inner.append(name)
        folders[:] = inner  # the folders that os.walk goes into
    yield from sorted(found)


def _identity(folder: bytes) -> tuple[int, int]:
    facts = os.stat(folder)
    return facts.st_dev, facts.st_ino


def list_files(
    root: Path, names: pa.BinaryArray, labels: np.ndarray, classes: tuple[str, ...], stamps: Stamps
) -> Listing:
    """List image files that are known by name; one that does not exist gets a fault."""
    num_bytes = np.zeros(len(names), np.int64)
    mtimes = np.zeros(len(names), np.int64)
    faults = {}
    prefix = os.fsencode(root) + b"/"
    for row, name in enumerate(names):
        try:
            facts = os.stat(prefix + name.as_py())
            num_bytes[row] = facts.st_size
            mtimes[row] = facts.st_mtime_ns
        except OSError as error:
            faults[row] = f"{UNREAD}: {error.strerror}"
    return Listing(classes, names, labels.astype(np.int64), num_bytes, mtimes, stamps, faults)
