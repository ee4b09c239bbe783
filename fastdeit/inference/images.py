"""Images to predict: found by files, folders and patterns, and read as training reads its images.

A transparent, grey, palette or CMYK image becomes RGB as Pillow's `convert("RGB")` does it; of an
animation the first frame counts; pixels of 16 bits are refused, as in training
(data/formats/check.py). An image is used as it is stored, unless its EXIF rotation is asked for.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import NamedTuple

import torch
from PIL import Image, ImageOps

from fastdeit.data.formats.check import (
    DECODE_ERRORS,
    MAX_PIXELS,
    UNREAD,
    find_refusal,
    read_orientation,
    read_place,
    to_rgb,
)
from fastdeit.data.formats.file_names import is_image
from fastdeit.data.formats.folder import walk_files
from fastdeit.data.formats.listing import DataError
from fastdeit.data.index import Index
from fastdeit.data.stored_image import read_stored_image
from fastdeit.inference.load import build_transform
from fastdeit.models.hub import EvalView

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF")


class InputImage(NamedTuple):
    """An image that a model can take, or the reason why there is none."""

    path: str
    pixels: torch.Tensor | None = None
    """The pixels, fp32 (3, S, S), normalised; None if the image cannot be read."""
    fault: str = ""
    """The reason why it cannot be read."""
    orientation: int = 1
    """EXIF orientation; 1: as stored."""


def find_images(places: Sequence[str]) -> list[str]:
    """Return the paths of images, each once: files, the images below folders, and those that shell
    patterns (`*`, `?`, `[...]`, `**`) name, in the order of `places`.

    Below a folder and by a pattern only names of images count, in a fixed order. Raises ValueError
    for a place that does not exist, or without images.
    """
    found: dict[str, None] = {}
    for place in places:
        paths = _list_place(place)
        if not paths:
            raise ValueError(f"{place}: no image is here")
        found |= dict.fromkeys(paths)
    return list(found)


def _list_place(place: str) -> list[str]:
    if os.path.isdir(place):
        return list(_list_folder(place))
    if os.path.lexists(place):
        return [place]
    if glob.has_magic(place):
        return list(_list_matches(place))
    raise ValueError(f"{place}: no such file or folder")


def _list_folder(folder: str) -> Iterator[str]:
    for parent, files in walk_files(os.fsencode(folder)):
        for name in map(os.fsdecode, sorted(files)):
            if is_image(name):
                yield os.path.join(os.fsdecode(parent), name)


def _list_matches(pattern: str) -> Iterator[str]:
    for path in sorted(glob.glob(pattern, recursive=True), key=os.fsencode):
        if os.path.isdir(path):
            yield from _list_folder(path)
        elif is_image(path):
            yield path


def read_image(path: str, view: EvalView, exif_rotate: bool = False) -> InputImage:
    """Read an image file as a model sees it; an image that cannot be read has a fault.

    exif_rotate: turn or mirror it as its EXIF orientation says.
    """
    try:
        return _read(path, view, exif_rotate)
    except Image.UnidentifiedImageError:
        return InputImage(path, fault="is no image that can be read")
    except Image.DecompressionBombError:
        return InputImage(path, fault=f"has more than {MAX_PIXELS} pixels")
    except OSError as error:
        return InputImage(path, fault=f"{UNREAD}: {error.strerror or error}")
    except DECODE_ERRORS as error:
        return InputImage(path, fault=f"{type(error).__name__}: {error}")


def _read(path: str, view: EvalView, exif_rotate: bool) -> InputImage:
    with Image.open(BytesIO(read_place((path, -1, 0))), formats=_FORMATS) as image:
        if fault := find_refusal(image) or _find_stretch(image, view):
            return InputImage(path, fault=fault)
        image.load()
        orientation = read_orientation(image)
        stored: Image.Image = image
        if exif_rotate and orientation > 1:
            stored = ImageOps.exif_transpose(image)
        return InputImage(path, build_transform(view)(to_rgb(stored)), orientation=orientation)


def choose_rows(images: int, count: int) -> list[int]:
    """Return the rows of `count` images, or of all if there are fewer, spread evenly over an index,
    in which the classes are often in order."""
    count = min(images, count)
    return [place * images // count for place in range(count)]


def read_rows(index: Index, rows: Sequence[int], view: EvalView) -> torch.Tensor:
    """Return images of an index as a model sees them: fp32 (B, 3, S, S), normalised, equal to the
    evaluation's with the backend `exact`.

    Raises DataError for an image that cannot be read any more.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return torch.stack(list(pool.map(lambda row: _read_row(index, row, view), rows)))


def _read_row(index: Index, row: int, view: EvalView) -> torch.Tensor:
    image = read_stored_image(index, row)
    if fault := _find_stretch(image, view):
        raise DataError(f"{index.root}: {index.name(row)}: {fault}")
    return build_transform(view)(image)


def _find_stretch(image: Image.Image, view: EvalView) -> str:
    """Return why an image is too narrow to be resized in bounded memory, or ""."""
    short = int(view.size / view.crop_pct)
    long = short * max(image.size) // min(image.size)
    if view.crop_mode == "center" and short * long > MAX_PIXELS:
        width, height = image.size
        return f"{width} x {height} pixels are too narrow: resized to {short} x {long}"
    return ""
