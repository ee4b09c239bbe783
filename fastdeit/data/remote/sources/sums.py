"""Lists of files beside a data set: the manifest of `fastdeit pack`, sha256sum's, plain names."""

import re
from typing import Any, NamedTuple

from fastdeit.data.remote.addresses import check_names
from fastdeit.data.remote.source import FetchError
from fastdeit.storage.json_values import load_json

MANIFESTS = ("pack.json", "SHA256SUMS")
"""The names of lists that a folder may have, in the order of the search."""
MAX_BYTES = 1 << 28
"""The largest size of a list: 1.3 million names with their hashes."""

_LIST = re.compile(r"(^|/)(SHA256SUMS|[^/]+\.(json|txt|sha256|sha256sums?))$")
_LINE = re.compile(r"\\?([0-9a-f]{64}) [ *](.+)", re.IGNORECASE)
_HASH = re.compile(r"[0-9a-f]{64}")


class Listed(NamedTuple):
    """A file in a list; size: -1 if the list has none; checksum: as `RemoteFile`."""

    name: str
    size: int = -1
    checksum: str = ""
    is_file: bool = True
    """Whether it is one file; False for a folder of images, which a manifest does not name."""


def is_list(path: str) -> bool:
    """Return True if a path is the name of a list of files."""
    return _LIST.search(path) is not None


def read_list(path: str, data: bytes, where: str) -> list[Listed]:
    """Return the files that a list names. path: the name of the list; where: its address, for
    messages.

    Raises FetchError for data that are not a list, and for names that no file in a folder can have.
    """
    try:
        text = data.decode("utf-8-sig")
        listed = _read_manifest(text) if path.endswith(".json") else _read_lines(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        forms = "the pack.json of fastdeit pack, sha256sum's list, or one name a line"
        raise FetchError(f"{where}: must be {forms} ({error})") from None
    if not listed:
        raise FetchError(f"{where}: names no file")
    check_names([one.name for one in listed], where)
    return listed


def _read_lines(text: str) -> list[Listed]:
    lines = [line.strip("\r") for line in text.split("\n")]
    return [_read_line(line) for line in lines if line.strip() and not line.startswith("#")]


def _read_line(line: str) -> Listed:
    found = _LINE.fullmatch(line)
    name = found[2] if found else line.strip()
    if "://" in name:
        raise ValueError(f"a name must be relative to the list (got {name.partition('?')[0]!r})")
    checksum = f"sha256:{found[1].lower()}" if found else ""
    return Listed(name.removeprefix("./"), -1, checksum)


def _read_manifest(text: str) -> list[Listed]:
    return [_read_entry(entry) for entry in load_json(text)["files"]]


def _read_entry(entry: dict[str, Any]) -> Listed:
    name, size, digest = entry["name"], entry["bytes"], entry["sha256"]
    if not (isinstance(name, str) and type(size) is int and size >= 0 and _HASH.fullmatch(digest)):
        raise ValueError(f"a file must have name, bytes and sha256 (got {entry!r:.80})")
    is_shard = name.endswith(".tar")
    return Listed(name, size, f"sha256:{digest}", is_shard or not entry.get("split"))
