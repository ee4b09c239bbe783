"""Two versions of a data set with equal names, sizes and times of modification: the table of one is
never used for the other, and a copy is not decoded again."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fastdeit.data import table
from fastdeit.data.formats.listing import have_true_times
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from tests.data.formats.test_idx import idx


def bmp(height: int) -> bytes:
    """Return an image of 64 pixels, always of as many bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (64 // height, height)).save(buffer, "BMP")
    return buffer.getvalue()


def write_folder(root: Path, version: int) -> None:
    """Write two classes of two images; version 2 has other images, one with another name."""
    for name in ("a/0.bmp", "a/1.bmp", "b/0.bmp", f"b/{version}.bmp"):
        file = root / "train" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bmp(4 * version))


def write_list(root: Path, version: int) -> None:
    root.mkdir(parents=True)
    for number in range(3):
        (root / f"{number}.bmp").write_bytes(bmp(4))
    lines = [f"{number}.bmp,{(number + version) % 3}\n" for number in range(3)]
    (root / "train.csv").write_text("".join(lines))


def write_shard(root: Path, version: int) -> None:
    (root / "train").mkdir(parents=True)
    with tarfile.open(root / "train/0.tar", "w") as tar:
        for number in range(3):
            label = b"%d" % ((number + version) % 3)
            for name, data in ((f"{number}.bmp", bmp(4)), (f"{number}.cls", label)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_idx(root: Path, version: int) -> None:
    root.mkdir(parents=True)
    (root / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((3, 4, 4))))
    (root / "train-labels-idx1-ubyte").write_bytes(idx((np.arange(3) + version) % 3))


Write = Callable[[Path, int], None]
FORMATS: dict[str, Write] = {
    "folder": write_folder,
    "list": write_list,
    "shards": write_shard,
    "idx": write_idx,
}


def set_times(root: Path) -> None:
    """Set the time of modification of everything to one second."""
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files, "."):
            os.utime(os.path.join(parent, name), (1e9, 1e9))


def content(index: Index) -> list[tuple[str, int, int]]:
    heights = index.sizes[:, 0].tolist()
    names = [index.name(row) for row in range(len(index))]
    return list(zip(names, index.labels.tolist(), heights, strict=True))


@pytest.mark.parametrize("way", ["in place", "link"])
@pytest.mark.parametrize("kind", FORMATS)
def test_another_version_with_equal_times_is_listed(tmp_path: Path, kind: str, way: str) -> None:
    for version in (1, 2):
        FORMATS[kind](tmp_path / f"v{version}", version)
        set_times(tmp_path / f"v{version}")
    expected = [
        content(build_index(tmp_path / name, "train", cache_dir=tmp_path / f"cache-{name}"))
        for name in ("v1", "v2")
    ]
    assert expected[0] != expected[1]
    found = []
    for version in (1, 2):
        place = tmp_path / "data"
        if way == "link":
            place.unlink(missing_ok=True)
            place.symlink_to(f"v{version}")
        else:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(tmp_path / f"v{version}", place)
        index = build_index(place, "train", cache_dir=tmp_path / "cache")
        found.append(content(index))
    assert found == expected


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all times of change one whole second, as in an image of a file system."""
    stat = os.stat

    def frozen_stat(*arguments: Any, **options: Any) -> os.stat_result:
        facts = stat(*arguments, **options)
        named: Any = facts.__reduce__()[1][1]
        return os.stat_result(facts, named | {"st_ctime_ns": 10**18})

    monkeypatch.setattr(os, "stat", frozen_stat)


def change_name(folder: Path) -> None:
    (folder / "b/1.bmp").rename(folder / "b/9.bmp")


def change_class(folder: Path) -> None:
    (folder / "a/1.bmp").rename(folder / "b/9.bmp")


def change_pixels(folder: Path) -> None:
    (folder / "b/1.bmp").write_bytes(bmp(16))


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("change", [change_name, change_class, change_pixels])
def test_a_file_system_without_times_of_change_is_listed_each_time(tmp_path: Path, change) -> None:
    """Its inodes may be the same in two versions, too."""
    write_folder(tmp_path / "data", 1)
    set_times(tmp_path / "data")
    build_index(tmp_path / "data", "train", cache_dir=tmp_path)
    change(tmp_path / "data/train")
    set_times(tmp_path / "data")
    found = content(build_index(tmp_path / "data", "train", cache_dir=tmp_path))
    assert found == content(build_index(tmp_path / "data", "train", cache_dir=tmp_path / "new"))


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((10**18, 10**18), False),
        ((10**18, 2 * 10**18), True),
        ((10**18 + 1, 10**18 + 1), True),
        ((0, 0), False),
        ((0, 10**18), False),
    ],
)
def test_times_of_change_are_true_if_they_differ_or_have_fractions(
    times: tuple[int, ...], expected: bool
) -> None:
    assert have_true_times(times) == expected


@pytest.mark.parametrize("kind", ["folder", "list", "shards"])
def test_a_copy_is_not_decoded_again(tmp_path: Path, kind: str, decoded: list[str]) -> None:
    FORMATS[kind](tmp_path / "data", 1)
    first = build_index(tmp_path / "data", "train")
    decoded.clear()
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    copy = build_index(tmp_path / "copy", "train")
    assert not decoded and copy.fingerprint() == first.fingerprint()
    assert content(copy) == content(first)


def test_an_image_of_another_header_is_decoded_again(tmp_path: Path, decoded: list[str]) -> None:
    write_folder(tmp_path / "data", 1)
    set_times(tmp_path / "data")
    build_index(tmp_path / "data", "train")
    decoded.clear()
    other = tmp_path / "data/train/a/1.bmp"
    other.write_bytes(bmp(16))
    os.utime(other, (1e9, 1e9))
    index = build_index(tmp_path / "data", "train", again=True)
    assert decoded == ["1.bmp"] and index.sizes[:, 0].tolist() == [4, 16, 4, 4]


def test_a_damaged_image_is_decoded_again_when_its_time_of_change_differs(
    tmp_path: Path, decoded: list[str]
) -> None:
    write_folder(tmp_path / "data", 1)
    bad = tmp_path / "data/train/a/1.bmp"
    bad.write_bytes(b"x" * len(bmp(4)))
    set_times(tmp_path / "data")
    assert len(build_index(tmp_path / "data", "train", bad_images="skip")) == 3
    bad.write_bytes(bmp(4))
    set_times(tmp_path / "data")
    decoded.clear()
    assert len(build_index(tmp_path / "data", "train", again=True)) == 4 and decoded == ["1.bmp"]


def test_a_table_of_version_2_is_listed_again_and_keeps_its_facts(
    tmp_path: Path, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path / "data", 1)
    expected = content(build_index(tmp_path / "data", "train"))
    place = tmp_path / "data/.fastdeit/train.parquet"
    stored = pq.read_table(place)
    facts = stored.schema.metadata[b"fastdeit"].replace(b'"version": 3', b'"version": 2')
    older = stored.drop_columns(["ctime_ns"]).replace_schema_metadata({"fastdeit": facts})
    pq.write_table(older, place)
    decoded.clear()
    assert content(build_index(tmp_path / "data", "train")) == expected
    assert not decoded and "is of an earlier version" in caplog.text
    assert table.table_facts(pq.read_table(place))["version"] == table.VERSION == 3


def test_a_stale_table_beside_the_data_does_not_hide_one_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a read-only copy of a data set that has a table of another machine."""
    write_folder(tmp_path / "data", 1)
    set_times(tmp_path / "data")
    build_index(tmp_path / "data", "train")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cached, beside = table.table_places(tmp_path / "copy", "train", None)[::-1]
    build_index(tmp_path / "copy", "train")
    cached.parent.mkdir(parents=True)
    beside.rename(cached)
    shutil.copy(tmp_path / "data/.fastdeit/train.parquet", beside)
    build = "fastdeit.data.indexing.build_table"
    monkeypatch.setattr(build, lambda *_: pytest.fail("was listed again"))
    assert len(build_index(tmp_path / "copy", "train")) == 4
