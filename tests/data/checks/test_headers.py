"""Checks by header agree with those by decoding in all that a header shows, and read little."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fastdeit.data.checks import headers
from fastdeit.data.checks.headers import check_header, has_header
from fastdeit.data.formats.check import ByteRange, ImageInfo, check_place
from tests.data.formats.test_check import (
    AMBIGUOUS,
    JPEG,
    KINDS,
    PNG,
    REFUSED,
    RGB,
    ROTATED,
    TAKEN,
    bomb,
    encoded,
    flipped,
)

# damage behind the header, in a file that ends as it should
_UNSEEN = {"png-wrong-checksum"}
_BY_HEADER = [name for name in TAKEN if not name.startswith(("bmp", "pgm"))]


@pytest.fixture
def place(tmp_path: Path) -> ByteRange:
    """A place in a file that does not exist yet."""
    return str(tmp_path / "image"), -1, 0


def write(place: ByteRange, data: bytes) -> None:
    Path(place[0]).write_bytes(data)


@pytest.mark.parametrize("kind", [*TAKEN, *REFUSED, *AMBIGUOUS])
def test_a_header_is_judged_as_the_decoded_image_is(kind: str, place: ByteRange) -> None:
    data = TAKEN[kind] if kind in TAKEN else {**REFUSED, **AMBIGUOUS}[kind][0]
    write(place, data)
    found, is_decoded = check_header(place)
    if kind in _UNSEEN:
        assert found == ImageInfo(37, 53, "PNG", "RGB", 1) and not is_decoded
    else:
        assert found == check_place(place)


@pytest.mark.parametrize("kind", [name for name in _BY_HEADER if "trailing" not in name])
def test_whole_images_are_not_decoded(
    kind: str, place: ByteRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "check_place", lambda _: pytest.fail("was decoded"))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("was decoded"))
    write(place, TAKEN[kind])
    assert isinstance(check_header(place)[0], ImageInfo)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_an_image_cut_anywhere_is_refused(kind: str, place: ByteRange) -> None:
    data = encoded(RGB, kind)
    # nothing is missed where the last bytes alone are absent
    for missing in (len(data), len(data) - 20, len(data) // 2, 100, 13, 1):
        write(place, data[: len(data) - missing])
        found, _ = check_header(place)
        assert found == check_place(place)
        assert isinstance(found, str) or missing == 1


def noisy(side: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def spy_on_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    lengths: list[int] = []
    pread = os.pread

    def spy(file: int, length: int, offset: int) -> bytes:
        lengths.append(length)
        return pread(file, length, offset)

    monkeypatch.setattr(os, "pread", spy)
    return lengths


def test_few_bytes_are_read_of_a_large_file(
    place: ByteRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(place, encoded(noisy(600), "JPEG", quality=95))
    lengths = spy_on_reads(monkeypatch)
    assert check_header(place) == (ImageInfo(600, 600, "JPEG", "RGB", 1), False)
    assert sum(lengths) < 2**15 < os.path.getsize(place[0])


@pytest.mark.parametrize("profile", [2**16, 2**19])
def test_a_size_behind_long_segments_is_found(
    profile: int, place: ByteRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noisy(3000)
    write(place, encoded(image, "JPEG", quality=99, icc_profile=b"x" * profile, exif=ROTATED))
    lengths = spy_on_reads(monkeypatch)
    assert check_header(place) == (ImageInfo(3000, 3000, "JPEG", "RGB", 6), False)
    assert sum(lengths) < 2**23 < os.path.getsize(place[0])


def test_a_webp_file_longer_than_the_first_read_is_not_decoded(place: ByteRange) -> None:
    write(place, encoded(noisy(400), "WEBP", lossless=True))
    assert os.path.getsize(place[0]) > 2**18
    assert check_header(place) == (ImageInfo(400, 400, "WEBP", "RGB", 1), False)
    assert has_header(place, ImageInfo(400, 400, "WEBP", "RGB", 6))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_image_with_bytes_behind_its_end_is_decoded(kind: str, place: ByteRange) -> None:
    write(place, encoded(RGB, kind) + bytes(20))
    assert check_header(place) == (check_place(place), True)


def test_a_range_of_a_shard_is_read(tmp_path: Path) -> None:
    file = tmp_path / "all.tar"
    file.write_bytes(PNG + JPEG + PNG)
    place = (str(file), len(PNG), len(JPEG))
    assert check_header(place) == (ImageInfo(37, 53, "JPEG", "RGB", 1), False)
    assert check_header((str(file), len(PNG), len(JPEG) - 5))[1]  # decoded: no end
    for beyond in ((str(file), 2 * len(PNG), len(JPEG) + 9), (str(file), 10**9, 5)):
        found, _ = check_header(beyond)
        assert found == check_place(beyond) and "bytes are there" in str(found)


def test_a_bomb_is_refused_by_its_header(place: ByteRange, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place, bomb())
    assert check_header(place) == (check_place(place), False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # Pillow's own guard
    assert "pixels are more than" in str(check_header(place)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_opened(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    KINDS[kind](tmp_path / "x.jpg")
    place = (str(tmp_path / "x.jpg"), -1, 0)
    assert check_header(place)[0] == check_place(place)
    assert not has_header(place, ImageInfo(37, 53, "JPEG", "RGB", 1))


def test_another_header_is_recognised(place: ByteRange) -> None:
    write(place, JPEG)
    assert has_header(place, ImageInfo(37, 53, "JPEG", "RGB", 8))
    for other in ((38, 53, "JPEG", "RGB"), (37, 53, "PNG", "RGB"), (37, 53, "JPEG", "L")):
        assert not has_header(place, ImageInfo(*other, 1))
    write(place, JPEG[:100])
    assert not has_header(place, ImageInfo(37, 53, "JPEG", "RGB", 1))


def test_orientation_behind_the_pixels_of_a_png_is_not_read(place: ByteRange) -> None:
    buffer = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add(b"eXIf", ROTATED.tobytes()[6:], after_idat=True)
    RGB.save(buffer, "PNG", pnginfo=text)
    write(place, buffer.getvalue())
    assert check_header(place) == (ImageInfo(37, 53, "PNG", "RGB", 1), False)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_header_never_raises(place: ByteRange) -> None:
    random = np.random.default_rng(1)
    seeds = [TAKEN[name] for name in ("jpeg", "jpeg-mpo", "png-palette", "webp", "bmp")]
    for number in range(200):
        data = seeds[number % len(seeds)]
        for _ in range(3):
            data = flipped(data, int(random.integers(0, min(len(data), 200))))
        write(place, data)
        found, is_decoded = check_header(place)
        if isinstance(found, str) and not is_decoded:
            assert isinstance(check_place(place), str), found
