"""Names in a packed data set: unique, in the source's order; labels are read as written."""

import numpy as np
import pytest

from fastdeit.config.parse import SettingError
from fastdeit.data.formats.labels import number_labels
from fastdeit.data.formats.listing import DataError
from fastdeit.data.packing.names import list_class_folders, list_label_texts, name_image


def test_a_name_has_the_row_and_no_dot() -> None:
    assert name_image(7, "train/n01/n01_26.JPEG") == "00000007_n01_26"
    assert name_image(8, "val/scan_v1.0_07.jpg") == "00000008_scan_v1-0_07"
    assert name_image(9, "train/a/b\\xe4r é.png") == "00000009_b-xe4r-"
    assert name_image(123456789, "x") == "123456789_x"
    assert len(name_image(1, "x" * 300)) < 90


def test_names_sort_as_rows() -> None:
    names = [name_image(row, f"{100 - row}.jpg") for row in range(100)]
    assert names == sorted(set(names))


def test_an_image_that_is_packed_again_keeps_its_name() -> None:
    once = name_image(12, "train/n01_26.JPEG")
    assert name_image(12, f"train-000000.tar/{once}.jpg") == once
    assert name_image(13, f"train-000000.tar/{once}.jpg") == f"00000013_{once}"


@pytest.mark.parametrize(
    ("classes", "texts"),
    [
        (["cat", "dog"], ["0", "1"]),
        (["0", "1", "2"], ["0", "1", "2"]),
        (["1", "10", "2"], ["1", "10", "2"]),  # numbers that are no positions
        (["nan", "true"], ["0", "1"]),
    ],
)
def test_labels_are_read_as_written(classes: list[str], texts: list[str]) -> None:
    assert list_label_texts(classes) == texts
    labels, _ = number_labels(texts, classes, str)
    assert labels.tolist() == list(range(len(classes)))


@pytest.mark.parametrize("name", ["a\nb", " a", "", "a\x1cb"])
def test_a_class_that_is_no_line_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="cannot be a line of classes.txt"):
        list_label_texts(["x", name])


def test_folders_have_the_names_of_the_classes() -> None:
    labels = np.arange(11)
    names = [f"n{number:02d}" for number in range(11)]
    assert list_class_folders(names, labels) == names
    assert list_class_folders(list("01"), labels[:2]) == ["0", "1"]
    padded = list_class_folders([str(number) for number in range(11)], labels)
    assert padded == [f"{number:02d}" for number in range(11)]


@pytest.mark.parametrize(
    ("classes", "labels", "reason"),
    [
        (["b", "a"], [0, 1], "the names of the classes do not sort as their labels"),
        (["a", "b"], [0, 0], "the class 'b' has no training image"),
        (["a/b", "c"], [0, 1], "the class 'a/b' is no name of a folder"),
        ([".a", "c"], [0, 1], "the class '.a' is no name of a folder"),
    ],
)
def test_folders_that_would_change_labels_are_refused(
    classes: list[str], labels: list[int], reason: str
) -> None:
    with pytest.raises(SettingError) as caught:
        list_class_folders(classes, np.array(labels))
    expected = f"--format must be shards for this data set, as {reason} (got 'folder')"
    assert str(caught.value) == expected
