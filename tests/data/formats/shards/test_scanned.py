"""Tests of the samples of many shards as arrays."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastdeit.data.formats.shards.samples import Scan
from fastdeit.data.formats.shards.scanned import ScannedFiles


def make_scan(shard: int, images: int) -> Scan:
    scan = Scan()
    for row in range(images):
        scan.add(f"{shard}-{row:06d}.jpg", 512 + 2048 * row, 1000 + row, label=f"class {row % 7}")
    return scan


def test_rows_are_in_the_order_of_the_shards() -> None:
    scanned = ScannedFiles()
    other = Scan(others={".txt": 2}, lone_labels=["key"])  # type: ignore[arg-type]
    other.add("b\udcff.jpg", 5, 6, label=3)
    other.add("bad.jpg", fault="is cut")
    for shard, scan in enumerate([make_scan(0, 2), Scan(), other]):
        scanned.add(scan, f"{shard}/")
    assert scanned.counts == [2, 0, 2]
    names = [b"0/0-000000.jpg", b"0/0-000001.jpg", b"2/b\xff.jpg", b"2/bad.jpg"]
    assert scanned.names().to_pylist() == names
    offsets, lengths, codes = scanned.numbers().tolist()
    assert (offsets, lengths) == ([512, 2560, 5, 0], [1000, 1001, 6, 0])
    assert [scanned.labels[code] for code in codes] == ["class 0", "class 1", 3, None]
    assert scanned.first_rows == [0, 1, 2, 3]
    assert scanned.faults == {3: "is cut"}
    assert scanned.lone_labels == ["2/key"]
    assert scanned.others[".txt"] == 2


def test_listing_has_the_times_of_the_file_of_each_image(tmp_path: Path) -> None:
    scanned = ScannedFiles()
    for number, images in enumerate((2, 1)):
        (tmp_path / f"{number}.tar").write_bytes(b"")
        os.utime(tmp_path / f"{number}.tar", ns=(0, 1000 + number))
        scanned.add(make_scan(number, images), f"{number}.tar/")
    listing = scanned.to_listing(tmp_path, ["0.tar", "1.tar"], {}, ["class 1", "class 0"])
    times = [(tmp_path / f"{number}.tar").stat().st_ctime_ns for number in (0, 0, 1)]
    assert listing.mtimes.tolist() == [1000, 1000, 1001]
    assert listing.ctimes.tolist() == times
    assert listing.labels.tolist() == [1, 0, 1]
    assert listing.shard is not None and listing.shard.tolist() == [0, 0, 1]


def test_no_shard_has_no_rows() -> None:
    assert len(ScannedFiles().names()) == 0
    assert ScannedFiles().numbers().shape == (3, 0)


def test_image_takes_few_bytes_of_memory() -> None:
    shards, images = 40, 500
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    scanned = ScannedFiles()
    for shard in range(shards):
        scanned.add(make_scan(shard, images), f"train/{shard:06d}.tar/")
    held = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
    tracemalloc.stop()
    assert np.sum(scanned.counts) == shards * images
    # 32 of the name, 4 of its offset, 24 of three numbers; as objects they take about 400
    assert held / (shards * images) < 90
