"""Config files. They may come from anywhere, so they are read as plain values and checked before
any value replaces a default."""

import dataclasses
import os
import re
import reprlib
from collections.abc import Hashable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import yaml

from fastdeit.config.schema import Config
from fastdeit.storage.atomic import read_bounded

MAX_BYTES = 1 << 16

MOVED = {
    ("run", "resume"): "checkpoint",
    ("run", "save_steps"): "checkpoint",
    ("run", "keep_checkpoints"): "checkpoint",
    ("run", "max_bad_steps"): "health",
    ("run", "max_rollbacks"): "health",
    ("run", "checksum_steps"): "health",
}
"""The section that now has a field, by its section and its name in an older file."""

_PLAIN = {
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)",
    "null": "~|null|Null|NULL|",
}
"""The forms of values without quotes that are not text. YAML 1.1, which PyYAML reads, has others,
which YAML 1.2 reads differently: in YAML 1.1 010 is 8, 1:30:00 is 5400, and off is false."""
_SWITCHES = {"yes": True, "on": True, "no": False, "off": False}


class _PlainLoader(yaml.SafeLoader):
    """A YAML loader that refuses repeated keys, and aliases, with which a short file can make
    billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                problem = f"{key.value!r} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_PlainLoader.yaml_implicit_resolvers = {
    None: [(f"tag:yaml.org,2002:{tag}", re.compile(f"({text})$")) for tag, text in _PLAIN.items()]
}


def read_config_file(path: Path, flag: str) -> dict[str, dict[str, Any]]:
    """Return the sections of a YAML file; a field of an older file is in its new section (`MOVED`).

    flag: the flag that named the file, for the errors. Raises ValueError, with a message of one
    line, unless the file is a mapping of mappings, of at most `MAX_BYTES`, without tags, aliases
    and repeated keys; OSError for a file that cannot be read.
    """
    try:
        values = yaml.load(read_bounded(path, MAX_BYTES), _PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{flag}: {path} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{flag}: {path} is not YAML: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{flag}: {path}: {error}") from None
    where = f"{flag}: {path}"
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a mapping of sections (got {type(values).__name__})")
    for section, fields in values.items():
        if not isinstance(section, str) or not isinstance(fields, dict):
            shown = reprlib.repr(section)
            raise ValueError(f"{where}: section {shown} must be a mapping of fields")
    return _move_fields(values, where)


def _move_fields(values: dict[str, dict[str, Any]], where: str) -> dict[str, dict[str, Any]]:
    """Return the sections, with the fields of an older file in their new sections. Raises
    ValueError for a field that is in both."""
    moved = {section: dict(fields) for section, fields in values.items()}
    for (old, name), new in MOVED.items():
        if name not in moved.get(old, {}):
            continue
        fields = moved.setdefault(new, {})
        if name in fields:
            raise ValueError(f"{where}: {name} is in both {old} and {new}")
        fields[name] = moved[old].pop(name)
    return moved


def config_from_dict(base: Config, values: dict[str, dict[str, Any]], source: str) -> Config:
    """Return `base` with the fields of `values`, all or some of those in `Config.to_dict`, changed.

    Raises ValueError, which names `source`, the field and what is allowed, for an unknown section
    or field or a wrong type.
    """
    known = [item.name for item in dataclasses.fields(base)]
    sections = {}
    for section, fields in values.items():
        if section not in known:
            allowed = ", ".join(known)
            raise ValueError(
                f"{source}: a section must be one of {allowed} (got {reprlib.repr(section)})"
            )
        now = getattr(base, section)
        sections[section] = {key: _check(now, key, fields[key], source) for key in fields}
    return base.replace(**sections)


def _check(section: Any, key: str, value: Any, source: str) -> Any:
    """Return a value in the form of its field. Raises ValueError for an unknown field or a wrong
    type."""
    types = {item.name: item.type for item in dataclasses.fields(section)}
    if key not in types:
        allowed = ", ".join(types)
        raise ValueError(f"{source}: a field must be one of {allowed} (got {reprlib.repr(key)})")
    value = tuple(value) if isinstance(value, list) else value
    value = _read_text(value, types[key]) if isinstance(value, str) else value
    if not _is_of_type(value, types[key]):
        shown = reprlib.repr(value)
        raise ValueError(f"{source}: {key} must be {_type_name(types[key])} (got {shown})")
    return value


def _read_text(text: str, kind: Any) -> Any:
    """Return the value of a text in a field of that type: `1e-3`, which is text in YAML 1.1, is a
    number, `on` is True, `~/` the home folder; any other text is not changed."""
    if kind is str and text.startswith("~/"):
        return os.path.expanduser(text)
    if kind is float and re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+", text):
        return float(text)
    return _SWITCHES.get(text.lower(), text) if kind is bool else text


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).removeprefix("typing.")


def _is_of_type(value: Any, kind: Any) -> bool:
    """Return True if a value is of a field's type; a whole number is also a float."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        # in Python True == 1 == 1.0
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if get_origin(kind) is UnionType:
        return any(_is_of_type(value, one) for one in inner)
    if get_origin(kind) is tuple and inner[-1] is Ellipsis:
        return isinstance(value, tuple) and all(_is_of_type(item, inner[0]) for item in value)
    if get_origin(kind) is tuple:
        whole = isinstance(value, tuple) and len(value) == len(inner)
        return whole and all(map(_is_of_type, value, inner))
    return type(value) is kind or (kind is float and type(value) is int)
