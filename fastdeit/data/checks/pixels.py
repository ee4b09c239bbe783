"""Images whose pixels DALI decodes differently from Pillow, or not at all, because of their form of
storage."""

from PIL.ImageFile import ImageFile

_SIXTEEN_BITS = ("BGR;15", "BGR;16")  # Pillow's names
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_SIGNATURE = 8  # bytes before the first chunk of a PNG


def find_odd_storage(image: ImageFile, data: bytes) -> str:
    """Return why an opened image, which is not decoded yet, is refused for the form of its pixels,
    or "".

    data: its encoded bytes, at least the header. Measured with DALI 2.4.
    """
    if image.format == "BMP" and _read_arguments(image)[0] in _SIXTEEN_BITS:
        return "is a BMP of 16 bits a pixel, which DALI refuses or shows differently"
    if image.format == "PPM" and image.tile[0][0] != "raw":
        return "is a PPM or PGM that stores no bytes of 0 to 255, which decoders show differently"
    if image.format != "PNG":
        return ""
    if image.mode == "P" and image.palette is None:
        return "is a palette PNG without a palette, which DALI refuses"
    chunk = _find_unknown_chunk(data)
    return f"has the PNG chunk {chunk!r}, which DALI refuses" if chunk else ""


def _read_arguments(image: ImageFile) -> tuple[object, ...]:
    """Return the arguments of Pillow's decoder; the first is the form of the pixels."""
    arguments = image.tile[0][3]
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _find_unknown_chunk(data: bytes) -> bytes:
    """Return the name of a PNG's first chunk that a decoder must know and libpng does not, or
    b""."""
    place = _SIGNATURE
    while place + 8 <= len(data):
        name = data[place + 4 : place + 8]
        if name[:1].isupper() and name not in _CRITICAL:
            return name
        if name == b"IEND":
            break
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return b""
