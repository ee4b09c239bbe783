"""A sample of a data set's images, in each way in which they are stored."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdeit.data.formats.check import ImageInfo, check_place
from fastdeit.data.formats.listing import DataError
from fastdeit.doctor import images
from fastdeit.doctor.images import NoImagesError, locate_images, make_jpegs
from tests.support.images import CLASSES, write_pixels, write_shapes


def assert_readable(places: list[images.Place]) -> None:
    assert all(isinstance(check_place(place), ImageInfo) for place in places)


def test_images_of_many_classes_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_shapes(tmp_path)
    monkeypatch.setattr(images, "COUNT", 6)
    places = locate_images(str(data), "train")
    assert {Path(file).parent.name for file, *_ in places} == set(CLASSES)
    assert len(places) == 6
    assert_readable(places)


def test_images_of_the_first_shard_are_chosen(tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "data")
    (tmp_path / "tars").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "tars" / f"train-{shard}.tar", "w") as tar:
            for number, file in enumerate(sorted(data.glob("train/*/*.jpg"))):
                tar.add(file, f"{number:03}.jpg")
                label = tarfile.TarInfo(f"{number:03}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(b"0"))
    places = locate_images(str(tmp_path / "tars"), "train")
    assert {Path(file).name for file, *_ in places} == {"train-0.tar"}
    assert len(places) == len(list(data.glob("train/*/*.jpg")))
    assert_readable(places)


def test_images_of_a_list_are_chosen(tmp_path: Path) -> None:
    data = write_shapes(tmp_path)
    files = sorted(file.relative_to(data) for file in data.glob("train/circle/*"))
    (data / "some.csv").write_text("".join(f"{file},0\n" for file in files))
    places = locate_images(str(data), "some.csv")
    assert [Path(file).relative_to(data) for file, *_ in places] == files
    assert_readable(places)


def test_files_of_pixels_have_no_places(tmp_path: Path) -> None:
    write_pixels(tmp_path, "train", np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(NoImagesError, match="into memory"):
        locate_images(str(tmp_path), "train")


def test_no_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no 'train'"):
        locate_images(str(tmp_path), "train")
    (tmp_path / "train" / "empty").mkdir(parents=True)
    with pytest.raises(NoImagesError, match="no images"):
        locate_images(str(tmp_path), "train")


def test_made_images_are_jpeg_files_of_different_content() -> None:
    one, two = make_jpegs(2, (100, 75))
    assert one != two
    assert Image.open(io.BytesIO(one)).size == (100, 75)
