"""One file of CIFAR, binary or pickled: its images and labels.

Source: https://www.cs.toronto.edu/~kriz/cifar.html describes both forms (Krizhevsky 2009, "Learning
Multiple Layers of Features from Tiny Images").
"""

import reprlib
from typing import Any, NamedTuple

import numpy as np

from fastdeit.data.formats.cifar.pickled import read_pickle
from fastdeit.data.formats.listing import DataError

SIDE = 32
_PIXELS = 3 * SIDE * SIDE
_HEADER = np.frombuffer(f"P6 {SIDE} {SIDE} 255\n".encode(), np.uint8)


class Batch(NamedTuple):
    """The images of a file, in its order."""

    rows: np.ndarray
    """uint8 (N, 3087), read-only: each row is a PPM file, which the decoder of JPEG reads, too."""
    labels: np.ndarray
    """uint8 (N,): numbers of classes."""


def read_binary(data: bytes, where: str, label_bytes: int) -> Batch:
    """Return the images of a file of records: `label_bytes` labels of a byte each, of which the
    last is the class, then the pixels. Raises DataError, which names `where`, for another
    length."""
    size = label_bytes + _PIXELS
    if not data or len(data) % size:
        raise DataError(f"{where}: must have {size:,} bytes an image (got {len(data):,} bytes)")
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    return Batch(_make_rows(records[:, label_bytes:]), records[:, label_bytes - 1])


def read_python(data: bytes, where: str, label_key: str) -> Batch:
    """Return the images of a pickled dict of pixels and a list of labels. Raises DataError, which
    names `where`, for anything else."""
    content = read_dict(data, where)
    images: Any = content.get("data")
    labels: Any = content.get(label_key)
    ok = isinstance(images, np.ndarray) and images.ndim == 2 and images.shape[1] == _PIXELS
    if not ok or not len(images):
        raise DataError(f"{where}: must hold `data`, an array of {_PIXELS} bytes an image")
    ok = isinstance(labels, list) and len(labels) == len(images)
    if not ok or not all(type(label) is int and 0 <= label < 256 for label in labels):
        allowed = "a list with the number of each image's class"
        raise DataError(f"{where}: must hold `{label_key}`, {allowed} (got {reprlib.repr(labels)})")
    return Batch(_make_rows(images), np.array(labels, np.uint8))


def read_dict(data: bytes, where: str) -> dict[str, Any]:
    """Return a pickled dict with its keys as text; run nothing in it. Raises DataError, which names
    `where`, for anything else."""
    try:
        content = read_pickle(data)
    except ValueError as error:
        raise DataError(f"{where}: is not as CIFAR publishes it: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{where}: must be a pickled dict (got {reprlib.repr(content)})")
    return {_decode(key): value for key, value in content.items()}


def read_names(data: bytes, where: str, key: str) -> tuple[str, ...]:
    """Return the names of the classes: lines of text, or with a key the list in a pickled dict.
    Raises DataError, which names `where`, if there is no such list."""
    names = read_dict(data, where).get(key) if key else data.split()
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise DataError(f"{where}: must hold `{key}`, a list of names")
    return tuple(map(_decode, names))


def _decode(name: object) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)


def _make_rows(images: np.ndarray) -> np.ndarray:
    """Return uint8 (N, 3087): PPM files of images, uint8 (N, 3072), which have all red levels
    first, then the green ones, then the blue ones."""
    pixels = images.reshape(-1, 3, SIDE * SIDE).transpose(0, 2, 1).reshape(-1, _PIXELS)
    headers = np.broadcast_to(_HEADER, (len(pixels), len(_HEADER)))
    rows = np.concatenate((headers, pixels), axis=1)
    rows.flags.writeable = False
    return rows
