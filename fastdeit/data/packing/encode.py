"""One packed image: shrunk and encoded as a JPEG file, or with unchanged bytes."""

from dataclasses import dataclass
from io import BytesIO
from typing import Literal, NamedTuple

from PIL import Image

from fastdeit.data.formats.check import open_image, to_rgb

Subsampling = Literal["4:2:0", "4:4:4"]
FILTER = "bicubic"
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp"}
_PIXELS = b"P"  # the first byte of PGM and PPM, in which IDX and CIFAR are read; of no other format
_GREY = ("1", "L", "LA")
_MAX_SIDE = 65_500  # of libjpeg


@dataclass(frozen=True)
class Encoding:
    """The settings of one image's encoding."""

    resize: int = 288
    """The pixels of the short side to which a larger image is shrunk."""
    quality: int = 90
    """The quality of the JPEG files, 1 to 100."""
    subsampling: Subsampling = "4:2:0"
    """The resolution of the stored colours: 4:2:0 is half that of the image, 4:4:4 the full one."""
    copy: bool = False
    """Whether the bytes of the source are copied; the other settings are then unused."""


class Packed(NamedTuple):
    """An encoded image, and the extension of its format."""

    data: bytes
    suffix: str


def pack_image(data: bytes, size: tuple[int, int], encoding: Encoding) -> Packed | str:
    """Return a packed image, or the fault of one that cannot be packed.

    data: the encoded image; size: the height and width that it must have. The bytes of a JPEG that
    is small enough are copied, too. Images of IDX and CIFAR files, which are not image files, are
    copied as PNG.
    """
    # an image of an IDX or CIFAR file has no image file to copy
    has_file = not data.startswith(_PIXELS)
    image = open_image(data, decode=not (encoding.copy and has_file))
    if isinstance(image, str):
        return image
    if (image.height, image.width) != size:
        return f"is {(image.height, image.width)} high and wide, the index has {size}"
    if encoding.copy and not has_file:
        return Packed(_save(image, "PNG"), ".png")
    suffix = _SUFFIXES.get(image.format or "", "")
    is_small = suffix == ".jpg" and min(image.size) <= encoding.resize
    if encoding.copy or is_small:
        return Packed(data, suffix)
    return _compress(shrink(image, encoding.resize), encoding)


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Return a decoded image in RGB or grey, whose short side has at most `side` pixels.

    It is resized once, by Pillow's bicubic filter; the length of the long side is rounded down, as
    in torchvision's Resize.
    """
    pixels = image.convert("L") if image.mode in _GREY else to_rgb(image)
    short = min(pixels.size)
    if short <= side:
        return pixels
    width, height = (side * length // short for length in pixels.size)
    return pixels.resize((width, height), Image.Resampling.BICUBIC)


def _compress(pixels: Image.Image, encoding: Encoding) -> Packed | str:
    if max(pixels.size) > _MAX_SIDE:
        return f"is {max(pixels.size)} pixels long; a JPEG has at most {_MAX_SIDE}"
    options = {"quality": encoding.quality, "subsampling": encoding.subsampling}
    return Packed(_save(pixels, "JPEG", **options), ".jpg")


def _save(image: Image.Image, kind: str, **options: int | str) -> bytes:
    """Return the bytes of a file with the pixels alone: no EXIF rotation, profile or comment."""
    plain = image.copy()
    plain.info = {}
    buffer = BytesIO()
    plain.save(buffer, kind, **options)
    return buffer.getvalue()
