"""One packed image: the pixels of the loader, resized by Pillow once, and nothing else of the
file."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdeit.data.formats.check import ImageInfo, check_image
from fastdeit.data.packing.encode import Encoding, Packed, pack_image
from tests.support.decoding import decode_by_dali

ENCODING = Encoding(resize=32)


def picture(mode: str = "RGB", width: int = 61, height: int = 47) -> Image.Image:
    """Return an image of smooth noise."""
    random = np.random.default_rng(3)
    small = Image.fromarray(random.integers(0, 256, (6, 8, 4), dtype=np.uint8), "RGBA")
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def packed(data: bytes, encoding: Encoding = ENCODING) -> Packed:
    info = check_image(data)
    assert isinstance(info, ImageInfo)
    result = pack_image(data, (info.height, info.width), encoding)
    assert isinstance(result, Packed), result
    return result


def opened(data: bytes) -> Any:
    return Image.open(io.BytesIO(data))


KINDS = {
    "jpeg": encoded(picture(), "JPEG", quality=95),
    "cmyk": encoded(picture("CMYK"), "JPEG"),
    "rgba": encoded(picture("RGBA"), "PNG"),
    "palette": encoded(picture("P"), "PNG", transparency=3),
    "grey": encoded(picture("L"), "PNG"),
    "grey-alpha": encoded(picture("LA"), "PNG"),
    "bits": encoded(picture("1"), "PNG"),
    "webp": encoded(picture(), "WEBP", lossless=True),
    "bmp": encoded(picture(), "BMP"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_that_dali_decodes_are_resized_once(kind: str) -> None:
    whole, _ = decode_by_dali(KINDS[kind])
    if kind == "cmyk":  # DALI rounds it otherwise, by 1 (docs/data.md)
        whole = np.asarray(opened(KINDS[kind]).convert("RGB"))
    shrunk = Image.fromarray(whole).resize((32 * 61 // 47, 32), Image.Resampling.BICUBIC)
    is_grey = kind in ("grey", "grey-alpha", "bits")
    shrunk = shrunk.getchannel(0) if is_grey else shrunk
    expected = encoded(shrunk, "JPEG", quality=90, subsampling="4:2:0")
    assert packed(KINDS[kind]) == (expected, ".jpg")


def test_the_settings_decide_the_file() -> None:
    data = KINDS["jpeg"]
    fine = opened(packed(data, Encoding(40, 97, "4:4:4")).data)
    assert fine.size == (40 * 61 // 47, 40)
    assert [layer[1:3] for layer in fine.layer] == [(1, 1)] * 3
    coarse = opened(packed(data).data)
    assert [layer[1:3] for layer in coarse.layer] == [(2, 2), (1, 1), (1, 1)]
    assert len(packed(data, Encoding(32, 50)).data) < len(packed(data).data)


def test_rotation_profile_and_comment_are_dropped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    extras = {"exif": exif, "icc_profile": b"profile", "comment": b"a comment"}
    data = encoded(picture(), "JPEG", quality=95, **extras)
    plain = packed(encoded(picture(), "JPEG", quality=95))
    assert packed(data) == plain  # stored pixels, not turned
    assert set(opened(plain.data).info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_a_small_jpeg_keeps_its_bytes_and_others_become_jpeg() -> None:
    large = Encoding(resize=47)
    assert packed(KINDS["jpeg"], large) == (KINDS["jpeg"], ".jpg")
    result = opened(packed(KINDS["rgba"], large).data)
    assert (result.format, result.mode, result.size) == ("JPEG", "RGB", (61, 47))


def test_a_copy_has_the_bytes_and_the_extension_of_its_format() -> None:
    copy = Encoding(copy=True)
    for kind, suffix in {"jpeg": ".jpg", "rgba": ".png", "webp": ".webp", "bmp": ".bmp"}.items():
        assert packed(KINDS[kind], copy) == (KINDS[kind], suffix)


def test_pixels_of_idx_files_are_copied_as_png() -> None:
    pixels = np.arange(35, dtype=np.uint8).reshape(5, 7)
    result = packed(b"P5 7 5 255\n" + pixels.tobytes(), Encoding(copy=True))
    assert result.suffix == ".png" and opened(result.data).format == "PNG"
    np.testing.assert_array_equal(np.asarray(opened(result.data)), pixels)


@pytest.mark.parametrize("copy", [False, True])
def test_what_cannot_be_trained_on_is_a_fault(copy: bool) -> None:
    encoding = Encoding(32, copy=copy)
    assert "begins with" in str(pack_image(b"no image", (1, 1), encoding)) or copy
    deep = encoded(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG")
    assert "16 bits" in str(pack_image(deep, (4, 4), encoding))
    other = pack_image(KINDS["jpeg"], (9, 9), encoding)
    assert other == "is (47, 61) high and wide, the index has (9, 9)"
    assert isinstance(pack_image(b"no image", (1, 1), encoding), str)


def test_a_truncated_image_is_a_fault() -> None:
    assert "truncated" in str(pack_image(KINDS["jpeg"][:-200], (47, 61), ENCODING))


def test_an_image_too_long_for_a_jpeg_is_a_fault() -> None:
    long = encoded(Image.new("L", (65_501, 2)), "PNG")
    fault = pack_image(long, (2, 65_501), ENCODING)
    assert fault == "is 65501 pixels long; a JPEG has at most 65500"
