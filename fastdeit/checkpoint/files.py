"""The files of a checkpoint folder, and the manifest of their sizes and hashes.

Whoever can write a checkpoint can write its manifest, too: hashes find damage, not intent. So file
names have a fixed form, JSON and tensor headers are bounded, and nothing is ever unpickled.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastdeit.storage.atomic import read_bounded, sync
from fastdeit.storage.file_hash import hash_file
from fastdeit.storage.json_values import load_json
from fastdeit.storage.tensor_files import write_tensors

FORMAT = 1
"""The format that is written, and the only one that is read."""
JSON_LIMIT = 1 << 20
"""The largest size of manifest.json and of state.json, in bytes."""

WEIGHTS = ("model", "ema")
"""Sets of tensors that are whole state dicts of the model."""

_NAME = re.compile(r"state\.json|[a-z_]{1,32}\.safetensors")
_COUNTS = ("step", "adam_step", "skipped")
_FOREIGN = (
    "latest",
    "global_step*",
    "mp_rank_*",
    "*zero_pp_rank_*",
    "zero_to_fp32.py",
    "*.pt",
    "*.pth",
    "*.bin",
)

Tensors = Mapping[str, Mapping[str, torch.Tensor]]
"""Tensors by set and name; each set is a file."""


class NewerFormat(ValueError):
    """Error for a checkpoint of a later version: as far as this version can see it is whole, so it
    is never skipped."""


def write_files(
    work: Path,
    tensors: Tensors,
    state: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the files of a checkpoint into a folder, the manifest last, and wait until all of it is
    on the disk.

    metadata: that of the files of weights. Raises OSError.
    """
    for stem, named in tensors.items():
        about = metadata if metadata and stem in WEIGHTS else {}
        write_tensors(work / f"{stem}.safetensors", named, about)
    (work / "state.json").write_text(json.dumps(dict(state), indent=1))
    for path in work.iterdir():
        sync(path)
    _write_manifest(work)
    sync(work)


def _write_manifest(work: Path) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in sorted(work.iterdir())
    }
    path = work / "manifest.json"
    path.write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))
    sync(path)


def read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 by file name.

    Raises NewerFormat, or ValueError for a folder that is not a checkpoint of ours.
    """
    if not (path / "manifest.json").is_file():
        raise ValueError(f"{path}: no checkpoint: {_describe_instead(path)}")
    manifest = read_json(path / "manifest.json")
    version = manifest.get("format")
    files = manifest.get("files")
    if type(version) is int and version > FORMAT:
        problem = f"written by a later version (format {version})"
        raise NewerFormat(f"{path}: {problem}, this one reads format {FORMAT}")
    if version != FORMAT or not isinstance(files, dict):
        problem = f"manifest.json must have format {FORMAT} and a list of files"
        raise ValueError(f"{path}: damaged: {problem} (got format {version!r})")
    return {name: _read_entry(path, name, entry) for name, entry in files.items()}


def _read_entry(path: Path, name: str, entry: Any) -> tuple[int, str]:
    """Return size and SHA-256 of a file from its entry in the manifest."""
    size = entry.get("bytes") if isinstance(entry, dict) else None
    digest = entry.get("sha256") if isinstance(entry, dict) else None
    if not _NAME.fullmatch(name) or type(size) is not int or not isinstance(digest, str):
        problem = f"manifest.json lists {name!r}, not a file of a checkpoint with size and SHA-256"
        raise ValueError(f"{path}: damaged: {problem}")
    return size, digest


def _describe_instead(path: Path) -> str:
    """Return what a path is that has no manifest, and what the user may do about it."""
    if path.is_file():
        expected = "must be a folder step-N of a run's checkpoints (got a file)"
        return f"{expected}; weights alone (.safetensors, .pth) go to --finetune"
    foreign = [file.name for pattern in _FOREIGN for file in path.glob(pattern)]
    if foreign:
        form = "DeepSpeed's or another pickled form, which is not read"
        return f"{foreign[0]} is of {form}; weights alone go to --finetune"
    below = sorted(path.glob("step-*")) or sorted(path.glob("checkpoints/step-*"))
    return f"name one below it, such as {below[-1]}" if below else "manifest.json is missing"


def compare_files(path: Path, files: Mapping[str, tuple[int, str]]) -> None:
    """Raise ValueError naming the first file that is missing, or not of the size and SHA-256 that
    `read_manifest` returned."""
    for name, (size, digest) in files.items():
        file = path / name
        same_size = file.is_file() and not file.is_symlink() and file.stat().st_size == size
        if not same_size or hash_file(file) != digest:
            raise ValueError(f"{path}: damaged: {name} is not what manifest.json lists")


def read_state(path: Path) -> dict[str, Any]:
    """Return state.json of a checkpoint folder.

    Raises ValueError if it lacks a count that a resumed run needs.
    """
    state = read_json(path / "state.json")
    for name in _COUNTS:
        count = state.get(name)
        if type(count) is not int or count < 0:
            problem = f"state.json: {name} must be an integer, 0 or more (got {count!r})"
            raise ValueError(f"{path}: damaged: {problem}")
    return state


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file of at most `JSON_LIMIT` bytes. Raises ValueError for anything
    else, and OSError."""
    try:
        value = load_json(read_bounded(path, JSON_LIMIT))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: damaged: must be a JSON object of at most {JSON_LIMIT:,} bytes")
    return value
