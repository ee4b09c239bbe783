"""The embedded digits: the split, the pictures, and how they are written."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdeit.data.formats.digits import write_digits
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index


def path(index: Index, row: int) -> Path:
    return index.root / index.name(row)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "digits")


def test_digits_are_a_stratified_split(digits: Path) -> None:
    train, val = build_index(digits, "train"), build_index(digits, "val")
    assert len(train) + len(val) == 1797
    counts = np.bincount(train.labels), np.bincount(val.labels)
    np.testing.assert_array_equal(counts[1], (counts[0] + counts[1]) // 5)
    numbers = {path(index, i).stem for index in (train, val) for i in range(len(index))}
    assert len(numbers) == 1797
    assert (train.sizes == 32).all()


def test_digits_are_gray_and_show_the_digit(digits: Path) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    index = build_index(digits, "val")
    for row in (0, 100, 354):
        image, number = Image.open(path(index, row)), int(path(index, row).stem)
        assert image.mode == "L" and data.target[number] == index.labels[row]
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX)) / 255 * 16
        assert np.corrcoef(small.ravel(), data.images[number].ravel())[0, 1] > 0.97


def test_digits_are_written_once(digits: Path) -> None:
    stamp = (digits / "train/0").stat().st_mtime_ns
    assert write_digits(digits) == digits
    assert (digits / "train/0").stat().st_mtime_ns == stamp


def test_digits_written_by_several_at_once(tmp_path: Path) -> None:
    threads = [threading.Thread(target=write_digits, args=(tmp_path / "digits",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]
    assert len(list((tmp_path / "digits").rglob("*.png"))) == 1797


def test_digits_do_not_overwrite_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="must be a new or an empty folder"):
        write_digits(tmp_path)
    assert [
        entry.name
        for entry in tmp_path.parent.iterdir()
        if entry.name.startswith(f".{tmp_path.name}")
    ] == []
