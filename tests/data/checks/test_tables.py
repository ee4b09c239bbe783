"""Tables checked by headers, decoded later, in parts, by several processes, and interrupted."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastdeit.data.checks import jobs, tables, work
from fastdeit.data.checks.facts import header_only
from fastdeit.data.checks.work import ImageCheck
from fastdeit.data.formats import check
from fastdeit.data.formats.detect import find_split, list_split
from fastdeit.data.indexing import build_index, split_table
from fastdeit.data.snapshot import keep_images, reconcile
from tests.data.checks.test_headers import flipped
from tests.data.test_index import settle
from tests.support.images import write_shapes

IMAGES = 24
DECODE = ImageCheck("decode")
HEADERS = ImageCheck("headers")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "set", train=IMAGES // 3, val=1)


def damage(root: Path) -> Path:
    """Damage the pixels of an image behind its header; its end stays."""
    file = root / "train/circle/00.png"
    data = file.read_bytes()
    file.write_bytes(flipped(data, len(data) - 14))
    return file


def count_decoded(root: Path, wanted: ImageCheck, again: bool = True) -> int:
    """Return the number of images in the table of a check that were decoded."""
    table = split_table(root, "train", find_split(root, "train"), again=again, wanted=wanted)
    assert len(table) == IMAGES
    return int((~header_only(table)).sum())


def test_headers_alone_are_checked_and_decoded_later(root: Path, decoded: list[str]) -> None:
    damage(root)
    first = build_index(root, "train", check="headers")
    assert len(first) == IMAGES and not decoded and not first.excluded
    assert first.header_only is not None and first.header_only.all()
    assert first.notes[-1].startswith(f"headers only: {IMAGES} of {IMAGES} images; `fastdeit index")
    assert build_index(root, "train").fingerprint() == first.fingerprint() and not decoded
    whole = build_index(root, "train", check="decode", bad_images="skip")
    assert len(decoded) == IMAGES and len(whole) == IMAGES - 1
    assert whole.excluded[0].startswith("train/circle/00.png: ")
    assert not whole.notes and whole.header_only is not None and not whole.header_only.any()
    decoded.clear()
    for kind in ("decode", "headers", "auto"):
        again = build_index(root, "train", check=kind, bad_images="skip", again=True)
        assert again.fingerprint() == whole.fingerprint() and not decoded


def test_the_fingerprint_does_not_depend_on_the_check(root: Path, tmp_path: Path) -> None:
    indexes = [
        build_index(root, "train", check=kind, cache_dir=tmp_path / kind)
        for kind in ("headers", "decode")
    ]
    assert indexes[0].fingerprint() == indexes[1].fingerprint()
    assert indexes[0].sizes.tolist() == indexes[1].sizes.tolist()


@pytest.mark.parametrize(
    ("images", "size"), [(IMAGES - 1, 2**40), (10**9, 1000)], ids=["images", "bytes"]
)
def test_large_sets_are_checked_by_their_headers(
    root: Path, images: int, size: int, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "DECODED_IMAGES", images)
    monkeypatch.setattr(work, "DECODED_BYTES", size)
    assert build_index(root, "train").header_only is not None and not decoded
    # what is added later is little, and decoded
    shutil.copy(root / "val/circle/00.png", root / "train/circle/new.png")
    if size > 1000:
        assert len(build_index(root, "train")) == IMAGES + 1 and decoded == ["new.png"]


def test_small_sets_are_decoded(root: Path, decoded: list[str]) -> None:
    assert not build_index(root, "train").notes
    assert len(decoded) == IMAGES


def test_parts_decode_every_image_once(root: Path, decoded: list[str]) -> None:
    counts = [count_decoded(root, ImageCheck("decode", (part, 5))) for part in range(1, 6)]
    assert counts == [4, 9, 14, 19, 24]
    assert len(decoded) == len(set(decoded)) * 3 == IMAGES


def test_the_results_of_processes_at_the_same_time_are_added(
    root: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count_decoded(root, HEADERS)
    check_place = check.check_place

    def check_slowly(place: check.ByteRange) -> check.Checked:
        if len(decoded) == 3:  # in the midst of the second part, another process does the first
            decoded.append("once")
            count_decoded(root, ImageCheck("decode", (1, 2)))
        return check_place(place)

    monkeypatch.setattr(check, "check_place", check_slowly)
    assert count_decoded(root, ImageCheck("decode", (2, 2))) == IMAGES
    decoded.clear()
    # nor is a header compared
    monkeypatch.setattr(jobs, "has_header", lambda *_: pytest.fail("is not sure"))
    assert count_decoded(root, DECODE, again=False) == IMAGES and not decoded


class Interrupted(KeyboardInterrupt):
    pass


def interrupt_at(number: int, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the check of image `number` from now on."""
    check_place = check.check_place

    def check_until(place: check.ByteRange) -> check.Checked:
        if len(decoded) == number:
            raise Interrupted
        return check_place(place)

    monkeypatch.setattr(check, "check_place", check_until)
    monkeypatch.setattr(work, "_CHUNK", 1)


@pytest.mark.parametrize("was_indexed", [False, True])
def test_what_was_checked_before_an_interrupt_is_not_checked_again(
    was_indexed: bool, root: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(root)
    if was_indexed:
        count_decoded(root, HEADERS)
    with monkeypatch.context() as patched:
        interrupt_at(10, decoded, patched)
        with pytest.raises(Interrupted):
            build_index(root, "train", check="decode", workers=1)
    assert len(decoded) == 10
    if was_indexed:  # a run that starts meanwhile uses what there is
        assert (~build_index(root, "train").header_only).sum() == 10  # type: ignore[operator]
        assert len(decoded) == 10
    assert count_decoded(root, DECODE, again=False) == IMAGES
    assert len(decoded) == IMAGES


def test_a_copied_table_is_not_lost_by_an_interrupt(
    root: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(root, "train")
    copy = shutil.copytree(root, tmp_path / "copy")
    damage(copy)
    decoded.clear()
    with monkeypatch.context() as patched:
        interrupt_at(0, decoded, patched)
        with pytest.raises(Interrupted):
            build_index(copy, "train", workers=1)
    assert len(build_index(copy, "train", bad_images="skip")) == IMAGES - 1
    assert decoded == ["00.png"]


def test_facts_that_an_interrupt_left_uncompared_are_compared_by_the_next_start(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(root, "train")
    copy = shutil.copytree(root, tmp_path / "copy")
    compared: list[str] = []
    has_header = jobs.has_header

    def compare(place: check.ByteRange, info: check.ImageInfo) -> bool:
        if len(compared) == most:
            raise Interrupted
        compared.append(place[0])
        return has_header(place, info)

    monkeypatch.setattr(jobs, "has_header", compare)
    monkeypatch.setattr(work, "_CHUNK", 1)
    most = 10
    with pytest.raises(Interrupted):
        build_index(copy, "train", workers=1)
    most = -1
    build_index(copy, "train", workers=1)
    assert len(compared) == len(set(compared)) == IMAGES


def test_results_are_stored_now_and_then(
    root: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_STORE_EVERY_S", 0.0)
    monkeypatch.setattr(tables, "_STORING_SHARE", 0)
    monkeypatch.setattr(work, "_CHUNK", 1)
    stored: list[int] = []
    write = tables.pq.write_table

    def spy(table: pa.Table, *arguments: Any, **options: Any) -> None:
        stored.append(len(table))
        write(table, *arguments, **options)

    monkeypatch.setattr(tables.pq, "write_table", spy)
    build_index(root, "train", workers=1)
    assert stored == [*range(1, IMAGES + 1), IMAGES]


def test_storing_takes_a_small_share_of_the_time(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    stored: list[float] = []

    def store_slowly(building: tables._Building) -> None:
        stored.append(now[0])
        now[0] += 10

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(tables._Building, "store", store_slowly)
    listing = list_split(root, find_split(root, "train"), None, 1)
    building = tables._Building(listing, {}, [])
    for _ in range(2000):
        now[0] += 1
        building.store_in_time()
    assert stored[0] == 60 and 8 <= len(stored) <= 11


def test_a_run_keeps_its_images_when_they_are_decoded_later(root: Path, tmp_path: Path) -> None:
    damage(root)
    then = build_index(root, "train", check="headers")
    keep_images(then, tmp_path / "images.parquet")
    now = build_index(root, "train", check="decode", bad_images="skip")
    kept, gone = reconcile(now, tmp_path / "images.parquet")
    assert kept.fingerprint() == then.fingerprint() and len(gone) == 1
    assert kept.header_only is not None and kept.header_only.all()
    assert kept.name(*gone) == "train/circle/00.png"


def test_a_table_without_the_column_was_decoded(root: Path, decoded: list[str]) -> None:
    build_index(root, "train")
    place = root / ".fastdeit/train.parquet"
    table = tables.pq.read_table(place)
    tables.pq.write_table(table.drop_columns(["header_only"]), place)
    decoded.clear()
    index = build_index(root, "train", check="decode", again=True)
    assert not decoded and index.header_only is not None and not index.header_only.any()


def test_facts_are_the_same_as_of_the_decoded_images(root: Path) -> None:
    found = find_split(root, "train")
    by_header = split_table(root, "train", found, wanted=HEADERS).drop_columns(["header_only"])
    decoded = split_table(root, "train", found, wanted=DECODE).drop_columns(["header_only"])
    assert by_header.replace_schema_metadata() == decoded.replace_schema_metadata()


@pytest.mark.parametrize("count", [0, 1, 7, 100])
@pytest.mark.parametrize("parts", [1, 3, 100])
def test_parts_cover_all_rows_once(count: int, parts: int) -> None:
    covered = sum(
        (ImageCheck("decode", (part, parts)).needed(count) == 2).astype(int)
        for part in range(1, parts + 1)
    )
    np.testing.assert_array_equal(covered, np.ones(count))
