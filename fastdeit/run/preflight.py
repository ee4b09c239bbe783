"""What can be seen wrong with a `Config` before any work: sizes that do not divide, models that do
not exist, missing files."""

from pathlib import Path

import timm

from fastdeit.config.parse import require
from fastdeit.config.schema import Config
from fastdeit.models.names import suggest_names
from fastdeit.models.student import SIZES


def check_config(config: Config, world_size: int) -> None:
    """Raises ValueError naming the first setting that cannot work on `world_size` processes."""
    optim, distill = config.optim, config.distill
    share = 2 * world_size
    require(
        optim.batch_size % share == 0,
        "batch_size",
        optim.batch_size,
        f"multiples of {share} on {world_size} processes",
    )
    per_rank = optim.batch_size // world_size
    micro = optim.micro_batch or per_rank
    require(
        per_rank % micro == 0,
        "micro_batch",
        micro,
        f"divisors of {per_rank}, a process's share of the batch",
    )
    require(
        bool(config.data.data_path), "data_path", config.data.data_path, "a data set (docs/data.md)"
    )
    ours = config.model.model in SIZES
    if not ours:
        _check_timm_name(config.model.model)
        kind = distill.distillation_type
        require(
            kind == "none",
            "distillation_type",
            kind,
            f"none with --model {config.model.model}, which has one head",
        )
    elif distill.distillation_type != "none":
        distilled = [name for name in SIZES if "_distilled" in name]
        require(
            config.model.model in distilled,
            "model",
            config.model.model,
            f"{', '.join(distilled)} with a teacher",
        )
    if distill.needs_teacher and ":" not in distill.teacher_model:
        path = distill.teacher_path
        require(bool(path) and Path(path).exists(), "teacher_path", path, _teacher_hint(config))
    _check_eval_size(config)
    require(
        not config.model.finetune or Path(config.model.finetune).exists(),
        "finetune",
        config.model.finetune,
        "an existing file",
    )


def _check_eval_size(config: Config) -> None:
    size, name = config.data.eval_input_size, config.model.model
    if name in SIZES:
        patch = config.model.patch_size or 16  # of every named student
        require(size % patch == 0, "eval_input_size", size, f"multiples of the patch size, {patch}")
    elif size and timm.get_pretrained_cfg(name, allow_unregistered=True).fixed_input_size:
        require(
            size == config.data.input_size,
            "eval_input_size",
            size,
            f"0 with --model {name}, which is built for one size",
        )


def _teacher_hint(config: Config) -> str:
    folder = Path(config.distill.teacher_path).parent
    if folder.name.endswith("_teacher"):  # a recipe's
        return (
            f"an existing file; train it first: deepspeed fastdeit/train.py --recipe {folder.name}"
        )
    return "an existing file with the teacher's weights, or --distillation-type none"


def _check_timm_name(name: str) -> None:
    if not timm.is_model(name):
        allowed = f"{', '.join(SIZES)}, or a timm model{suggest_names(name)}"
        require(False, "model", name, allowed)
