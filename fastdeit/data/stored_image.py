"""Single images of an index as Pillow images, for pictures and analyses."""

from PIL import Image

from fastdeit.data.formats.check import UNREAD, open_image, to_rgb
from fastdeit.data.formats.listing import DataError
from fastdeit.data.index import Index


def read_stored_image(index: Index, row: int) -> Image.Image:
    """Return a stored image in RGB, as the loaders read it, without EXIF rotation.

    Raises DataError, which names the image, if it cannot be read or decoded.
    """
    try:
        found = open_image(index.read(row))
    except OSError as error:
        found = f"{UNREAD}: {error.strerror or error}"
    if isinstance(found, str):
        raise DataError(f"{index.root}: {index.name(row)} {found}")
    return to_rgb(found)
