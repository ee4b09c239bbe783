"""Counts of a data set out of its index alone."""

from pathlib import Path

from fastdeit.data.counts import Counts, read_counts
from fastdeit.data.indexing import build_index
from tests.support.images import write_shapes


def test_damaged_images_are_not_counted(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "data", train=4)
    files = sorted(path for path in (root / "train").rglob("*") if path.is_file())
    files[0].write_bytes(b"no image")
    assert read_counts(root, "train") is None, "there is no index yet"
    index = build_index(root, "train", bad_images="skip")
    good = sum(file.stat().st_size for file in files[1:])
    assert read_counts(root, "train") == Counts(len(files) - 1, good, len(index.classes))


def test_an_index_that_cannot_be_read_has_no_counts(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "data", train=4)
    build_index(root, "train")
    (table,) = (root / ".fastdeit").glob("train.parquet")
    table.write_bytes(table.read_bytes()[:-9])
    assert read_counts(root, "train") is None
