"""What `check_config` says about the files that a command names."""

from pathlib import Path

import pytest

from fastdeit.config.recipes import RECIPES
from fastdeit.config.schema import Config
from fastdeit.run.preflight import check_config


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
