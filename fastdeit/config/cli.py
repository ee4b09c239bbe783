"""The command line as a `Config`: defaults < recipe < config file < flags. tyro makes the flags
from the dataclasses."""

import argparse
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import tyro

from fastdeit.config.file import config_from_dict, read_config_file
from fastdeit.config.recipes import RECIPES
from fastdeit.config.schema import Config

REPLACED = {
    "--ThreeAugment": "use --aa 3a",
    "--mixup-mode": "use --mixup-group (2 is a pair, 256 is deit's batch of one GPU)",
    "--train-interpolation": "it is always bicubic",
    "--opt": "it is always AdamW",
    "--sched": "it is always cosine",
    "--warmup-steps": "use --warmup-epochs",
    "--recount": "it is always one box",
    "--dist-eval": "evaluation is always distributed, with exact counts",
    "--device": "a GPU is used when there is one",
    "--world-size": "the deepspeed launcher sets it",
    "--dist-url": "the deepspeed launcher sets it",
    "--pin-mem": "DALI's outputs need none",
    "--start-epoch": "a checkpoint holds its step",
    "--model-ema-force-cpu": "the EMA is partitioned over the ranks with the optimizer state",
}
"""Flags of deit's main.py that have no counterpart here, each with what to do instead."""

PROGRAMS = ("torchscript", "export")
"""Kinds of --teacher-model whose file is a program; so is any `module:callable`."""

FLAT = (tyro.conf.OmitArgPrefixes,)


def parse_config(
    argv: Sequence[str], prog: str, settings: Mapping[str, dict[str, Any]] = MappingProxyType({})
) -> tuple[Config, str]:
    """Return the run's `Config` and the name of its recipe.

    settings: fields by section that replace those of --config, as attempts.jsonl has them.
    Raises ValueError, with a message of one line, for a value, recipe or file that is not allowed;
    an unknown flag exits with code 2 (tyro's message names the nearest flag).
    """
    known, flags = _base_parser().parse_known_args(list(argv))
    _refuse_replaced(flags)
    base = _from_file(_recipe(known.recipe), known.config)
    base = config_from_dict(base, dict(settings), "attempts.jsonl")
    description = (
        f"Train a distilled DeiT. First come --recipe NAME ({', '.join(RECIPES)}) and "
        "--config FILE, then any flag below."
    )
    config = tyro.cli(
        Config, args=flags, prog=prog, description=description, default=base, config=FLAT
    )
    _refuse_code(config.distill.teacher_model, flags)
    if not config.run.output_dir:
        config = config.replace(run={"output_dir": f"runs/{known.recipe}"})
    return config, known.recipe


def _base_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", default="deit")
    parser.add_argument("--config", default="")
    # the launcher passes it; the environment holds the same
    parser.add_argument("--local_rank", "--local-rank", type=int)
    return parser


def _recipe(name: str) -> Config:
    recipe = RECIPES.get(name.replace("-", "_"))
    if recipe is None:
        raise ValueError(f"--recipe must be one of {', '.join(RECIPES)} (got {name!r})")
    return recipe()


def _from_file(base: Config, path: str) -> Config:
    if not path:
        return base
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"--config must be an existing file (got {path})")
    return config_from_dict(base, read_config_file(file, "--config"), path)


def _refuse_code(teacher: str, flags: Sequence[str]) -> None:
    """Raise ValueError for a teacher that is a program, if only a config file names it: such a
    file may come from anywhere."""
    asked = any(teacher in flag.partition("=")[::2] for flag in flags)
    if not asked and (":" in teacher or teacher in PROGRAMS):
        raise ValueError(
            f"--config: distill.teacher_model {teacher!r} runs code; if you trust it, name it on "
            f"the command line, too: --teacher-model {teacher}"
        )


def _refuse_replaced(flags: Sequence[str]) -> None:
    for flag in flags:
        name = flag.split("=")[0].replace("_", "-")
        if name in REPLACED:
            raise ValueError(f"{name} of deit has no counterpart here: {REPLACED[name]}")
