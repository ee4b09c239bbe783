"""Checks that an image can be trained on: readable as a whole, decoded once, within limits, and of
a kind that DALI decodes as Pillow does.

One file that does not decode costs DALI the whole batch. So images are refused here that DALI 2.4
refuses or decodes differently from Pillow's `convert("RGB")`; docs/data.md has the table,
tests/data/formats/test_check.py the tests. This module imports little, as each worker process
imports it.
"""

import contextlib
import errno
import multiprocessing
import os
import signal
import stat
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from io import BytesIO
from typing import NamedTuple, TypeVar

from PIL import Image

from fastdeit.data.checks.pixels import find_odd_storage

MAX_PIXELS = 64 * 2**20
"""The largest number of pixels of an image."""
MAX_BYTES = 64 * 2**20
"""The largest number of bytes of an encoded image."""
UNREAD = "cannot be read"
"""The first words of the fault of a file that may be readable next time."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")  # PPM: the form in which DALI gets IDX
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
_ORIENTATION = 0x0112  # EXIF tag
_START_OF_SCAN = 0xDA  # JPEG marker
_JOBS_AHEAD = 4  # for each worker
_OF_PYTHON = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError)
_OF_SIZE = (OverflowError, MemoryError)
_OF_PILLOW = (Image.DecompressionBombError, Image.DecompressionBombWarning)
DECODE_ERRORS = (*_OF_PYTHON, *_OF_SIZE, struct.error, zlib.error, *_OF_PILLOW)

ByteRange = tuple[str, int, int]
"""The file, the offset and the length of an encoded image; offset -1: the whole file."""
_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


class ImageInfo(NamedTuple):
    """The facts of a good image that the index keeps; height and width are of the stored pixels,
    without EXIF rotation."""

    height: int
    width: int
    format: str
    mode: str
    orientation: int


Checked = ImageInfo | str
"""The facts of a good image, or the fault of a bad one."""


def locate(place: ByteRange) -> tuple[int, int]:
    """Return the offset and the length in bytes of the encoded image at a place. Raises OSError if
    the file is not a regular file or too short, or the image too large."""
    file, offset, length = place
    facts = os.stat(file)
    if not stat.S_ISREG(facts.st_mode):
        raise OSError("it is no regular file")
    if offset < 0:
        offset, length = 0, facts.st_size
    if length > MAX_BYTES:
        raise OSError(f"{length} bytes are more than {MAX_BYTES}")
    _refuse_short(min(facts.st_size - offset, length), length)
    return offset, length


def read_place(place: ByteRange) -> bytes:
    """Return the encoded image at a place. Raises OSError as `locate` does."""
    offset, length = locate(place)
    with open(place[0], "rb") as opened:
        opened.seek(offset)
        data = opened.read(length)
    _refuse_short(len(data), length)
    return data


def _refuse_short(found: int, length: int) -> None:
    if found < length:
        raise OSError(f"only {max(found, 0)} of {length} bytes are there")


def raise_own_fault(error: OSError) -> None:
    """Raise the error again if the file is not its cause: this process may open no more files."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise error


def check_place(place: ByteRange) -> Checked:
    """Return `check_image` of the image at a place."""
    try:
        return check_image(read_place(place))
    except OSError as error:
        raise_own_fault(error)
        return f"{UNREAD}: {error.strerror or error}"


def check_image(source: str | bytes) -> Checked:
    """Return the facts of an image that can be trained on, else its fault; source: a path, or the
    encoded bytes."""
    if isinstance(source, str):
        return check_place((source, -1, 0))
    image = open_image(source)
    return image if isinstance(image, str) else describe_image(image)


def describe_image(image: Image.Image) -> ImageInfo:
    """Return the facts of an opened image."""
    orientation = read_orientation(image)
    return ImageInfo(image.height, image.width, image.format or "", image.mode, orientation)


def open_image(data: bytes, *, decode: bool = True) -> Image.Image | str:
    """Return the decoded image of encoded bytes, without EXIF rotation, if it can be trained on;
    else its fault. decode: False checks the header alone, and decodes nothing."""
    if not data:
        return "is empty"
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            fault = find_refusal(image) or _find_stray_bytes(image, data)
            fault = fault or find_odd_storage(image, data)
            if decode and not fault:
                _load(image, data)
            return fault or image
    except Image.UnidentifiedImageError:
        return f"is no JPEG, PNG, WebP or BMP image that can be read; it begins with {data[:8]!r}"
    except Image.DecompressionBombError:
        return f"has more than {MAX_PIXELS} pixels"
    except DECODE_ERRORS as error:
        return f"{type(error).__name__}: {error}"


def find_refusal(image: Image.Image) -> str:
    """Return why an opened image is refused by its header, or ""."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        return f"{width} x {height} pixels are more than {MAX_PIXELS}"
    if image.mode not in _MODES:
        return (
            f"has pixels of mode {image.mode} (16 bits?), which decoders show differently; "
            "convert it to 8 bits"
        )
    if getattr(image, "default_image", False):
        return "is an animated PNG whose still image is no frame, which decoders show differently"
    if image.mode == "CMYK" and "adobe" not in image.info:
        return "is a CMYK JPEG without Adobe's marker, which decoders show inverted or not"
    return ""


def _find_stray_bytes(image: Image.Image, data: bytes) -> str:
    if image.format in ("JPEG", "MPO") and not _has_whole_header(data):
        return "has stray bytes between the JPEG's segments, which DALI refuses"
    return ""


def _load(image: Image.Image, data: bytes) -> None:
    """Decode an opened image. Raises one of `DECODE_ERRORS` if DALI or Pillow cannot decode it."""
    image.load()
    if image.format == "PNG":
        with Image.open(BytesIO(data), formats=("PNG",)) as again:
            # the checksums and the end: Pillow decodes an image without them, DALI does not
            again.verify()


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image with three channels, as the loaders read it: alpha is dropped."""
    # Pillow would warn of a palette with transparency; the colours are the same
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8; 1, that of the stored pixels, if it
    has none, or has it after the pixels of a PNG that was not decoded."""
    try:
        # PngImageFile's own `getexif` would decode the image
        orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except DECODE_ERRORS:  # damaged EXIF does no harm, it is not applied
        orientation = 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _has_whole_header(data: bytes) -> bool:
    """Return True if a JPEG's segments follow each other up to the first scan, which DALI's parser
    requires."""
    place = 2  # after the start-of-image marker
    while data[place : place + 1] == b"\xff":
        marker = data[place + 1]
        if marker == _START_OF_SCAN:
            return True
        if marker == 0xFF:
            place += 1  # a fill byte before the marker
        else:
            # two bytes of marker, then the segment, which begins with its own length
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def in_parallel(
    function: Callable[[_Job], _Result], jobs: Iterable[_Job], workers: int, *, processes: bool
) -> Iterator[_Result]:
    """Yield the results of the jobs, in order, from `workers` processes or threads; take few jobs
    in advance.

    The function and the jobs must be picklable for processes. Raises ValueError when one of the
    processes was killed, or could not start.
    """
    try:
        with _executor(workers, processes and workers > 1) as pool, _ending_processes():
            yield from _map_ahead(pool, function, jobs, _JOBS_AHEAD * workers)
    except BrokenProcessPool:
        raise ValueError(
            f"one of {workers} processes that read the data set has ended: is memory too small, or "
            'does a script call this outside of if __name__ == "__main__":?'
        ) from None


def _map_ahead(
    pool: Executor, function: Callable[[_Job], _Result], jobs: Iterable[_Job], ahead: int
) -> Iterator[_Result]:
    """Yield the results of the jobs, in order, with at most `ahead` of them submitted:
    `Executor.map` submits all at once, and there may be millions."""
    submitted: deque[Future[_Result]] = deque()
    try:
        for job in jobs:
            submitted.append(pool.submit(function, job))
            if len(submitted) >= ahead:
                yield submitted.popleft().result()
        while submitted:
            yield submitted.popleft().result()
    finally:
        # processes are ended, and Python 3.11 shows an error if a job of theirs was cancelled
        if isinstance(pool, ThreadPoolExecutor):
            for future in submitted:
                future.cancel()


@contextlib.contextmanager
def _ending_processes() -> Iterator[None]:
    """End the processes that were started in the block if it fails: an interrupt or an error must
    not wait for their present jobs."""
    others = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise


def _executor(workers: int, processes: bool) -> Executor:
    if not processes:
        return ThreadPoolExecutor(workers)
    # never fork: DALI's threads may run already
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, spawn, initializer=_follow_parent)


def _follow_parent() -> None:
    """Ignore interrupts, which the parent process handles, and end with the parent: otherwise this
    process would wait for jobs forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
