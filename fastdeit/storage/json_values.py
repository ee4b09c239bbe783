"""JSON of unknown origin: bounded, read as data, and refused in one line."""

import json
import reprlib
from pathlib import Path
from typing import Any

from fastdeit.storage.atomic import read_bounded

MAX_BYTES = 1 << 22
"""Of a text; timm's config.json has the names of up to 21,843 classes."""


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON. Raises ValueError, naming `where` it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{where} must be JSON (got {reprlib.repr(text)})") from None


def read_json_file(path: Path, limit: int = MAX_BYTES) -> Any:
    """Read a JSON file of at most `limit` bytes. Raises ValueError, OSError."""
    # as bytes, of which json skips a byte order mark
    return parse_json(read_bounded(path, limit).encode(), str(path))
