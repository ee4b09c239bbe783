"""Which images the index takes: exactly those that DALI decodes, and decodes as Pillow does.
docs/data.md has the table."""

import io
import os
import re
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from fastdeit.data.formats import check
from fastdeit.data.formats.check import ImageInfo, check_image, check_place
from tests.support.decoding import decode_by_dali
from tests.support.launching import ROOT, clean_environment

PICTURE = np.stack(
    [(np.mgrid[:37, :53][0] * 5 + np.mgrid[:37, :53][1] * 3 * k) % 256 for k in (1, 2, 3)], -1
).astype(np.uint8)
RGB = Image.fromarray(PICTURE)
RGBA = Image.fromarray(np.dstack([PICTURE, PICTURE[..., :1] // 2]))
PALETTE = RGB.quantize(16)
CMYK = Image.fromarray(np.dstack([PICTURE, PICTURE[..., 1:2] // 2]), "CMYK")
ROTATED = Image.Exif()
ROTATED[0x0112] = 6


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(depth: int, colour: int, rows: list[bytes], width: int) -> bytes:
    """Return a PNG as Pillow cannot write it."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def bmp(bits: int, compression: int = 0, masks: tuple[int, ...] = ()) -> bytes:
    """Return a BMP as Pillow cannot write it; masks: of red, green and blue."""
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53 * bits // 8 // 4 * 4 + 4), np.uint8)
    fields = (40, 53, 37, 1, bits, compression, pixels.size, 0, 0, 0, 0)
    header = struct.pack("<IiiHHIIiiII", *fields) + struct.pack(f"<{len(masks)}I", *masks)
    start = 14 + len(header)
    return struct.pack("<2sIHHI", b"BM", start + pixels.size, 0, 0, start) + header + bytes(pixels)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def without_adobe(data: bytes) -> bytes:
    place = data.index(b"Adobe") - 4
    return data[:place] + data[place + 16 :]


def animated(image: Image.Image, kind: str, **options: object) -> bytes:
    return encoded(
        image, kind, save_all=True, append_images=[image.rotate(180), image.rotate(90)], **options
    )


JPEG, PNG = encoded(RGB, "JPEG"), encoded(RGB, "PNG")
WIDE = PICTURE.astype(">u2") * 257
WIDE_ALPHA = np.dstack([WIDE, WIDE[..., :1]])
COLOURS = chunk(b"gAMA", struct.pack(">I", 100_000)) + chunk(b"cICP", bytes([9, 16, 0, 1]))
SCAN = JPEG.index(b"\xff\xda")

TAKEN: dict[str, bytes] = {
    "jpeg": JPEG,
    "jpeg-progressive": encoded(RGB, "JPEG", progressive=True),
    "jpeg-grey": encoded(RGB.convert("L"), "JPEG"),
    "jpeg-cmyk": encoded(CMYK, "JPEG"),
    "jpeg-exif-rotated": encoded(RGB, "JPEG", exif=ROTATED),
    "jpeg-mpo": encoded(RGB, "MPO", save_all=True, append_images=[RGB]),
    "jpeg-corrupt-scan": flipped(flipped(JPEG, SCAN + 200), SCAN + 300),
    "jpeg-trailing-bytes": JPEG + b"junk",
    "png": PNG,
    "png-grey": encoded(RGB.convert("L"), "PNG"),
    "png-1-bit": encoded(RGB.convert("1"), "PNG"),
    "png-grey-alpha": encoded(RGBA.convert("LA"), "PNG"),
    "png-alpha": encoded(RGBA, "PNG"),
    "png-palette": encoded(PALETTE, "PNG"),
    "png-palette-transparency": encoded(PALETTE, "PNG", transparency=3),
    "png-palette-alpha": encoded(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))),
    "png-16-bit-rgb": png(16, 2, [row.tobytes() for row in WIDE], 53),
    "png-exif-rotated": encoded(RGB, "PNG", exif=ROTATED),
    "png-animated": animated(RGB, "PNG"),
    "png-16-bit-alpha": png(16, 6, [row.tobytes() for row in WIDE_ALPHA], 53),
    "png-colour-chunks": PNG[:33] + COLOURS + PNG[33:],
    "jpeg-padded-segments": JPEG[:2] + b"\xff\xff" + JPEG[2:],
    "jpeg-damaged-exif": JPEG[:2] + b"\xff\xe1\0\x10Exif\0\0garbage!" + JPEG[2:],
    "webp": encoded(RGB, "WEBP"),
    "webp-alpha": encoded(RGBA, "WEBP", lossless=True),
    "webp-animated": animated(RGB, "WEBP"),
    "bmp": encoded(RGB, "BMP"),
    "bmp-palette": encoded(PALETTE, "BMP"),
    "bmp-downwards": encoded(RGB, "BMP")[:22] + struct.pack("<i", -37) + encoded(RGB, "BMP")[26:],
    "pgm": encoded(RGB.convert("L"), "PPM"),
}
# what is refused, and how the message goes; DALI raises for these
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"hello, this is no image", "is no JPEG, PNG, WebP or BMP"),
    "zeros": (bytes(1000), "is no JPEG"),
    "gif": (encoded(RGB, "GIF"), r"begins with b'GIF8"),
    "avif-like": (b"\0\0\0\x20ftypavif" + bytes(100), "is no JPEG"),
    "jpeg-truncated": (JPEG[:-200], "truncated"),
    "jpeg-stray-bytes": (JPEG[:SCAN] + b"\0" + JPEG[SCAN:], "stray bytes"),
    "png-truncated": (PNG[: len(PNG) // 2], "truncated"),
    "png-without-end": (PNG[:-12], "truncated"),
    "png-wrong-checksum": (flipped(PNG, len(PNG) - 14), "bad header checksum|broken PNG"),
    "webp-truncated": (encoded(RGB, "WEBP")[:-100], "OSError"),
    "bmp-15-bit": (bmp(16), "BMP of 16 bits"),
    "png-no-palette": (png(8, 3, [bytes(53)] * 37, 53), "palette PNG without a palette"),
    "png-unknown-chunk": (PNG[:33] + chunk(b"ABCD", b"") + PNG[33:], "chunk b'ABCD'"),
    "bmp-truncated": (encoded(RGB, "BMP")[:-100], "truncated"),
}
# DALI decodes these to another picture than Pillow
AMBIGUOUS: dict[str, tuple[bytes, str]] = {
    "png-16-bit-grey": (encoded(Image.fromarray(WIDE[..., 0].astype(np.uint16)), "PNG"), "16 bits"),
    "png-animated-still": (animated(RGB, "PNG", default_image=True), "still image is no frame"),
    "ppm-small-values": (b"P6 53 37 100\n" + bytes(PICTURE // 3), "stores no bytes of 0 to 255"),
    "jpeg-cmyk-no-adobe": (without_adobe(TAKEN["jpeg-cmyk"]), "Adobe"),
}


@pytest.mark.filterwarnings("ignore:Palette images")
@pytest.mark.parametrize("kind", TAKEN)
def test_accepted_images_are_decoded_alike_by_dali_and_pillow(kind: str) -> None:
    checked = check_image(TAKEN[kind])
    assert isinstance(checked, ImageInfo) and checked[:2] == (37, 53)
    expected = np.asarray(Image.open(io.BytesIO(TAKEN[kind])).convert("RGB"))
    whole, window = decode_by_dali(TAKEN[kind])
    # CMYK is rounded otherwise
    np.testing.assert_allclose(whole, expected, atol=1 if kind == "jpeg-cmyk" else 0)
    np.testing.assert_array_equal(window, whole[1:4, 2:6])


@pytest.mark.parametrize("kind", REFUSED)
def test_images_that_dali_refuses_are_refused(kind: str) -> None:
    data, message = REFUSED[kind]
    checked = check_image(data)
    assert isinstance(checked, str)
    assert re.search(message, checked)
    with pytest.raises(RuntimeError):
        decode_by_dali(data or b"\0")


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_images_that_decoders_show_differently_are_refused(kind: str) -> None:
    data, message = AMBIGUOUS[kind]
    checked = check_image(data)
    assert isinstance(checked, str) and message in checked
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode_by_dali(data)[0] - pillow).mean() > 20


def test_a_bmp_whose_colours_are_rounded_otherwise_is_refused() -> None:
    data = bmp(16, 3, (0xF800, 0x7E0, 0x1F))
    checked = check_image(data)
    assert isinstance(checked, str) and "BMP of 16 bits" in checked
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert 1 < np.abs(decode_by_dali(data)[0] - pillow).max() < 10


def test_the_facts_of_an_image_are_returned() -> None:
    assert check_image(TAKEN["jpeg-exif-rotated"]) == ImageInfo(37, 53, "JPEG", "RGB", 6)
    assert check_image(TAKEN["png-palette"]) == ImageInfo(37, 53, "PNG", "P", 1)


def bomb() -> bytes:
    return png(8, 2, [b""] * 30_000, 30_000)


def test_decompression_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    assert check_image(bomb()) == f"has more than {check.MAX_PIXELS} pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # Pillow's own guard
    assert check_image(bomb()) == f"30000 x 30000 pixels are more than {check.MAX_PIXELS}"


def test_a_large_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    file = tmp_path / "large.jpg"
    with file.open("wb") as opened:
        opened.truncate(check.MAX_BYTES + 1)
    assert (
        check_image(str(file))
        == f"cannot be read: {check.MAX_BYTES + 1} bytes are more than {check.MAX_BYTES}"
    )


def make_socket(path: Path) -> None:
    os.chdir(path.parent)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


KINDS: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "socket": make_socket,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "broken-link": lambda path: path.symlink_to("nothing"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_opened(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    KINDS[kind](tmp_path / "x.jpg")
    checked = check_image(str(tmp_path / "x.jpg"))
    missing = "No such file or directory"
    reason = missing if kind == "broken-link" else "it is no regular file"
    assert checked == f"cannot be read: {reason}"


def test_a_file_without_permission_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.jpg").write_bytes(JPEG)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)  # tests may run as root, who may read all
    assert check_image(str(tmp_path / "x.jpg")) == "cannot be read: Permission denied"


def test_a_range_of_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "all").write_bytes(b"before" + JPEG + b"behind")
    assert check_place((str(tmp_path / "all"), 6, len(JPEG))) == ImageInfo(37, 53, "JPEG", "RGB", 1)
    assert (
        check_place((str(tmp_path / "all"), 99, len(JPEG)))
        == f"cannot be read: only {len(JPEG) - 87} of {len(JPEG)} bytes are there"
    )


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import time\n"
        "from fastdeit.data.formats.check import in_parallel\n"
        "if __name__ == '__main__':\n"
        "    for _ in in_parallel(time.sleep, [0, 0, 30, 30, 30], 2, processes=True):\n"
        "        print('started', flush=True)\n"
    )
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    children = psutil.Process(process.pid).children()
    assert len(children) >= 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
