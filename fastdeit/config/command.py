"""Command lines for messages: the flags that make a `Config`, and the settings of runs to try."""

import dataclasses
import math
from typing import Any

from fastdeit.config.cli import PROGRAMS
from fastdeit.config.recipes import RECIPES
from fastdeit.config.schema import Config
from fastdeit.display.text import quote_words

_GRID = 7  # patches along a side, at least, for a patch size that we choose
_PATCH = 16  # of every named student


def format_train_command(config: Config, recipe: str, alone: bool) -> str:
    """Return the command that trains with these settings, as one line for a shell.

    alone: in one process, without a launcher.
    """
    start = ["fastdeit", "train"] if alone else ["deepspeed", "fastdeit/train.py"]
    return quote_words(*start, *list_flags(config, recipe))


def format_replay_command(config: Config, folder: str, step: int) -> str:
    """Return the command that repeats a step of the run in a folder, as one line for a shell.

    A teacher that is a program has to be named on the command line.
    """
    teacher = config.distill.teacher_model
    runs_code = config.distill.needs_teacher and (":" in teacher or teacher in PROGRAMS)
    flags = ["--teacher-model", teacher] if runs_code else []
    return quote_words("fastdeit", "replay", folder, "--step", step, *flags)


def list_flags(config: Config, recipe: str) -> list[str]:
    """Return --recipe, and a flag for each setting that is not the recipe's: `parse_config` makes
    an equal `Config` of them."""
    base = find_recipe(recipe).replace(run={"output_dir": f"runs/{recipe}"})
    flags = [] if recipe == "deit" else ["--recipe", recipe]
    for section in dataclasses.fields(config):
        chosen = getattr(config, section.name)
        usual = getattr(base, section.name)
        for field in dataclasses.fields(chosen):
            value = getattr(chosen, field.name)
            if value != getattr(usual, field.name):
                flags += _format_flag(field.name.replace("_", "-"), value)
    return flags


def find_recipe(name: str) -> Config:
    """Return a recipe's settings; `-` in its name stands for `_`."""
    return RECIPES[name.replace("-", "_")]()


def _format_flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, tuple):
        return [f"--{name}", *map(str, value)]
    if str(value).startswith("-"):
        return [f"--{name}={value}"]
    return [f"--{name}", str(value)]


def follow_with_student(config: Config, recipe: str, folder: str) -> tuple[Config, str]:
    """Return the settings of a student of the teacher that a run gave, and their recipe.

    The images are those of the run, and so is a batch size that the user has chosen. folder: of the
    run.
    """
    student = recipe.replace("-", "_").removesuffix("_teacher")
    base = dataclasses.replace(find_recipe(student), data=config.data, augment=config.augment)
    output_dir = f"runs/{student}"
    if folder == output_dir:
        output_dir = f"{folder}_student"
    return base.replace(
        distill={"teacher_model": config.model.model, "teacher_path": folder},
        model={"patch_size": _fit_patch(base)},
        optim=_keep_batch(config, recipe),
        run={"output_dir": output_dir},
    ), student


def _keep_batch(config: Config, recipe: str) -> dict[str, int]:
    """Return the batch sizes that the user has chosen, by field."""
    usual = find_recipe(recipe).optim
    if config.optim.batch_size == usual.batch_size:
        return {}
    return {"batch_size": config.optim.batch_size, "micro_batch": config.optim.micro_batch}


def _fit_patch(config: Config) -> int | None:
    """Return the student's patch size, or if it does not divide the input sizes, the largest one
    that does and leaves 7 x 7 patches or more."""
    data = config.data
    side = math.gcd(data.input_size, data.eval_input_size)
    if side % (config.model.patch_size or _PATCH) == 0:
        return config.model.patch_size
    most = min(_PATCH, max(1, data.input_size // _GRID))
    return max(size for size in range(1, most + 1) if side % size == 0)


def follow_without_teacher(config: Config, folder: str) -> Config:
    """Return the settings of the run in `folder` without its teacher, for a comparison."""
    return config.replace(
        distill={"distillation_type": "none", "cache": "", "cache_miss": "error"},
        run={"output_dir": f"{folder}_alone", "stop_after_steps": 0},
        checkpoint={"resume": ""},
    )


def precede_with_teacher(config: Config, recipe: str, folder: str) -> Config:
    """Return the settings of the recipe that trains the teacher of a run, in `folder`, on its
    images."""
    base = dataclasses.replace(find_recipe(recipe), data=config.data, augment=config.augment)
    return base.replace(run={"output_dir": folder})
