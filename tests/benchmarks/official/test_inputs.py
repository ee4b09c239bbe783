"""The images and the teacher's file that both trainers read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.official.inputs import write_images, write_teacher

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 4


def write_idx(folder: Path) -> None:
    for name, dims, values in (("images", 3, PIXELS), ("labels", 1, LABELS)):
        shape = np.array(values.shape, ">u4").tobytes()
        file = folder / f"train-{name}-idx{dims}-ubyte"
        file.write_bytes(bytes((0, 0, 8, dims)) + shape + values.tobytes())


def test_the_first_images_lie_in_the_folders_of_their_classes(tmp_path: Path) -> None:
    write_idx(tmp_path)
    write_images(tmp_path, tmp_path / "images", {"train": 9})
    files = sorted((tmp_path / "images" / "train").rglob("*.png"))
    assert [str(file.relative_to(tmp_path / "images" / "train")) for file in files] == sorted(
        f"{number % 4}/{number:05}.png" for number in range(9)
    )
    seventh = tmp_path / "images" / "train" / "3" / "00007.png"
    assert np.array_equal(np.asarray(Image.open(seventh)), PIXELS[7])


@pytest.mark.parametrize("count", [0, -1, 13])
def test_a_number_of_images_that_the_source_lacks_is_refused(tmp_path: Path, count: int) -> None:
    write_idx(tmp_path)
    with pytest.raises(ValueError, match="images of train must be 1 to 12"):
        write_images(tmp_path, tmp_path / "images", {"train": count})


def test_a_folder_with_more_images_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path)
    write_images(tmp_path, tmp_path / "images", {"train": 9})
    with pytest.raises(ValueError, match="has 9 images of train, not 4; remove it"):
        write_images(tmp_path, tmp_path / "images", {"train": 4})


def test_a_source_without_the_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--source must have IDX files of val"):
        write_images(tmp_path, tmp_path / "images", {"val": 2})


def test_the_teachers_file_has_deits_form(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    write_teacher(tmp_path, tmp_path / "teacher.pth")
    found = torch.load(tmp_path / "teacher.pth", weights_only=True)
    assert torch.equal(found["model"]["fc.weight"], torch.ones(2, 3))
