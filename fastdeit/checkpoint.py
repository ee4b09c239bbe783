"""Checkpoints in a portable form of our own: safetensors and JSON by parameter name, free of stage and world size.

A checkpoint is a folder `step-00000123/` with one .safetensors file for each named set of tensors, `state.json`, and
`manifest.json` with the size and SHA-256 of the others. It is written under a temporary name, flushed, then renamed: what
carries the final name is whole. `newest_checkpoint` passes over a damaged one and says so. Nothing here is pickled.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FORMAT = 1
Tensors = Mapping[str, Mapping[str, torch.Tensor]]


def save_checkpoint(folder: Path, step: int, tensors: Tensors, state: Mapping[str, Any], keep: int) -> Path:
    """Writes `folder/step-N` atomically and removes all but the newest `keep` checkpoints.

    tensors: sets of CPU tensors by file stem and name; state: JSON values. Raises OSError when the disk refuses; then
    nothing of the new checkpoint stays and the older ones are untouched.
    """
    final = folder / f"step-{step:08d}"
    if final.exists():  # left from before a restart that found it damaged, or saved a moment ago
        shutil.rmtree(final)
    work = folder / f"{final.name}.tmp-{uuid.uuid4().hex[:8]}"
    work.mkdir(parents=True)
    try:
        _write_files(work, tensors, state)
        os.rename(work, final)
    except OSError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    _sync(folder)
    for old in list_checkpoints(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _write_files(work: Path, tensors: Tensors, state: Mapping[str, Any]) -> None:
    for stem, named in tensors.items():
        save_file({name: tensor.contiguous() for name, tensor in named.items()}, work / f"{stem}.safetensors")
    (work / "state.json").write_text(json.dumps(dict(state), indent=1))
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(work.iterdir())}
    (work / "manifest.json").write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))
    for path in work.iterdir():
        _sync(path)
    _sync(work)


def list_checkpoints(folder: Path) -> list[Path]:
    """Folders with a final name, newest first, whole or not."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, or None, and a line for each newer one that is damaged."""
    complaints = []
    for path in list_checkpoints(folder):
        try:
            verify_checkpoint(path)
        except ValueError as error:
            complaints.append(str(error))
        else:
            return path, complaints
    return None, complaints


def verify_checkpoint(path: Path) -> None:
    """Raises ValueError naming the first file that is missing, of another size, or of another content."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        files, written_as = manifest["files"], manifest["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: no checkpoint: manifest.json is missing or unreadable") from None
    if written_as != FORMAT:
        raise ValueError(f"{path}: format {written_as}, this version reads {FORMAT}")
    for name, facts in files.items():
        file = path / Path(name).name
        if not file.is_file() or file.stat().st_size != facts["bytes"] or _sha256(file) != facts["sha256"]:
            raise ValueError(f"{path}: damaged: {name} is not what manifest.json lists")


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """The tensors (CPU, by file stem and name) and the state of a whole checkpoint. Raises ValueError if it is not."""
    verify_checkpoint(path)
    tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
    return tensors, json.loads((path / "state.json").read_text())


def sweep(folder: Path) -> None:
    """Removes what interrupted saves left behind."""
    for path in folder.glob("step-*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
