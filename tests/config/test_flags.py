"""Commands that messages name: each makes the settings that were meant, in any shell word."""

import os
import subprocess
from typing import Any

import pytest

from fastdeit.config.cli import parse_config
from fastdeit.config.flags import (
    check_flags,
    expand_home,
    format_replay_command,
    format_train_command,
    list_flags,
)
from fastdeit.config.recipes import RECIPES
from fastdeit.config.recipes.follow import (
    follow_with_student,
    follow_without_teacher,
    precede_with_teacher,
)
from fastdeit.config.schema import Config

HOSTILE = os.fsdecode(b"a b'\\\"$HOME `x` ; [c] \xe4 \x1b\n")
CHANGED: list[dict[str, dict[str, Any]]] = [
    {"data": {"data_path": HOSTILE, "train_split": "s-{000..127}.tar", "bad_images": "error"}},
    {"data": {"mean": (-0.5, 0.0, 1e-7), "std": (0.1, 0.2, 3.0), "num_workers": 3}},
    {"augment": {"aa": "none", "repeated_aug": False, "src": True, "scale": (0.5, 1.0)}},
    {"mix": {"cutmix_minmax": (0.2, 0.8), "mixup": 0.0, "smoothing": 0.0}},
    {"model": {"patch_size": 8, "qkv_bias": True, "finetune": "--odd"}},
    {"optim": {"clip_grad": None, "layer_decay": 0.75, "opt_betas": (0.8, 0.9)}},
    {"optim": {"clip_grad": 2.0, "model_ema": False, "lr": 5e-5}},
    {"run": {"output_dir": "-x", "time_limit": "1-00:00:00", "precision": "fp32", "seed": 7}},
    {"distill": {"teacher_model": "timm:create", "cache": "", "distillation_tau": 1e-3}},
]


def split(line: str) -> list[str]:
    """Return the words that bash makes of a line."""
    assert line.isprintable()
    script = f"printf '%s\\0' {line}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("changed", CHANGED, ids=lambda changed: next(iter(changed)))
def test_printed_command_makes_the_settings(
    changed: dict[str, dict[str, Any]], recipe: str
) -> None:
    config = RECIPES[recipe]().replace(run={"output_dir": f"runs/{recipe}"}).replace(**changed)
    words = split(format_train_command(config, recipe, alone=True))
    assert words[:2] == ["fastdeit", "train"]
    assert parse_config(words[2:], "test") == (config, recipe)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_alone_needs_no_flag(recipe: str) -> None:
    config, _ = parse_config(["--recipe", recipe], "test")
    assert list_flags(config, recipe) == ([] if recipe == "deit" else ["--recipe", recipe])


TEACHER = "--model test_resnet --distillation-type none --output-dir runs/mine".split()


def parse(*flags: str) -> tuple[Config, str]:
    return parse_config(flags, "test")


def student_flags(*flags: str) -> list[str]:
    """Return the flags of the student that follows on a teacher's run with some flags."""
    config, recipe = parse(*flags)
    return list_flags(*follow_with_student(config, recipe, config.run.output_dir))


def test_student_of_a_recipe_needs_no_flag() -> None:
    assert student_flags("--recipe", "digits_teacher") == ["--recipe", "digits"]
    assert student_flags("--recipe", "fashion-mnist-teacher", "--output-dir", "x") == [
        *("--recipe", "fashion_mnist", "--teacher-path", "x")
    ]


def test_recipes_with_images_of_different_sizes_follow_and_precede() -> None:
    assert student_flags("--recipe", "cifar10_teacher", "--data-path", "c", "--hflip", "0") == (
        "--recipe cifar10 --data-path c --hflip 0.0".split()
    )
    config, _ = parse("--recipe", "cifar10", "--data-path", "c", "--hflip", "0")
    teacher = precede_with_teacher(config, "cifar10_teacher", "runs/cifar10_teacher")
    assert list_flags(teacher, "cifar10_teacher") == (
        "--recipe cifar10_teacher --data-path c --hflip 0.0".split()
    )


def test_student_sees_the_images_of_its_teacher() -> None:
    chosen = (
        "--data-path d --train-split a.csv --val-split b.csv --input-size 96 --mean 0 0 0 "
        "--std 1 1 1 --eval-crop-ratio 1.0 --hflip 0.0 --batch-size 16"
    ).split()
    flags = [*TEACHER, *chosen, "--epochs", "1", "--lr", "0.1", "--mixup", "0"]
    config, recipe = parse(*flags)
    student, student_recipe = follow_with_student(config, recipe, "runs/mine")
    assert (student.data, student.augment) == (config.data, config.augment)
    taught = ["--teacher-model", "test_resnet", "--teacher-path", "runs/mine"]
    assert (student, student_recipe) == parse(*chosen, *taught)


def test_student_has_a_folder_of_its_own() -> None:
    config, recipe = parse(*TEACHER[:-2], "--data-path", "d")
    assert config.run.output_dir == "runs/deit"
    student, _ = follow_with_student(config, recipe, "runs/deit")
    assert student.run.output_dir == "runs/deit_student"


@pytest.mark.parametrize(
    ("side", "patch"), [("224", None), ("96", None), ("28", 4), ("225", 15), ("13", 1), ("4", 1)]
)
def test_student_has_a_patch_size_that_divides_the_input(side: str, patch: int | None) -> None:
    config, recipe = parse(*TEACHER, "--input-size", side)
    assert follow_with_student(config, recipe, "x")[0].model.patch_size == patch


def test_comparison_differs_in_the_teacher_alone() -> None:
    kept = "--recipe digits --data-path d --epochs 2 --cache-period 3 --hflip 0.5".split()
    dropped = "--distillation-tau 2 --teacher-path t --cache c --resume x --stop-after-steps 5"
    config, recipe = parse(*kept, *dropped.split(), "--output-dir", "o")
    alone = follow_without_teacher(config, recipe, "o")
    expected = [*kept, "--distillation-type", "none", "--output-dir", "o_alone"]
    assert parse(*list_flags(alone, recipe)) == parse(*expected)


def test_teacher_is_trained_on_the_images_of_its_student() -> None:
    config, _ = parse(
        "--recipe", "digits", "--data-path", "d", "--teacher-path", "x/digits_teacher"
    )
    teacher = precede_with_teacher(config, "digits_teacher", "x/digits_teacher")
    assert list_flags(teacher, "digits_teacher") == (
        "--recipe digits_teacher --data-path d --output-dir x/digits_teacher".split()
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], []),
        (["--teacher-model", "torchscript"], ["--teacher-model", "torchscript"]),
        (["--teacher-model", "m:f"], ["--teacher-model", "m:f"]),
        (["--teacher-model", "m:f", "--distillation-type", "none"], []),
    ],
)
def test_replay_names_a_teacher_that_is_a_program(flags: list[str], expected: list[str]) -> None:
    config, _ = parse(*flags)
    line = format_replay_command(config, "my run", 3)
    assert split(line) == ["fastdeit", "replay", "my run", "--step", "3", *expected]


def test_a_list_is_given_once_and_of_one_value_the_last_counts() -> None:
    check_flags(["--lr", "1", "--callback", "a:B", "c:D", "--lr", "2"])
    with pytest.raises(ValueError, match="--callback must be given once, with all its values"):
        check_flags(["--callback", "a:B", "--lr", "1", "--callback=c:D"])


def test_the_home_folder_is_found_where_the_shell_leaves_its_sign(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bash replaces `~/x`, and neither `--flag=~/x` nor `"~/x"`."""
    monkeypatch.setenv("HOME", "/home/me")
    argv = ["--output-dir=~/run", "--data-path", "~/set", "--lr", "1", "a~/b", "--cache=x~/y"]
    home = ["--output-dir=/home/me/run", "--data-path", "/home/me/set"]
    assert expand_home(argv) == [*home, "--lr", "1", "a~/b", "--cache=x~/y"]
    assert parse_config(argv[:1], "test")[0].run.output_dir == "/home/me/run"
