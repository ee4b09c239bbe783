"""The flags of a command other than `train`: a frozen dataclass, from which tyro makes the flags.

Its sections are the groups of --help, a field's docstring is its help. Every error is one line.
"""

import argparse
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from fastdeit.config.describe import read_field_docs
from fastdeit.config.flags import (
    check_flag,
    count_values,
    expand_home,
    join_choices,
    split_flags,
    values_of,
)
from fastdeit.config.parse import Section, name_flag, require_value

Options = TypeVar("Options")
FLAT = (tyro.conf.OmitArgPrefixes,)
"""tyro's marker for flags without the name of their section."""
_HELP = {"--help": bool, "-h": bool}


class _Field(NamedTuple):
    name: str
    type: Any
    is_place: bool
    """Whether it takes values that belong to no flag."""
    is_required: bool
    aliases: Sequence[str]
    """Other names of the flag, as -o."""
    doc: str


def parse_options(argv: Sequence[str], kind: type[Options], prog: str, description: str) -> Options:
    """Return a command line as an instance of a frozen dataclass; its sections are checked.

    kind: a field is a section (a dataclass), a flag (with the aliases of `tyro.conf.arg`), or,
    annotated with `tyro.conf.Positional`, a place: it takes values that belong to no flag. prog,
    description: for --help, which rank 0 alone prints. Raises ValueError, with a message of one
    line, for a flag or a value that is not allowed, or missing.
    """
    fields = list(_list_fields(kind))
    flags, places = _split(expand_home(argv), _list_flags(fields))
    if not {"-h", "--help"} & set(flags):
        _check_required(fields, flags, places)
    options = tyro.cli(
        kind,
        args=[*places, *flags],
        prog=prog,
        description=description,
        config=FLAT,
        console_outputs=os.environ.get("RANK", "0") == "0",
    )
    for section in (options, *vars(options).values()):
        if isinstance(section, Section):
            section.check_finite()
            section.check()
    return options


def make_parser(kind: type) -> argparse.ArgumentParser:
    """Return a parser that describes the flags and places of a frozen dataclass, and of its
    sections; it checks choices alone."""
    parser = argparse.ArgumentParser(add_help=False)
    for field in _list_fields(kind):
        flags = [*field.aliases, name_flag(field.name)]
        if field.type is bool:
            flags.append(name_flag(f"no_{field.name}"))
            parser.add_argument(*flags, action="store_true", help=field.doc)
            continue
        names = [field.name] if field.is_place else flags
        choices = _list_choices(field.type) or None
        parser.add_argument(*names, nargs=_count(field), choices=choices, help=field.doc)
    return parser


def _count(field: _Field) -> int | str | None:
    """Return the number of values of a flag or place, in the form of argparse's `nargs`."""
    may_lack = field.is_place and not field.is_required
    count = count_values(field.type)
    if count is None:
        return "*" if may_lack else "+"
    if count == 1:
        return "?" if may_lack else None
    return count


def _list_choices(kind: Any) -> list[str]:
    """Return the words that a type allows; none if it is not a list of words."""
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    if get_origin(kind) in (UnionType, Union):  # of something and None
        return _list_choices(get_args(kind)[0])
    return []


def _list_fields(kind: Any) -> Iterator[_Field]:
    """Yield the flags and places of a dataclass, and of its sections."""
    hints = get_type_hints(kind, include_extras=True)
    docs = read_field_docs(kind)
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from _list_fields(hints[item.name])
            continue
        is_required = item.default is item.default_factory is dataclasses.MISSING
        remarks = getattr(hints[item.name], "__metadata__", ())
        kind_of = get_args(hints[item.name])[0] if remarks else hints[item.name]
        # of `tyro.conf.arg`
        aliases = [name for remark in remarks for name in getattr(remark, "aliases", None) or ()]
        is_place = tyro.conf.Positional in remarks
        yield _Field(item.name, kind_of, is_place, is_required, aliases, docs.get(item.name, ""))


def split_options(
    argv: Sequence[str], kind: type[Options], prog: str, description: str
) -> tuple[Options, list[str]]:
    """Return the flags and places of `kind` in a command line, as `parse_options` does, and all
    other flags with their values, such as those of `fastdeit train`."""
    fields = list(_list_fields(kind))
    # the values before the first flag
    before = {""} if any(field.is_place for field in fields) else set()
    own = before | set(_list_flags(fields))
    parts = list(split_flags(argv))
    mine = [token for name, tokens in parts if name in own for token in tokens]
    others = [token for name, tokens in parts if name not in own for token in tokens]
    return parse_options(mine, kind, prog, description), others


def _list_flags(fields: Sequence[_Field]) -> dict[str, Any]:
    """Return the type of every flag, by its name with dashes."""
    known: dict[str, Any] = dict(_HELP)
    for field in fields:
        if not field.is_place:
            known |= dict.fromkeys([name_flag(field.name), *field.aliases], field.type)
            if field.type is bool:
                known[name_flag(f"no_{field.name}")] = bool
    return known


def _split(argv: Sequence[str], known: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the flags with their values, and the values that belong to no flag; check the flags.
    After `--` nothing is a flag. Raises ValueError as `check_flag`."""
    cut = list(argv).index("--") if "--" in argv else len(argv)
    own = argv[:cut]
    rest = argv[cut + 1 :]
    flags: list[str] = []
    places: list[str] = []
    for name, tokens in split_flags(own):
        if not name:
            places += tokens
            continue
        values = values_of(tokens)
        count = count_values(known[name]) if name in known else None
        # --flag=value takes no further value
        used = values if count is None else values[: 1 if "=" in tokens[0] else count]
        check_flag(name, used, known)
        flags += [name, *used]
        places += values[len(used) :]
    return flags, places + [f"./{place}" if place.startswith("-") else place for place in rest]


def _check_required(fields: Sequence[_Field], flags: Sequence[str], places: Sequence[str]) -> None:
    """Raise ValueError for a flag or a place that is missing, or for too many places."""
    taking = [field for field in fields if field.is_place]
    for field in fields:
        if field.is_required and not field.is_place and name_flag(field.name) not in flags:
            raise ValueError(f"{name_flag(field.name)} must be given (--help explains it)")
    needed = [field for field in taking if field.is_required]
    # an unset variable of a script gives "", which would be the current folder
    missing = len(places) if "" not in places else places.index("")
    if missing < len(needed):
        raise ValueError(f"{needed[missing].name.upper()} must be given (--help explains it)")
    is_open = any(count_values(field.type) is None for field in taking)
    if not is_open and len(places) > len(taking):
        raise ValueError(f"{places[len(taking)]!r} belongs to no flag")
    for field, place in zip(taking, places, strict=False):
        if choices := _list_choices(field.type):
            require_value(place in choices, field.name.upper(), place, join_choices(choices))
