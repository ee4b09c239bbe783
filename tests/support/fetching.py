"""Files at a source, and fetches of them without output."""

import hashlib
import random
from pathlib import Path
from typing import Any

from fastdeit.data.remote.fetch import Listing, fetch
from fastdeit.display.terminal import Terminal


def make_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def write_files(folder: Path, **sizes: int) -> dict[str, bytes]:
    """Write a file `NAME.tar` of each size; return the contents by name."""
    contents = {}
    for seed, (name, size) in enumerate(sizes.items()):
        contents[f"{name}.tar"] = make_bytes(size, seed)
        (folder / f"{name}.tar").write_bytes(contents[f"{name}.tar"])
    return contents


def write_sums(folder: Path, *names: str) -> None:
    """Write SHA256SUMS for files of a folder."""
    sums = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    lines = [f"{digest}  {name}\n" for digest, name in zip(sums, names, strict=True)]
    (folder / "SHA256SUMS").write_text("".join(lines))


def fetch_quietly(url: str, folder: Path, **options: Any) -> Listing:
    return fetch(url, folder, **{"terminal": Terminal(enabled=False), **options})


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return the contents of the files of a folder by name, without our own."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in names.items() if ".fastdeit" not in name}


def list_parts(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".fastdeit" / "parts").glob("*"))
