"""A config file's contents into a `Config`: what is in it is checked before it replaces a default."""

import dataclasses
from typing import Any

from fastdeit.config import Config


def config_from_dict(base: Config, values: Any, source: str) -> Config:
    """`base` with the fields in `values` (what `Config.to_dict` gives, whole or in part) put in.

    Raises ValueError naming `source`, the field and what is allowed, for an unknown section or field or a wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: got {type(values).__name__}, allowed is a mapping of sections")
    sections = {}
    for section, fields in values.items():
        known = [item.name for item in dataclasses.fields(base)]
        if section not in known or not isinstance(fields, dict):
            raise ValueError(f"{source}: got section {section!r}, allowed are {', '.join(known)}, each a mapping")
        sections[section] = {key: _checked(getattr(base, section), key, value, source) for key, value in fields.items()}
    return base.replace(**sections)


def _checked(section: Any, key: str, value: Any, source: str) -> Any:
    known = {item.name: item for item in dataclasses.fields(section)}
    if key not in known:
        raise ValueError(f"{source}: got field {key!r}, allowed are {', '.join(known)}")
    value = tuple(value) if isinstance(value, list) else value
    default = getattr(type(section)(), key)
    numbers = isinstance(default, int | float) and not isinstance(default, bool)
    same = isinstance(value, int | float) and not isinstance(value, bool) if numbers else isinstance(value, type(default))
    if default is not None and not same:
        raise ValueError(f"{source}: {key}: got {value!r}, allowed is the type of {default!r}")
    return value
