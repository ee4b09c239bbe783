"""The trial of a packing on a few images: their bytes, the difference of their pixels to those of
the source, and the time of decoding."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from fastdeit.data.formats.check import DECODE_ERRORS, in_parallel, to_rgb
from fastdeit.data.index import Index
from fastdeit.data.packing.encode import Encoding, Packed, pack_image

IMAGES = 128
SIZE = 224
"""The side in pixels at which packed and source images are compared."""
AREAS = (1.0, 0.54, 0.08)
"""The shares of an image's area, in its centre, that are compared: all of it, and the mean and the
smallest share of RandomResizedCrop(scale=(0.08, 1))."""
_PEAK = 255


@dataclass(frozen=True)
class Trial:
    """The result of packing some images."""

    images: int
    mean_bytes: float
    """The mean size of a packed image."""
    psnr_db: tuple[float, ...] = ()
    """The PSNR in dB for each of AREAS, over all images and colours; inf: equal pixels. Empty if no
    image differs."""
    decode_ratio: float = 1.0
    """The CPU time of decoding the packed images, divided by that of decoding the source's."""


@dataclass(frozen=True)
class _Compared:
    size: int
    errors: Sequence[float]
    """The mean squared error for each of AREAS."""
    decode_s: tuple[float, float]
    """The CPU time of decoding the packed image, and the source's."""


def try_images(index: Index, encoding: Encoding, workers: int) -> Trial:
    """Pack images from all over an index, in memory, and compare them with the source's; damaged
    images are skipped."""
    rows = np.unique(np.linspace(0, len(index) - 1, IMAGES).astype(int)).tolist()

    def compare(row: int) -> _Compared | None:
        try:
            return _compare(index.read(row), tuple(index.sizes[row].tolist()), encoding)
        except DECODE_ERRORS:
            return None

    found = [one for one in in_parallel(compare, rows, workers, processes=False) if one]
    if not found:
        return Trial(0, float(index.num_bytes.mean()))
    errors = np.mean([one.errors for one in found], axis=0)
    with np.errstate(divide="ignore"):
        psnr = 10 * np.log10(_PEAK**2 / errors)
    packed_s, source_s = np.sum([one.decode_s for one in found], axis=0)
    return Trial(
        len(found),
        float(np.mean([one.size for one in found])),
        tuple(round(float(value), 1) for value in psnr) if errors.any() else (),
        float(packed_s / source_s),
    )


def _compare(data: bytes, size: tuple[int, int], encoding: Encoding) -> _Compared | None:
    packed = pack_image(data, size, encoding)
    if not isinstance(packed, Packed):
        return None
    source, source_s = _decode(data)
    image, packed_s = _decode(packed.data)
    errors = [_squared_error(source, image, area) for area in AREAS]
    return _Compared(len(packed.data), errors, (packed_s, source_s))


def _decode(data: bytes) -> tuple[Image.Image, float]:
    """Return an image in RGB, and the seconds of CPU time that its decoding took."""
    started = time.thread_time()
    with Image.open(BytesIO(data)) as image:
        image.load()
    seconds = time.thread_time() - started
    return to_rgb(image), seconds


def _squared_error(one: Image.Image, other: Image.Image, area: float) -> float:
    first, second = (_view(image, area).astype(np.float64) for image in (one, other))
    return float(((first - second) ** 2).mean())


def _view(image: Image.Image, area: float) -> np.ndarray:
    """Return uint8 (SIZE, SIZE, 3): the centre of an image with a share of its area, resized."""
    sides = np.array(image.size)
    margin = sides * (1 - area**0.5) / 2
    box = (*margin.tolist(), *(sides - margin).tolist())
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))
