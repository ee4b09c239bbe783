"""Which split a folder has, and what the message says if it has none."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from fastdeit.data.formats.detect import find_split
from fastdeit.data.formats.listing import DataError
from fastdeit.data.indexing import build_index
from tests.support.documented import read_blocks
from tests.support.launching import ROOT
from tests.support.pages import working_in


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Return a folder of two classes without splits, with what cameras and systems leave."""
    folder = tmp_path / "photographs"
    for name in ("Blüten, rot", "temple"):
        (folder / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (9, 7), "red").save(folder / name / f"DSC {number}.JPG")
        (folder / name / ".DS_Store").write_bytes(b"\0")
        (folder / name / "IMG_1.HEIC").write_bytes(b"\0")
    (folder / ".fastdeit").mkdir()
    (folder / "notes.txt").write_text("2024")
    return folder


def test_class_folders_without_splits_are_refused_with_the_remedy(photographs: Path) -> None:
    with pytest.raises(DataError, match=r"expected two splits: docs/data.md#one-folder-of-classes"):
        find_split(photographs, "train")
    assert "### One folder of classes\n" in (ROOT / "docs/data.md").read_text()


def test_the_program_of_the_page_divides_class_folders(photographs: Path) -> None:
    with working_in(photographs.parent):
        exec(read_blocks("data.md")[0], {})
    train, val = (build_index(photographs, split, bad_images="skip") for split in ("train", "val"))
    assert train.classes == val.classes == ("Blüten, rot", "temple")
    assert len(train) + len(val) == 10 and len(val) in (1, 2)
    with open(photographs / "val.csv", encoding="utf-8", newline="") as lines:
        assert sorted(label for _, label in csv.reader(lines)) == ["Blüten, rot", "temple"]
