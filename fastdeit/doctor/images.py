"""Some images of a data set, found without an index, and generated JPEG files."""

import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastdeit.data.formats.detect import SplitLocation

COUNT = 256
"""The number of images that are used."""
_CLASSES = 64
Place = tuple[str, int, int]
"""The file, the offset and the length of an encoded image."""


class NoImagesError(ValueError):
    """The error if there is no data set, or its images are neither files nor in shards."""


def locate_images(root: str, split: str) -> list[Place]:
    """Return the places of up to `COUNT` images of a split, from many of its classes.

    Raises NoImagesError for files of pixels (MNIST, CIFAR), which a run reads into memory, and
    DataError for a split that cannot be found or read.
    """
    from fastdeit.data.formats.detect import find_split

    found = find_split(Path(root), split)
    if found.feeding in ("idx", "cifar"):
        raise NoImagesError("the files of pixels are read once, into memory")
    names = _walk_classes(found.paths[0]) if found.kind == "folder" else None
    if names is None:
        return _list_places(Path(root), found)
    files = list(itertools.islice(names, COUNT))
    if not files:
        raise NoImagesError(f"{found.paths[0]}: no images in its first classes")
    return [(file, 0, os.path.getsize(file)) for file in files]


def _walk_classes(folder: Path) -> Iterator[str]:
    """Yield files of up to `_CLASSES` class folders, a few of each; read names, but no image."""
    from fastdeit.data.formats.file_names import is_image, is_litter
    from fastdeit.data.formats.folder import class_folders

    classes = class_folders(folder)
    chosen = classes[:: -(-len(classes) // _CLASSES)]
    each = -(-COUNT // len(chosen))
    for name in chosen:
        with os.scandir(folder / name) as entries:
            wanted = (one.path for one in entries if is_image(one.name) and not is_litter(one.name))
            yield from itertools.islice(wanted, each)


def _list_places(root: Path, found: "SplitLocation") -> list[Place]:
    """Return places of images in the first shard, or of a list."""
    import dataclasses

    from fastdeit.data.formats.detect import list_split
    from fastdeit.data.formats.listing import iterate_names

    if found.kind == "shards":
        found = dataclasses.replace(found, paths=found.paths[:1])
    listing = list_split(root, found, None, 1)
    rows = [row for row in range(len(listing.labels)) if row not in listing.faults]
    rows = rows[:: -(-len(rows) // COUNT) or 1]
    if listing.shard is None or listing.offset is None:
        names = list(iterate_names(listing.names))
        files = [os.path.join(root, os.fsdecode(names[row])) for row in rows]
        return [
            (file, 0, int(listing.num_bytes[row])) for file, row in zip(files, rows, strict=True)
        ]
    return [
        (
            os.path.join(root, listing.shards[listing.shard[row]]),
            int(listing.offset[row]),
            int(listing.num_bytes[row]),
        )
        for row in rows
    ]


def make_jpegs(count: int, size: tuple[int, int] = (500, 375)) -> list[bytes]:
    """Return the bytes of JPEG files with smooth noise, about 60 kB each at ImageNet's usual size.

    size: width and height in pixels.
    """
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    width, height = size
    files = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (height // 25, width // 25, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 12, (height, width, 3))
        pixels = (np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files
