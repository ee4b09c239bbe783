"""The flags of a command line: their names, the types of their values, and those of a `Config`."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from fastdeit.config.parse import name_flag, runs_code
from fastdeit.config.recipes import find_recipe
from fastdeit.config.schema import Config
from fastdeit.display.text import quote_words, suggest_near

_BASE = {"--recipe": str, "--config": str, "--local-rank": int, "--help": bool, "-h": bool}
_NAMES = {int: "a whole number", float: "a number", str: "one value"}


def own_flags() -> dict[str, Any]:
    """Return the type of every flag of `fastdeit train`, by its name with dashes."""
    flags: dict[str, Any] = dict(_BASE)
    for section in dataclasses.fields(Config):
        for item in dataclasses.fields(getattr(Config(), section.name)):
            flags[name_flag(item.name)] = item.type
            if item.type is bool:
                flags[name_flag(f"no_{item.name}")] = bool
    return flags


def split_flags(argv: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each flag's name, with dashes, and its tokens as given; the name is "" for the tokens
    before the first flag."""
    name = ""
    tokens: list[str] = []
    for token in argv:
        if token.startswith("-") and not _is_number(token):
            if tokens:
                yield name, tokens
            name = token.partition("=")[0].replace("_", "-")
            tokens = []
        tokens.append(token)
    if tokens:
        yield name, tokens


def values_of(tokens: Sequence[str]) -> list[str]:
    """Return the values among the tokens of one flag: those of `--flag=value`, or those after the
    flag."""
    _, equals, value = tokens[0].partition("=")
    return [value, *tokens[1:]] if equals else list(tokens[1:])


def check_flags(argv: Iterable[str]) -> None:
    """Raise ValueError, which names what is allowed, for a flag that `fastdeit train` does not have
    and for values that are not of its type."""
    known = own_flags()
    lists: set[str] = set()
    for name, tokens in split_flags(argv):
        if not name:
            shown = " ".join(tokens)
            raise ValueError(f"{shown!r} belongs to no flag; the data set's folder is --data-path")
        check_flag(name, values_of(tokens), known)
        if count_values(known[name]) is None:
            _check_once(name, lists)


def _check_once(name: str, seen: set[str]) -> None:
    """Raise ValueError for a flag with a list that is given twice, as only the last list would be
    read. For a flag with one value, the last one is right, as scripts append flags."""
    if name in seen:
        raise ValueError(f"{name} must be given once, with all its values (got it twice)")
    seen.add(name)


def check_flag(name: str, values: Sequence[str], known: Mapping[str, Any]) -> None:
    """Raise ValueError, which names what is allowed, for a flag that does not exist, or for values
    that are not of its type; known: the type of every flag."""
    if name not in known:
        raise ValueError(f"{name} is not a flag{suggest_near(name, known, cutoff=0.75)}")
    if not _are_of_type(values, known[name]):
        allowed = _name_type(known[name])
        raise ValueError(f"{name} must be {allowed} (got {' '.join(values)!r})")


def count_values(kind: Any) -> int | None:
    """Return the number of values of a flag of this type; None: all that follow it."""
    if kind is bool:
        return 0
    if get_origin(kind) in (UnionType, Union):
        return count_values(get_args(kind)[0])
    if get_origin(kind) is not tuple:
        return 1
    return None if get_args(kind)[-1] is Ellipsis else len(get_args(kind))


def _is_number(text: str) -> bool:
    return _are_of_type([text], float)


def _are_of_type(values: Sequence[str], kind: Any) -> bool:
    """Return True if tyro can read values as a field's type."""
    if kind is bool:
        return not values
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            return bool(values) and all(_are_of_type([one], kinds[0]) for one in values)
        pairs = zip(values, kinds, strict=False)
        return len(values) == len(kinds) and all(_are_of_type([one], kind) for one, kind in pairs)
    if get_origin(kind) in (UnionType, Union):
        return any(_are_of_type(values, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return len(values) == 1 and values[0] in map(str, get_args(kind))
    return len(values) == 1 and _converts(values[0], kind)


def _converts(text: str, kind: type) -> bool:
    if kind is type(None):
        return text == "None"
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _name_type(kind: Any) -> str:
    if kind is bool:
        return "without a value"
    if get_origin(kind) is Literal:
        return join_choices(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        is_open = get_args(kind)[-1] is Ellipsis
        return "one or more values" if is_open else f"{len(get_args(kind))} numbers"
    if get_origin(kind) in (UnionType, Union):
        return _name_type(get_args(kind)[0])
    return _NAMES[kind]


def join_choices(choices: Iterable[str]) -> str:
    """Return choices as text: "a, b or c"."""
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def format_train_command(config: Config, recipe: str, alone: bool) -> str:
    """Return the command that trains with these settings, as one line for a shell.

    alone: in one process, without a launcher. A launcher starts a file of the checkout or, outside
    a checkout, the installed module.
    """
    entry = Path("fastdeit/train.py")
    launched = ["deepspeed", *([entry] if entry.is_file() else ["--module", "fastdeit", "train"])]
    start = ["fastdeit", "train"] if alone else launched
    return quote_words(*start, *list_flags(config, recipe))


def format_replay_command(config: Config, folder: str, step: int) -> str:
    """Return the command that repeats a step of the run in a folder, as one line for a shell.

    A teacher that is a program has to be named on the command line.
    """
    teacher = config.distill.teacher_model
    named = config.distill.needs_teacher and runs_code(teacher)
    flags = ["--teacher-model", teacher] if named else []
    return quote_words("fastdeit", "replay", folder, "--step", step, *flags)


def list_flags(config: Config, recipe: str) -> list[str]:
    """Return --recipe, and a flag for each setting that differs from the recipe's; from these
    `parse_config` makes an equal `Config`."""
    base = find_recipe(recipe).replace(run={"output_dir": f"runs/{recipe}"})
    flags = [] if recipe == "deit" else ["--recipe", recipe]
    for section in dataclasses.fields(config):
        chosen = getattr(config, section.name)
        usual = getattr(base, section.name)
        for field in dataclasses.fields(chosen):
            value = getattr(chosen, field.name)
            if value != getattr(usual, field.name):
                flags += format_flag(field.name, value)
    return flags


def format_flag(field: str, value: Any) -> list[str]:
    """Return the flag that sets a field to a value, as words of a command line."""
    flag = name_flag(field)
    if isinstance(value, bool):
        return [flag if value else name_flag(f"no_{field}")]
    if isinstance(value, tuple):
        return [flag, *map(str, value)]
    if str(value).startswith("-"):
        return [f"{flag}={value}"]
    return [flag, str(value)]


def expand_home(argv: Sequence[str]) -> list[str]:
    """Return a command line in which `~/` at the beginning of a value is the home folder; a shell
    does not replace it in `--output-dir=~/run`."""
    expanded = []
    for token in argv:
        name, mark, value = token.partition("=") if token.startswith("--") else ("", "", token)
        at_home = value.startswith("~/")
        expanded.append(name + mark + os.path.expanduser(value) if at_home else token)
    return expanded
