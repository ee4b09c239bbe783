"""The check of an image by its header: size, mode and format from its first bytes.

It takes about a twentieth of the time of decoding. A header must meet the same conditions as that
of a decoded image. Damage behind it is not seen, except that an image which does not end as its
format does is decoded: most damaged files are cut short.
"""

import os

from fastdeit.data.formats.check import (
    MAX_BYTES,
    UNREAD,
    ByteRange,
    Checked,
    ImageInfo,
    check_place,
    describe_image,
    locate,
    open_image,
    raise_own_fault,
)

# bytes read until the header is whole: EXIF and colour profiles may precede a JPEG's size
_FIRST_BYTES = (2**14, 2**18, 2**22, MAX_BYTES)
_END_OF_JPEG = b"\xff\xd9"
_END_OF_PNG = b"\0\0\0\0IEND\xaeB`\x82"


def check_header(place: ByteRange) -> tuple[Checked, bool]:
    """Return the facts of an image, if its header shows no reason against it, else its fault; and
    whether it was decoded for that."""
    try:
        checked, ends_well = _read_header(place)
    except OSError as error:
        raise_own_fault(error)
        return f"{UNREAD}: {error.strerror or error}", False
    if isinstance(checked, str) or ends_well:
        return checked, False
    return check_place(place), True


def has_header(place: ByteRange, info: ImageInfo) -> bool:
    """Return True if the header of the image at a place has these facts."""
    try:
        return _read_header(place)[0][:4] == info[:4]
    except OSError as error:
        raise_own_fault(error)
        return False


def _read_header(place: ByteRange) -> tuple[Checked, bool]:
    """Return the facts or the fault in an image's header, and whether the image ends as its format
    does. Raises OSError as `locate` does."""
    offset, length = locate(place)
    with open(place[0], "rb", buffering=0) as opened:
        for at_most in _FIRST_BYTES:
            first = os.pread(opened.fileno(), min(at_most, length), offset)
            image = open_image(first, decode=False)
            if not isinstance(image, str) or at_most >= length:
                break
        end = os.pread(
            opened.fileno(), len(_END_OF_PNG), offset + max(length - len(_END_OF_PNG), 0)
        )
    if isinstance(image, str):
        return image, True
    info = describe_image(image)
    return info, _ends_well(info.format, first, end, length)


def _ends_well(form: str, first: bytes, end: bytes, length: int) -> bool:
    """Return True if an image of `length` bytes ends as those of its format do; False for a format
    without a fixed end.

    first, end: the bytes with which the image begins and ends.
    """
    if form in ("JPEG", "MPO"):
        return end.endswith(_END_OF_JPEG)
    if form == "PNG":
        return end == _END_OF_PNG
    # RIFF: a name of four bytes, then the length of what follows it
    return form == "WEBP" and int.from_bytes(first[4:8], "little") + 8 == length
