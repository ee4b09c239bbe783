"""Config files, which may come from anywhere: read as plain values, and checked before any replaces
a default."""

import dataclasses
import reprlib
from collections.abc import Hashable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import yaml

from fastdeit.config.schema import Config
from fastdeit.storage.atomic import read_bounded

MAX_BYTES = 1 << 16


class _PlainLoader(yaml.SafeLoader):
    """Values as they stand there: no second name for one, of which a short file can pile up
    billions, and no key twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases are not allowed", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen if isinstance(key, yaml.ScalarNode) else False:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return super().construct_mapping(node, deep)


def read_config_file(path: Path, flag: str) -> dict[str, dict[str, Any]]:
    """The sections of a YAML file. flag: that named it, for the errors.

    Raises ValueError, with a message of one line, for one that is no mapping of mappings, of more
    than `MAX_BYTES`, with tags, aliases or a key twice; OSError.
    """
    try:
        values = yaml.load(read_bounded(path, MAX_BYTES), _PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{flag}: {path} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{flag}: {path} is not YAML: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{flag}: {path}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(
            f"{flag}: {path}: got {type(values).__name__}, allowed is a mapping of sections"
        )
    for section, fields in values.items():
        if not isinstance(section, str) or not isinstance(fields, dict):
            raise ValueError(
                f"{flag}: {path}: got section {reprlib.repr(section)}, allowed are sections, each a mapping"
            )
    return values


def config_from_dict(base: Config, values: dict[str, dict[str, Any]], source: str) -> Config:
    """`base` with the fields in `values` (what `Config.to_dict` gives, whole or in part) put in.

    Raises ValueError naming `source`, the field and what is allowed, for an unknown section or
    field or a wrong type.
    """
    sections = {}
    for section, fields in values.items():
        known = [item.name for item in dataclasses.fields(base)]
        if section not in known:
            raise ValueError(
                f"{source}: got section {reprlib.repr(section)}, allowed are {', '.join(known)}, each a mapping"
            )
        sections[section] = {
            key: _checked(getattr(base, section), key, value, source)
            for key, value in fields.items()
        }
    return base.replace(**sections)


def _checked(section: Any, key: str, value: Any, source: str) -> Any:
    known = {item.name: item.type for item in dataclasses.fields(section)}
    if key not in known:
        raise ValueError(f"{source}: got field {reprlib.repr(key)}, allowed are {', '.join(known)}")
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, known[key]):
        allowed = getattr(known[key], "__name__", None) if isinstance(known[key], type) else None
        shown = str(known[key]).removeprefix("typing.")
        raise ValueError(
            f"{source}: {key}: got {reprlib.repr(value)}, allowed is {allowed or shown}"
        )
    return value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type; a whole number is a float, too."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if get_origin(kind) is UnionType:
        return any(_fits(value, one) for one in inner)
    if get_origin(kind) is tuple:
        return (
            isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
        )
    return type(value) is kind or (kind is float and type(value) is int)
