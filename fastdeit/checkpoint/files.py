"""The files of a checkpoint folder: written with a manifest of their sizes and digests, and trusted
only as far as it holds.

Whoever can write a checkpoint can write its manifest, too: digests find damage, not intent. So
names are those of a fixed form, JSON and headers are bounded, and nothing is ever unpickled.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

FORMAT = 1
JSON_LIMIT = 1 << 20
"""Bytes of manifest.json and of state.json."""

_NAME = re.compile(r"state\.json|[a-z_]{1,32}\.safetensors")
_COUNTS = ("step", "adam_step", "skipped")
Tensors = Mapping[str, Mapping[str, torch.Tensor]]


class NewerFormat(ValueError):
    """A checkpoint of a later version: whole as far as can be told, so nothing to pass over."""


def write_files(work: Path, tensors: Tensors, state: Mapping[str, Any]) -> None:
    """Fills a folder, all of it on the disk at the end, the manifest last. Raises OSError."""
    for stem, named in tensors.items():
        try:
            save_file(
                {name: tensor.contiguous() for name, tensor in named.items()},
                work / f"{stem}.safetensors",
            )
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(f"{stem}.safetensors: {error}") from error
    (work / "state.json").write_text(json.dumps(dict(state), indent=1))
    for path in work.iterdir():
        sync(path)
    _write_manifest(work)
    sync(work)


def _write_manifest(work: Path) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(work.iterdir())
    }
    path = work / "manifest.json"
    path.write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))
    sync(path)


def read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 by file name. Raises NewerFormat, or ValueError for what is no checkpoint of
    ours."""
    if not (path / "manifest.json").is_file():
        raise ValueError(f"{path}: no checkpoint: {_what_instead(path)}")
    manifest = read_json(path / "manifest.json")
    written_as, files = manifest.get("format"), manifest.get("files")
    if type(written_as) is int and written_as > FORMAT:
        raise NewerFormat(
            f"{path}: written by a later version (format {written_as}), this one reads format {FORMAT}"
        )
    if written_as != FORMAT or not isinstance(files, dict):
        raise ValueError(
            f"{path}: damaged: manifest.json has format {written_as!r}, allowed is {FORMAT}, with a list of files"
        )
    return {name: _facts(path, name, facts) for name, facts in files.items()}


def _facts(path: Path, name: str, facts: Any) -> tuple[int, str]:
    size, digest = (
        (facts.get("bytes"), facts.get("sha256")) if isinstance(facts, dict) else (None, None)
    )
    if not _NAME.fullmatch(name) or type(size) is not int or not isinstance(digest, str):
        raise ValueError(
            f"{path}: damaged: manifest.json lists {name!r}, not a file of a checkpoint with size and SHA-256"
        )
    return size, digest


def _what_instead(path: Path) -> str:
    if path.is_file():
        return "a file; allowed is a folder step-N of a run's checkpoints; weights alone (.safetensors, .pth) go to --finetune"
    foreign = (
        "latest",
        "global_step*",
        "mp_rank_*",
        "*zero_pp_rank_*",
        "zero_to_fp32.py",
        "*.pt",
        "*.pth",
        "*.bin",
    )
    found = next((found for pattern in foreign for found in path.glob(pattern)), None)
    if found is not None:
        return f"{found.name} is of DeepSpeed's or another pickled form, which is not read; weights alone go to --finetune"
    below = sorted(path.glob("step-*")) or sorted(path.glob("checkpoints/step-*"))
    return f"name one below it, as {below[-1]}" if below else "manifest.json is missing"


def compare_files(path: Path, files: Mapping[str, tuple[int, str]]) -> None:
    """Raises ValueError naming the first file that is missing or not of the size and SHA-256 that
    `read_manifest` gave."""
    for name, (size, digest) in files.items():
        file = path / name
        whole = file.is_file() and not file.is_symlink() and file.stat().st_size == size
        if not whole or _sha256(file) != digest:
            raise ValueError(f"{path}: damaged: {name} is not what manifest.json lists")


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint folder. Raises ValueError if it lacks a count that training goes
    on from."""
    state = read_json(path / "state.json")
    for name in _COUNTS:
        if type(state.get(name)) is not int or state[name] < 0:
            raise ValueError(
                f"{path}: damaged: state.json has {name} {state.get(name)!r}, allowed is a number, 0 or more"
            )
    return state


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises ValueError if there is none, or more than `JSON_LIMIT` bytes."""
    with path.open("rb") as file:
        text = file.read(JSON_LIMIT + 1)
    if len(text) > JSON_LIMIT:
        raise ValueError(f"{path}: damaged: more than {JSON_LIMIT:,} bytes")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: damaged: no JSON object")
    return value


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Has the system put a file or a folder's list of names on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
