"""Image files: a folder for each class, in torchvision's ImageFolder order; and files whose labels
are in another file."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastdeit.data.formats.check import UNREAD
from fastdeit.data.formats.file_names import EXTENSIONS, extension_fault, is_image, is_litter
from fastdeit.data.formats.labels import UNKNOWN, compare_names
from fastdeit.data.formats.listing import SHOWN, DataError, Listing, Stamps, iterate_names, stamp
from fastdeit.display.text import printable


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders in `folder` that are neither hidden nor litter, sorted."""
    folders = (entry.name for entry in os.scandir(folder) if entry.is_dir())
    return tuple(
        sorted(name for name in folders if not name.startswith(".") and not is_litter(name))
    )


def image_files(folder: Path) -> list[str]:
    """Return the names of the images in `folder` itself, sorted."""
    files = (entry.name for entry in os.scandir(folder) if not entry.is_dir())
    return sorted(name for name in files if is_image(name) and not is_litter(name))


def list_folder(root: Path, folder: Path, classes: Sequence[str]) -> Listing:
    """List the images of `folder/CLASS/**`, whose label is the place of CLASS in `classes`; then
    those beside the class folders, which have a fault.

    Raises DataError for a class that is not in `classes`, and for a class without images.
    """
    present = class_folders(folder)
    unknown = sorted(set(present) - set(classes))
    if unknown:
        shown = ", ".join(map(printable, unknown[:SHOWN]))
        raise DataError(
            f"{folder}: has classes that are not among the {len(classes)} of train: {shown}"
            f"{compare_names(unknown[0], classes)}"
        )
    stamps = stamp(root, [folder])
    loose = [os.fsencode(os.path.relpath(folder / name, root)) for name in image_files(folder)]
    names = []
    counts = np.zeros(len(classes), np.int64)
    for label, name in enumerate(classes):
        if name in present:
            files = _class_files(root, folder / name, stamps)
            names.append(files)
            counts[label] = len(files)
    labels = np.repeat([*range(len(classes)), UNKNOWN], [*counts, len(loose)])
    all_names = pa.concat_arrays([*names, pa.array(loose, pa.binary())])
    listing = list_files(root, all_names, labels, tuple(classes), stamps)
    unlabelled = np.flatnonzero(labels == UNKNOWN).tolist()
    faults = dict.fromkeys(unlabelled, "has no class: it is in no class folder")
    return exclude_extensions(dataclasses.replace(listing, faults={**listing.faults, **faults}))


def exclude_extensions(listing: Listing) -> Listing:
    """Return the listing with a fault for each image whose extension is not read."""
    faults = dict(listing.faults)
    for row, name in enumerate(iterate_names(listing.names)):
        fault = extension_fault(os.fsdecode(name))
        if fault:
            faults[row] = fault
    return dataclasses.replace(listing, faults=faults)


def _class_files(root: Path, folder: Path, stamps: Stamps) -> pa.BinaryArray:
    """Return the names of the images below `folder`; add the stamp of each folder to `stamps`
    before the folder is listed. Raises DataError if there is no image."""
    base = os.fsencode(folder)
    prefix = os.path.relpath(base, os.fsencode(root))
    names: list[bytes] = []
    others: list[bytes] = []
    for parent, files in walk_files(base):
        stamps |= stamp(root, [os.fsdecode(parent)])
        inner = prefix + parent[len(base) :]
        for file in sorted(files):
            (names if is_image(os.fsdecode(file)) else others).append(inner + b"/" + file)
    if not names:
        held = f"; it holds {printable(os.fsdecode(others[0]))}" if others else ""
        rule = f"no images in this class ({', '.join(EXTENSIONS)}){held}"
        raise DataError(f"{folder}: {rule}; add images, or remove the folder from all splits")
    return pa.array(names, pa.binary())


def walk_files(folder: bytes) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield folders and the files in each, in ImageFolder's order and without litter; follow links,
    but not in circles. Raises DataError for a folder that cannot be listed."""
    found: list[tuple[bytes, list[bytes]]] = []
    above: dict[bytes, tuple[tuple[int, int], ...]] = {folder: (_identity(folder),)}
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        found.append((parent, [name for name in files if not is_litter(os.fsdecode(name))]))
        seen = above.pop(parent)
        inner = []
        for name in folders:
            path = os.path.join(parent, name)
            identity = _identity(path)
            if identity not in seen and not is_litter(os.fsdecode(name)):
                above[path] = (*seen, identity)
                inner.append(name)
        folders[:] = inner  # the folders that os.walk enters
    yield from sorted(found)


def _refuse(error: OSError) -> None:
    """Raise DataError: `os.walk` would skip the folder, and its images would be missing."""
    folder = printable(os.fsdecode(error.filename))
    raise DataError(f"{folder}: cannot be listed: {error.strerror}") from None


def _identity(folder: bytes) -> tuple[int, int]:
    facts = os.stat(folder)
    return facts.st_dev, facts.st_ino


def list_files(
    root: Path, names: pa.BinaryArray, labels: np.ndarray, classes: tuple[str, ...], stamps: Stamps
) -> Listing:
    """List image files by their names, relative to root; a file that does not exist has a fault.

    labels: int (N,), places in `classes`.
    """
    num_bytes = np.zeros(len(names), np.int64)
    mtimes = np.zeros(len(names), np.int64)
    ctimes = np.zeros(len(names), np.int64)
    faults: dict[int, str] = {}
    prefix = os.fsencode(root) + b"/"
    for row, name in enumerate(iterate_names(names)):
        try:
            facts = os.stat(prefix + name)
            num_bytes[row] = facts.st_size
            mtimes[row] = facts.st_mtime_ns
            ctimes[row] = facts.st_ctime_ns
        except OSError as error:
            faults[row] = f"{UNREAD}: {error.strerror}"
    return Listing(
        classes=classes,
        names=names,
        labels=labels.astype(np.int64),
        num_bytes=num_bytes,
        mtimes=mtimes,
        ctimes=ctimes,
        stamps=stamps,
        faults=faults,
    )
