"""Checks of a `Config` before any work: sizes that do not divide, unknown models, missing files."""

from pathlib import Path

import timm

from fastdeit.config.command import format_train_command, precede_with_teacher
from fastdeit.config.parse import require
from fastdeit.config.recipes import RECIPES
from fastdeit.config.schema import Config
from fastdeit.distributed.environment import is_alone
from fastdeit.models.names import suggest_names
from fastdeit.models.student import SIZES
from fastdeit.models.weights import locate_weights

_FEW_STEPS = 4


def check_config(config: Config, world_size: int) -> None:
    """Raise ValueError naming the first setting that cannot work on `world_size` processes."""
    _check_batch(config, world_size)
    path = config.data.data_path
    require(bool(path), "data_path", path, "a data set (docs/data.md)")
    _check_model(config)
    _check_teacher(config)
    _check_eval_size(config)
    _require_file("finetune", config.model.finetune)


def _check_batch(config: Config, world_size: int) -> None:
    size = config.optim.batch_size
    share = 2 * world_size
    allowed = f"a multiple of {share} on {world_size} processes"
    require(size % share == 0, "batch_size", size, allowed)
    per_rank = size // world_size
    micro_batch = config.optim.micro_batch or per_rank
    allowed = f"a divisor of {per_rank}, a process's share of the batch"
    require(per_rank % micro_batch == 0, "micro_batch", micro_batch, allowed)


def check_batch_fits(config: Config, world_size: int, images: int) -> None:
    """Raise ValueError, naming a batch size that works, if the batch is larger than the number of
    training images."""
    size = config.optim.batch_size
    least = world_size * (config.optim.micro_batch or 2)
    advice = "take fewer processes" if least > images else _advise_batch(least, images)
    if size > images:
        raise ValueError(
            f"--batch-size must be at most {images}, the number of training images (got {size}); "
            f"{advice}"
        )


def _advise_batch(least: int, images: int) -> str:
    """Return the advice to take `least` times a power of two that leaves several steps an epoch."""
    parts = max(1, images // _FEW_STEPS // least)
    return f"--batch-size {least * 2 ** (parts.bit_length() - 1)} works"


def _check_model(config: Config) -> None:
    name = config.model.model
    kind = config.distill.distillation_type
    if name not in SIZES:
        _check_timm_name(name)
        allowed = f"none with --model {name}, which has one head"
        require(kind == "none", "distillation_type", kind, allowed)
    elif kind != "none":
        distilled = [known for known in SIZES if "_distilled" in known]
        require(name in distilled, "model", name, f"one of {', '.join(distilled)} with a teacher")


def _check_timm_name(name: str) -> None:
    if not timm.is_model(name):
        allowed = f"one of {', '.join(SIZES)}, or a timm model{suggest_names(name)}"
        require(False, "model", name, allowed)


def _check_teacher(config: Config) -> None:
    distill = config.distill
    is_callable = ":" in distill.teacher_model
    if distill.needs_teacher and not is_callable:
        path = distill.teacher_path
        exists = bool(path) and locate_weights(path).is_file()
        require(exists, "teacher_path", path, _hint_at_teacher(config))


def _hint_at_teacher(config: Config) -> str:
    path = config.distill.teacher_path
    recipe = Path(path).name
    if recipe.endswith("_teacher") and recipe in RECIPES:
        teacher = precede_with_teacher(config, recipe, path)
        command = format_train_command(teacher, recipe, alone=is_alone())
        return f"an existing file; train it first: {command}"
    return "an existing file with the teacher's weights, or --distillation-type none"


def _check_eval_size(config: Config) -> None:
    size = config.data.eval_input_size
    name = config.model.model
    if name in SIZES:
        patch = config.model.patch_size or 16  # the patch size of every named student
        allowed = f"a multiple of the patch size, {patch}"
        require(size % patch == 0, "eval_input_size", size, allowed)
    elif size and timm.get_pretrained_cfg(name, allow_unregistered=True).fixed_input_size:
        allowed = f"0 with --model {name}, which is built for one size"
        require(size == config.data.input_size, "eval_input_size", size, allowed)


def _require_file(flag: str, path: str) -> None:
    """Raise ValueError if a path is given that names no file of weights."""
    require(not path or locate_weights(path).is_file(), flag, path, "an existing file")
