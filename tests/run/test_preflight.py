"""Errors of `check_config` for the files that a command names."""

import re
import resource
from pathlib import Path

import pytest
import torch

from fastdeit.config.cli import parse_config
from fastdeit.config.recipes import RECIPES
from fastdeit.config.schema import Config
from fastdeit.distributed.world import World
from fastdeit.run import preflight
from fastdeit.run.preflight import check_batch_fits, check_config, note_limits
from fastdeit.storage.run_folder import RunFolder


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


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set with a training split of one class."""
    (tmp_path / "data" / "train" / "class").mkdir(parents=True)
    return tmp_path / "data"


def check(*argv: str, world_size: int = 1) -> str:
    """Return the error of a command line, "" if it passes."""
    try:
        check_config(parse_config(argv, "test")[0], world_size)
    except ValueError as error:
        return str(error)
    return ""


def test_everything_that_the_disk_lacks_is_one_line_with_the_data_set_first(data: Path) -> None:
    assert check().startswith("--data-path must be the folder of a data set, see docs/data.md")
    found = check("--data-path", "/nowhere", "--finetune", "weights", "--resume", "step-3")
    parts = found.split("; ")
    assert parts[0] == "--data-path must be an existing folder (got '/nowhere')"
    assert "step-3" in parts[1]
    assert parts[2].startswith("--finetune must be an existing file")
    assert parts[3].startswith("--teacher-path must be an existing file") and "\n" not in found
    assert check("--data-path", str(data / "train")).startswith(
        f"{data / 'train'}: holds no 'train'"
    )
    assert check("--data-path", str(data)).startswith("--teacher-path must be an existing file")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            "--model deit_tinny_patch16_224",
            "--model must be deit_{tiny,small,base}[_distilled]_patch16_{224,384}, "
            "deit3_{small,medium,base,large,huge}_patch{16,14}_{224,384}, or a timm model; near: "
            "deit_tiny_patch16_224, ",
        ),
        ("--input-size 100", "--input-size must be a multiple of the patch size, 16 (got 100)"),
        ("--eval-input-size 100", "--eval-input-size must be a multiple of the patch size, 16 ("),
        ("--num-heads 5", "--num-heads must be a divisor of the width, 384 (--embed-dim) (got 5)"),
        (
            "--teacher-model torchscript --teacher-path https://host/teacher.pt",
            "--teacher-path must be a local file: download it, then give --teacher-path "
            "teacher.pt (got 'https://host/teacher.pt')",
        ),
        (
            "--finetune deit_tinny.pth",
            "--finetune must be an existing file, a folder, hf-hub:OWNER/NAME, https://... or a "
            "timm model, with the weights to start from (got 'deit_tinny.pth')",
        ),
        ("--teacher-model regnety_16 --pretrained-teacher", "--teacher-model must be a timm model"),
        ("--finetune hf-hub:deit", "--finetune: a repository must be hf-hub:OWNER/NAME[@REVISION]"),
        ("--resume https://host/x.pth", "--resume must be a local file: download it, "),
        ("--resume /nowhere", "/nowhere: no checkpoint"),
        (
            "--cache /nowhere",
            "--cache must be an existing folder that fastdeit cache build has written (got '/nowh",
        ),
        ("--teacher-path /nowhere", "--teacher-path must be an existing file with the teacher's"),
    ],
)
def test_the_error_names_the_flag_and_what_it_must_be(argv: str, message: str, data: Path) -> None:
    error = check("--data-path", str(data), *argv.split())
    assert error.startswith(message) and "\n" not in error


def test_a_missing_file_of_a_run_is_named_by_its_present_name(data: Path, tmp_path: Path) -> None:
    """student.safetensors was the name in earlier versions."""
    folder = RunFolder(tmp_path)
    folder.model.touch()
    for flag in ("--teacher-path", "--finetune"):
        error = check(
            "--data-path",
            str(data),
            "--teacher-path",
            str(tmp_path),
            flag,
            str(tmp_path / "student.safetensors"),
        )
        assert error.startswith(f"{flag} must be an existing file, such as {folder.model} (got")


def test_a_run_that_has_begun_may_name_a_first_checkpoint_that_is_gone(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").touch()
    argv = ["--data-path", str(data), "--resume", "/nowhere", "--output-dir", str(tmp_path)]
    assert check(*argv).startswith("--teacher-path must be")


@pytest.mark.parametrize("recipe", ["finetune_384", "transfer", "digits_48"])
def test_a_recipe_of_fine_tuning_names_all_that_it_lacks_at_once(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = check("--recipe", recipe)
    lacks = {"finetune_384": 3, "transfer": 2, "digits_48": 2}[recipe]
    assert found.count(" must be ") == lacks and "--finetune must be" in found
    if recipe == "digits_48":
        assert "train it first: fastdeit train --recipe digits (" in found


@pytest.mark.parametrize("batch", ["2", "64", "512", "4096"])
@pytest.mark.parametrize("recipe", ["finetune_384", "transfer"])
def test_a_recipe_of_fine_tuning_takes_any_batch(recipe: str, batch: str, data: Path) -> None:
    weights = data / "weights.safetensors"
    weights.touch()
    flags = ["--data-path", str(data), "--finetune", str(weights), "--teacher-path", str(weights)]
    assert check("--recipe", recipe, "--batch-size", batch, *flags) == ""


def limit_files(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(preflight.resource, "getrlimit", lambda _: (min(64, most), most))


@pytest.mark.parametrize("most", [1024, resource.RLIM_INFINITY])
def test_enough_open_files_are_not_noted(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_files(monkeypatch, most)
    assert note_limits(World(0, 1, 0, 1, torch.device("cpu"))) == []


def test_few_open_files_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_files(monkeypatch, 256)
    (note,) = note_limits(World(0, 1, 0, 1, torch.device("cpu")))
    assert note.startswith("a process may open 256 files; ulimit -n 1024 or more is safe; ")
    assert "fastdeit doctor" in note


@pytest.mark.parametrize(("blocks", "noted"), [(2**14, True), (2**18, False)])
def test_little_shared_memory_is_noted_for_several_gpus(
    blocks: int, noted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    space = type("Space", (), {"f_frsize": 4096, "f_blocks": blocks})
    limit_files(monkeypatch, 4096)
    monkeypatch.setattr(preflight, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(preflight.os, "statvfs", lambda _: space)
    gpu = torch.device("cuda", 0)
    assert note_limits(World(0, 1, 0, 1, gpu)) == []
    assert bool(note_limits(World(0, 2, 0, 2, gpu))) == noted
