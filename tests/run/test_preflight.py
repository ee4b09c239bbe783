"""What `check_config` says about the files that a command names."""

import re
from pathlib import Path

import pytest

from fastdeit.config.recipes import RECIPES
from fastdeit.config.schema import Config
from fastdeit.run.preflight import check_batch_fits, check_config


def digits_with(teacher: Path) -> Config:
    return RECIPES["digits"]().replace(distill={"teacher_path": str(teacher)})


@pytest.mark.parametrize("name", ["model.safetensors", "student.safetensors"])
def test_a_run_folder_is_a_teacher_under_either_name_of_its_weights(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).touch()
    check_config(digits_with(tmp_path), 1)


def test_a_run_folder_without_weights_is_no_teacher(tmp_path: Path) -> None:
    folder = tmp_path / "digits_teacher"
    folder.mkdir()
    with pytest.raises(ValueError, match="--teacher-path must be an existing file; train it first"):
        check_config(digits_with(folder), 1)
    (tmp_path / "model.safetensors").touch()
    taught = digits_with(tmp_path)
    with pytest.raises(ValueError, match="--finetune must be an existing file"):
        check_config(taught.replace(model={"finetune": str(folder)}), 1)


@pytest.mark.parametrize(
    ("images", "world_size", "micro_batch", "advice"),
    [
        (1023, 1, 0, "--batch-size 128 works"),
        (52, 1, 0, "--batch-size 8 works"),
        (52, 3, 0, "--batch-size 12 works"),
        (52, 2, 10, "--batch-size 20 works"),
        (2, 1, 0, "--batch-size 2 works"),
        (5, 3, 0, "take fewer processes"),
    ],
)
def test_more_samples_than_images_names_a_batch_that_works(
    images: int, world_size: int, micro_batch: int, advice: str
) -> None:
    config = Config().replace(optim={"micro_batch": micro_batch})
    with pytest.raises(ValueError) as error:
        check_batch_fits(config, world_size, images)
    assert str(error.value) == (
        f"--batch-size must be at most {images}, the number of training images (got 1024); {advice}"
    )
    if advice.startswith("--"):
        batch_size = int(advice.split()[1])
        check_batch_fits(config.replace(optim={"batch_size": batch_size}), world_size, images)
        assert batch_size % (world_size * (micro_batch or 2)) == 0


def test_missing_teacher_of_a_recipe_is_trained_on_the_same_images(tmp_path: Path) -> None:
    config = digits_with(tmp_path / "digits_teacher").replace(data={"data_path": "my digits"})
    command = f"--recipe digits_teacher --data-path 'my digits' --output-dir {tmp_path}"
    with pytest.raises(ValueError, match=re.escape(f"train it first: fastdeit train {command}")):
        check_config(config, 1)
    with pytest.raises(ValueError, match="an existing file with the teacher's weights"):
        check_config(digits_with(tmp_path / "my_teacher"), 1)
