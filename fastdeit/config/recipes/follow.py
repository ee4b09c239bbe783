"""The settings of a run that comes before or after another."""

import dataclasses
import math
from typing import Any

from fastdeit.config.recipes import find_recipe
from fastdeit.config.schema import Config

_GRID = 7  # the fewest patches along a side, for a patch size that is chosen here
PATCH_SIZE = 16
"""The patch size in pixels of every student in a recipe."""


def follow_with_student(config: Config, recipe: str, folder: str) -> tuple[Config, str]:
    """Return the settings of a student of the teacher that a run trained, and their recipe.

    The student has the images, the augmentation and the batch size that the user chose for the
    run. folder: of the run.
    """
    student = recipe.replace("-", "_").removesuffix("_teacher")
    base = _with_chosen_images(find_recipe(student), config, recipe)
    output_dir = f"runs/{student}"
    if folder == output_dir:
        output_dir = f"{folder}_student"
    return base.replace(
        distill={"teacher_model": config.model.model, "teacher_path": folder},
        model={"patch_size": _fit_patch(base)},
        optim=_keep_batch(config, recipe),
        run={"output_dir": output_dir},
    ), student


def _with_chosen_images(base: Config, config: Config, recipe: str) -> Config:
    """Return `base` with the fields of images and augmentation in which a run differs from its
    recipe."""
    usual = find_recipe(recipe)
    changed = {
        section: _list_changed(getattr(usual, section), getattr(config, section))
        for section in ("data", "augment")
    }
    return base.replace(**changed)


def _list_changed(usual: Any, chosen: Any) -> dict[str, Any]:
    """Return the fields of a section that differ from those of another one, with their values."""
    values = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    return {name: value for name, value in values.items() if value != getattr(usual, name)}


def _keep_batch(config: Config, recipe: str) -> dict[str, int]:
    """Return the batch sizes that the user has chosen, by field."""
    usual = find_recipe(recipe).optim
    if config.optim.batch_size == usual.batch_size:
        return {}
    return {"batch_size": config.optim.batch_size, "micro_batch": config.optim.micro_batch}


def _fit_patch(config: Config) -> int | None:
    """Return the student's patch size if it divides the input sizes, else the largest size that
    does and gives 7 x 7 patches or more."""
    data = config.data
    side = math.gcd(data.input_size, data.eval_input_size)
    if side % (config.model.patch_size or PATCH_SIZE) == 0:
        return config.model.patch_size
    most = min(PATCH_SIZE, max(1, data.input_size // _GRID))
    return max(size for size in range(1, most + 1) if side % size == 0)


def follow_without_teacher(config: Config, recipe: str, folder: str) -> Config:
    """Return the settings of the run in `folder` without its teacher, for a comparison."""
    distill = dataclasses.replace(
        find_recipe(recipe).distill,
        distillation_type="none",
        cache_period=config.distill.cache_period,
        bce_loss=config.distill.bce_loss,
    )
    return dataclasses.replace(config, distill=distill).replace(
        run={"output_dir": f"{folder}_alone", "stop_after_steps": 0},
        checkpoint={"resume": ""},
    )


def precede_with_teacher(config: Config, recipe: str, folder: str) -> Config:
    """Return the settings of the recipe that trains the teacher of a run, in `folder`, on its
    images."""
    student = recipe.removesuffix("_teacher")
    base = _with_chosen_images(find_recipe(recipe), config, student)
    return base.replace(run={"output_dir": folder})
