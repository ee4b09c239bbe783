"""Checks that an image can be trained on: readable as a whole, decoded once, within limits, and of
a kind that DALI decodes as Pillow does.

One file that does not decode costs DALI the whole batch. So refused here is what DALI 2.4 refuses
or decodes otherwise than Pillow's `convert("RGB")`; docs/data.md has the table,
tests/data/formats/test_check.py the tests. This module imports little, for each worker process
imports it.
"""

import contextlib
import errno
import itertools
import multiprocessing
import os
import signal
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from io import BytesIO
from typing import NamedTuple, TypeVar

from PIL import Image

from fastdeit.display.progress import track

MAX_PIXELS = 64 * 2**20
MAX_BYTES = 64 * 2**20
UNREAD = "cannot be read"
"""The first words of the fault of a file that may be readable the next time."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")  # PPM: the form in which DALI gets IDX
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
_ORIENTATION = 0x0112  # EXIF tag
_START_OF_SCAN = 0xDA  # JPEG marker
_HEADER_BYTES = 2**16
_CHUNK = 64  # images a worker takes at a time
_PROCESSES_FROM = 4000  # below this many, starting processes costs more than the decoding
_OF_PYTHON = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError)
_OF_SIZE = (OverflowError, MemoryError)
_OF_PILLOW = (Image.DecompressionBombError, Image.DecompressionBombWarning)
DECODE_ERRORS = (*_OF_PYTHON, *_OF_SIZE, struct.error, zlib.error, *_OF_PILLOW)

ByteRange = tuple[str, int, int]
"""File, offset and length of an encoded image; offset -1: the whole file."""
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


def read_place(place: ByteRange, at_most: int = MAX_BYTES) -> bytes:
    """Return the encoded image at a place, or its first `at_most` bytes. Raises OSError if the file
    is no regular file, too large, or too short."""
    file, offset, length = place
    facts = os.stat(file)
    if not stat.S_ISREG(facts.st_mode):
        raise OSError("it is no regular file")
    length = facts.st_size if offset < 0 else length
    if length > MAX_BYTES:
        raise OSError(f"{length} bytes are more than {MAX_BYTES}")
    length = min(length, at_most)
    with open(file, "rb") as opened:
        opened.seek(max(offset, 0))
        data = opened.read(length)
    if len(data) < length:
        raise OSError(f"only {len(data)} of {length} bytes are there")
    return data


def raise_own_fault(error: OSError) -> None:
    """Raise an error that says nothing about the file: this process may not open any more."""
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
    if isinstance(image, str):
        return image
    orientation = read_orientation(image)
    return ImageInfo(image.height, image.width, image.format or "", image.mode, orientation)


def open_image(data: bytes) -> Image.Image | str:
    """Return the decoded image of encoded bytes, as it is stored, if it can be trained on; else its
    fault."""
    if not data:
        return "is empty"
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            return find_refusal(image) or _load(image, data) or image
    except Image.UnidentifiedImageError:
        return f"is no JPEG, PNG, WebP or BMP image that can be read; it begins with {data[:8]!r}"
    except Image.DecompressionBombError:
        return f"has more than {MAX_PIXELS} pixels"
    except DECODE_ERRORS as error:
        return f"{type(error).__name__}: {error}"


def has_header(place: ByteRange, info: ImageInfo) -> bool:
    """Return True if the image at a place begins with the header of such an image; the rest is not
    decoded."""
    try:
        source = BytesIO(read_place(place, _HEADER_BYTES))
        with Image.open(source, formats=FORMATS) as image:
            found = (image.height, image.width, image.format, image.mode)
            return found == info[:4]
    except DECODE_ERRORS:
        return False


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


def _load(image: Image.Image, data: bytes) -> str:
    """Decode an opened image; return why it is refused although Pillow decodes it, or ""."""
    image.load()
    if image.format == "PNG":
        with Image.open(BytesIO(data), formats=("PNG",)) as again:
            # the checksums and the end: Pillow shows an image without them, DALI does not
            again.verify()
    elif image.format in ("JPEG", "MPO") and not _has_whole_header(data):
        return "has stray bytes between the JPEG's segments, which DALI refuses"
    return ""


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image with three channels, as the loaders read it: alpha is dropped."""
    # of a palette with transparency Pillow warns otherwise; the colours are the same
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded image, 1 to 8; 1, the stored one, if it has none."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except DECODE_ERRORS:  # damaged EXIF does no harm, it is not applied
        orientation = 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _has_whole_header(data: bytes) -> bool:
    """Return True if a JPEG's segments follow each other up to the first scan, which DALI's parser
    requires."""
    place = 2  # behind the start-of-image marker
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


def check_places(
    places: Sequence[ByteRange], known: Sequence[ImageInfo | None], workers: int
) -> Iterator[Checked]:
    """Yield `check_place` of each, in order, from threads or processes, with a progress bar if it
    takes long.

    known: for each, None, or the facts that are returned undecoded if its header still has them.
    """
    jobs = list(zip(places, known, strict=True))
    chunks = [jobs[i : i + _CHUNK] for i in range(0, len(jobs), _CHUNK)]
    many = len(places) >= _PROCESSES_FROM
    checked_chunks = in_parallel(_check_chunk, chunks, workers, processes=many)
    checked = itertools.chain.from_iterable(checked_chunks)
    yield from track(checked, len(places), "checking images")


def _check_chunk(jobs: Sequence[tuple[ByteRange, ImageInfo | None]]) -> list[Checked]:
    return [
        known if known and has_header(place, known) else check_place(place) for place, known in jobs
    ]


def in_parallel(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int, *, processes: bool
) -> Iterator[_Result]:
    """Yield the results of the jobs, in order, from `workers` processes or threads.

    The function and the jobs must be picklable. Raises ValueError when one of the processes was
    killed.
    """
    try:
        with _executor(workers, processes and workers > 1) as pool, _ending_processes():
            yield from pool.map(function, jobs)
    except BrokenProcessPool:
        raise ValueError(
            f"one of {workers} processes that read the data set was killed; is memory too small?"
        ) from None


@contextlib.contextmanager
def _ending_processes() -> Iterator[None]:
    """End the processes that were started in the block if it fails: an interrupt or an error must
    not wait for what they are doing."""
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
    """Ignore interrupts, which are for the process that started this one, and end with it: else
    this one would wait for jobs without end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
