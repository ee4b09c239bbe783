"""JSON of unknown origin: limited in size, read as data, and refused with one line."""

import json
import reprlib
from pathlib import Path
from typing import Any

from fastdeit.storage.atomic import read_bounded

MAX_BYTES = 1 << 22
"""The largest size of a text; timm's config.json has the names of up to 21,843 classes."""


MAX_DEPTH = 64
"""The largest depth of values in values; our files have at most 8. Python reads hundreds, but
cannot write them."""


def load_json(text: str | bytes) -> Any:
    """Return the value of JSON that is nested at most `MAX_DEPTH` deep. Raises ValueError."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    # most texts have fewer brackets: then the depth is not measured
    if _count_brackets(text) > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"values are nested more than {MAX_DEPTH} deep")
    return value


def _count_brackets(text: str | bytes) -> int:
    if isinstance(text, str):
        return text.count("[") + text.count("{")
    return text.count(b"[") + text.count(b"{")


def _is_deeper(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(one, depth - 1) for one in inner)


def parse_json(text: str | bytes, where: str) -> Any:
    """Return the value of JSON. Raises ValueError, which names `where` it is."""
    try:
        return load_json(text)
    except ValueError:
        raise ValueError(f"{where} must be JSON (got {reprlib.repr(text)})") from None


def read_json_file(path: Path, limit: int = MAX_BYTES) -> Any:
    """Return the value of a JSON file of at most `limit` bytes. Raises ValueError for a longer file
    and for one that is not JSON, OSError."""
    # bytes: in these json skips a byte order mark
    return parse_json(read_bounded(path, limit).encode(), str(path))
