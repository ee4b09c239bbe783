"""The command line as a `Config`: defaults < recipe < config file < flags. tyro makes the flags
from the dataclasses."""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import tyro

from fastdeit.config.file import config_from_dict, read_config_file
from fastdeit.config.flags import check_flags, expand_home
from fastdeit.config.options import FLAT, make_parser
from fastdeit.config.parse import runs_code
from fastdeit.config.peers import explain_rate, translate_flags
from fastdeit.config.recipes import RECIPES, find_recipe
from fastdeit.config.schema import Config


class _UncheckedConfig(Config):
    """A `Config` that tyro fills; it is checked when it is complete."""

    def __post_init__(self) -> None:
        pass


def parse_config(
    argv: Sequence[str],
    prog: str,
    settings: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> tuple[Config, str]:
    """Return the run's `Config` and the name of its recipe.

    settings: fields, by section, that replace those of --config, as attempts.jsonl has them. Flags
    of deit and timm are translated (`PEER_FLAGS`). Raises ValueError, with a message of one line,
    for a flag, value, recipe or file that is not allowed. Rank 0 alone prints --help.
    """
    translated = translate_flags(expand_home(argv))
    check_flags(translated)
    known, flags = _base_parser().parse_known_args(translated)
    base = _from_file(find_recipe(known.recipe), known.config)
    base = config_from_dict(base, dict(settings), "attempts.jsonl")
    try:
        config = _parse_flags(flags, base, prog)
    except ValueError as error:
        raise ValueError(f"{error}{explain_rate(argv, str(error))}") from None
    _refuse_code(config.distill.teacher_model, flags)
    if not config.run.output_dir:
        config = config.replace(run={"output_dir": f"runs/{known.recipe}"})
    return config, known.recipe


def make_train_parser() -> argparse.ArgumentParser:
    """Return a parser with every flag of `fastdeit train`, to describe them."""
    parser = make_parser(Config)
    parser.add_argument("--recipe", help="Named starting point of the run.")
    parser.add_argument("--config", help="Settings of an earlier run, or of a file like them.")
    return parser


def _parse_flags(flags: Sequence[str], base: Config, prog: str) -> Config:
    description = (
        f"Train a distilled DeiT. First come --recipe NAME ({', '.join(RECIPES)}) and --config "
        "FILE, then any flag below. Those of deit and timm: docs/coming-from-deit.md."
    )
    unchecked = tyro.cli(
        _UncheckedConfig,
        args=flags,
        prog=prog,
        description=description,
        default=_UncheckedConfig(**_sections(base)),
        config=FLAT,
        console_outputs=os.environ.get("RANK", "0") == "0",
    )
    return Config(**_sections(unchecked))


def _sections(config: Config) -> dict[str, Any]:
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}


def _base_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", default="deit")
    parser.add_argument("--config", default="")
    # the launcher passes it; the environment holds the same
    parser.add_argument("--local_rank", "--local-rank", type=int)
    return parser


def _from_file(base: Config, path: str) -> Config:
    if not path:
        return base
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"--config must be an existing file (got {path})")
    return config_from_dict(base, read_config_file(file, "--config"), path)


def check_callbacks(config: Config, argv: Sequence[str]) -> None:
    """Raise ValueError for a callback that only a config file names: it runs code, and such a file
    may come from anywhere."""
    for name in config.tracking.callback:
        if name not in argv and f"--callback={name}" not in argv:
            raise ValueError(
                f"--config: tracking.callback {name!r} runs code; if you trust it, name it on the "
                f"command line, too: --callback {name}"
            )


def _refuse_code(teacher: str, flags: Sequence[str]) -> None:
    """Raise ValueError for a teacher that is a program, if only a config file names it: such a
    file may come from anywhere."""
    asked = any(teacher in flag.partition("=")[::2] for flag in flags)
    if not asked and runs_code(teacher):
        raise ValueError(
            f"--config: distill.teacher_model {teacher!r} runs code; if you trust it, name it on "
            f"the command line, too: --teacher-model {teacher}"
        )
