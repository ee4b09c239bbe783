"""URLs of data sets: their forms, without credentials, and the local names of their files."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from fastdeit.data.remote.source import FetchError, RemoteFile
from fastdeit.display.text import printable
from fastdeit.storage.urls import find_cached, name_cached

OWN = ".fastdeit"
"""The folder in a data set for files of this program; it is never fetched."""
_MAX_NAME = 255  # bytes of one name in a path, on Linux


def split_pattern(path: str) -> tuple[str, str]:
    """Return the longest folder of a path that has no braces or wildcards, and the rest, which is
    "" for a path without them."""
    found = re.search(r"[*?\[{]", path)
    if found is None:
        return path, ""
    cut = path.rfind("/", 0, found.start()) + 1
    return path[:cut].rstrip("/"), path[cut:]


def find_place(url: str, cache: str) -> Path:
    """Return the folder in a cache that holds the files of a URL.

    cache: "" is $FASTDEIT_DATA, or fastdeit/data in the user's cache folder.
    """
    shown = split_pattern(url)[0]
    if cache:
        return Path(cache).expanduser() / name_cached(url, shown)
    return find_cached(url, "data", shown)


def check_names(names: Iterable[str], where: str) -> None:
    """Raise FetchError for a name that leads out of the folder, that no file can have, or that is
    repeated; where: the list's address, for the message."""
    seen: set[str] = set()
    for name in names:
        fault = "is there twice" if name in seen else _find_fault(name)
        if fault:
            raise FetchError(f"{where}: the name {printable(name)!r} {fault}")
        seen.add(name)
    folders = {str(parent) for name in seen for parent in PurePosixPath(name).parents}
    for name in sorted(seen & folders):
        raise FetchError(f"{where}: the name {printable(name)!r} is that of a file and of a folder")


def _find_fault(name: str) -> str:
    parts = name.split("/")
    if not name or {"", ".", ".."} & set(parts) or "\0" in name:
        return "leads out of the folder, or is no name"
    if parts[0] == OWN:
        return f"is in {OWN}, which is this program's own"
    if max(len(os.fsencode(part)) for part in parts) > _MAX_NAME:
        return f"has a part of more than {_MAX_NAME} bytes"
    return ""


def check_case(files: Iterable[RemoteFile], folder: Path) -> None:
    """Raise FetchError if two names differ only in upper and lower case (or in the form of an
    accent), and the file system of an existing folder does not distinguish them."""
    seen: dict[str, str] = {}
    for file in files:
        other = seen.setdefault(_fold(file.name), file.name)
        if other != file.name and _merges_case(folder):
            both = f"{printable(other)!r} and {printable(file.name)!r}"
            raise FetchError(f"{folder}: its file system takes {both} for one name")


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _merges_case(folder: Path) -> bool:
    probe = folder / OWN / "Case"
    probe.touch()
    merges = probe.with_name("case").exists()
    probe.unlink()
    return merges
