"""MNIST's IDX files, plain or gzipped: (N, H, W) bytes, and N labels;
http://yann.lecun.com/exdb/mnist describes the format.

DALI gets an image as a PGM file, a header and the pixels, which its decoder of JPEG reads, too.
"""

import gzip
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastdeit.data.formats.check import ImageInfo
from fastdeit.data.formats.file_names import is_litter
from fastdeit.data.formats.labels import number_labels
from fastdeit.data.formats.listing import DataError, Listing, stamp

MAX_BYTES = 4 * 2**30
"""The largest size of a file, unpacked."""
_NAMES = {"train": ("train",), "val": ("val", "t10k", "test"), "test": ("t10k", "test")}
_UBYTE = 0x08


def idx_files(root: Path, split: str) -> tuple[Path, Path] | None:
    """Find the files of images and labels of a split in `root`, or None; `val` is also called
    `t10k`.

    Raises DataError when there are images without labels.
    """
    entries = sorted(entry.name for entry in root.iterdir() if not is_litter(entry.name))
    for name in _NAMES.get(split, (split,)):
        form = re.compile(rf"(?:.*[-_])?{re.escape(name)}-images[-.]idx3-ubyte(?:\.gz)?$")
        images = next(filter(form.match, entries), None)
        if images:
            labels = images.replace("-images", "-labels").replace("idx3", "idx1")
            forms = (labels, labels.removesuffix(".gz"), f"{labels}.gz")
            found = next((root / form for form in forms if form in entries), None)
            if found is None:
                raise DataError(f"{root / images}: there is no {labels} beside it")
            return root / images, found
    return None


def read_images(file: Path) -> np.ndarray:
    """Return uint8 (N, header + H * W), read-only: each row is a PGM file. Raises DataError for a
    damaged file, or one that is not of images."""
    pixels = _read(file, dims=3)
    count, height, width = pixels.shape
    header = np.frombuffer(_header(height, width), np.uint8)
    headers = np.broadcast_to(header, (count, len(header)))
    rows = np.concatenate((headers, pixels.reshape(count, -1)), axis=1)
    rows.flags.writeable = False
    return rows


def list_idx(root: Path, images: Path, labels: Path, classes: Sequence[str] | None) -> Listing:
    """List the images of a pair of files, in their order; an image's offset is its number.

    Raises DataError for damaged files, for unequal numbers of labels and images, and for labels
    that are not in `classes`.
    """
    stamps = stamp(root, [images, labels])
    count, height, width = _read(images, dims=3).shape
    numbers = _read(labels, dims=1)
    if len(numbers) != count:
        raise DataError(
            f"{labels}: has {len(numbers)} labels for the {count} images of {images.name}"
        )
    shard = os.path.relpath(images, root)
    names = [f"{shard}/{number:06d}" for number in range(count)]
    label_array, known = number_labels(
        numbers.tolist(), classes, lambda row: f"{labels}: image {row}"
    )
    facts = os.stat(images)
    return Listing(
        classes=known,
        names=pa.array(list(map(os.fsencode, names)), pa.binary()),
        labels=label_array,
        num_bytes=np.full(count, len(_header(height, width)) + height * width),
        mtimes=np.full(count, facts.st_mtime_ns),
        ctimes=np.full(count, facts.st_ctime_ns),
        stamps=stamps,
        facts=ImageInfo(height, width, "IDX", "L", 1),
        shards=(shard,),
        shard=np.zeros(count, np.int32),
        offset=np.arange(count),
    )


def _header(height: int, width: int) -> bytes:
    return f"P5 {width} {height} 255\n".encode()


def _read(file: Path, dims: int) -> np.ndarray:
    data = _content(file)
    head = 4 + 4 * dims
    if len(data) < head or data[:4] != bytes((0, 0, _UBYTE, dims)):
        raise DataError(
            f"{file}: must begin with 00 00 08 {dims:02x}, IDX of bytes with {dims} axes "
            f"(got {data[:4].hex(' ')})"
        )
    shape = np.frombuffer(data, ">u4", dims, 4).astype(int).tolist()
    expected = head + int(np.prod(shape, dtype=object))
    if len(data) != expected or 0 in shape:
        raise DataError(f"{file}: has {len(data)} bytes, its header of {shape} asks for {expected}")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _content(file: Path) -> bytes:
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{os.fspath(file)}: cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{file}: has more than {MAX_BYTES} bytes")
    return data
