"""The identity of a run: the settings that must not change when it is resumed, and what must be
equal on all ranks. docs/resume.md has the table."""

import contextlib
import functools
import hashlib
import os
import platform
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch

import fastdeit
from fastdeit.checkpoint.store import list_checkpoints
from fastdeit.config.changes import (
    ARCHITECTURE,
    MAY_CHANGE_ON_RESUME,
    MAY_CHANGE_WHEN_FINISHED,
    list_changes,
    list_values,
    read_settings,
)
from fastdeit.config.parse import name_flag
from fastdeit.config.schema import Config
from fastdeit.data.index import Index
from fastdeit.display.text import printable, quote_words
from fastdeit.distributed.collectives import check_same_on_ranks
from fastdeit.distributed.versions import versions
from fastdeit.run.inputs import compare_files, read_inputs
from fastdeit.storage.run_folder import RunFolder


def check_same_run(config: Config, folder: RunFolder) -> None:
    """Raise ValueError if the run folder cannot be written, or holds a run with other settings or
    with other contents of the files that they name. Neither data nor a model is loaded."""
    path = folder.path
    if path.exists() and not path.is_dir():
        raise ValueError(f"--output-dir must be a folder or a new name (got the file {path})")
    above = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(
            f"--output-dir must be in a folder that can be written "
            f"(got {path}, which cannot be written below {above})"
        )
    if not folder.config.is_file():
        if folder.is_finished:
            fault = "missing, so that nothing shows whether this is the command of the finished run"
            raise ValueError(f"{folder.config}: {fault}")
        return
    may_change = MAY_CHANGE_WHEN_FINISHED if folder.is_finished else MAY_CHANGE_ON_RESUME
    if not config.model.model:
        may_change |= ARCHITECTURE  # the file of --finetune, which has these, does not exist
    files = compare_files(config, read_inputs(folder))
    _check_settings(config, folder, may_change | files.keys())
    changed = [line for line in files.values() if line]
    if changed:
        raise ValueError(
            f"{_name_run(folder)} with other files: {'; '.join(changed)}{_advise_another(folder)}"
        )


def check_same_settings(config: Config, folder: RunFolder) -> None:
    """Raise ValueError naming the settings in which the run in a folder differs from `config`."""
    _check_settings(config, folder, MAY_CHANGE_ON_RESUME)


def _check_settings(config: Config, folder: RunFolder, may_change: Set[str]) -> None:
    then = read_settings(folder.config, "--output-dir")
    changed = list_changes(then, config, may_change)
    if changed:
        advice = f"--config {folder.config} has those of the run{_advise_another(folder)}"
        raise ValueError(f"{_name_run(folder)} with other settings: {'; '.join(changed)}; {advice}")


def _advise_another(folder: RunFolder) -> str:
    """Return how to begin another run from the newest checkpoint, as the end of a message."""
    newest = list_checkpoints(folder.checkpoints)[:1]
    if not newest:
        return ""
    flags = quote_words("--resume", newest[0], "--output-dir", "NEW")
    return f"; {flags} begins another run from its newest checkpoint"


def _name_run(folder: RunFolder) -> str:
    kind = "finished run" if folder.is_finished else "run"
    return f"--output-dir must be another folder: {folder} holds a {kind}"


def check_same_everywhere(config: Config) -> None:
    """Raise ValueError on every rank, naming what differs, unless all have the settings, code and
    versions of rank 0. A collective."""
    check_same_on_ranks(_describe_process(config))


def _describe_process(config: Config) -> dict[str, Any]:
    """Return the settings by flag, the hash of the code, and the versions."""
    settings = {name_flag(name): value for name, value in list_values(config).items()}
    return settings | {"code": code_digest()} | versions()


def check_same_images(train_index: Index, val_index: Index, pixels: str) -> None:
    """Raise ValueError on every rank unless all read the images of rank 0, and in the same way;
    machines may have different copies.

    pixels: backend and decoder, which `auto` chooses by the machine. A collective.
    """
    facts: dict[str, Any] = {"augmentation": pixels}
    for split, index in (("training", train_index), ("validation", val_index)):
        facts[f"number of {split} images"] = len(index)
        facts[f"names and sizes of {split} images"] = index.fingerprint()
    check_same_on_ranks(facts)


@functools.cache
def name_device(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor and how many of its cores this process has."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = f"{len(os.sched_getaffinity(0))} cores"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return printable(f"{line.partition(': ')[2]}, {cores}")
    return f"{platform.machine()}, {cores}"


@functools.cache
def code_digest() -> str:
    """Return a hash of every Python file of this package and of the kernels' launches, which decide
    the order of sums, by name and content."""
    root = Path(fastdeit.__file__).parent
    digest = hashlib.sha256()
    # rglob follows no link below its start, and `kernels` is one
    kernels = root / "kernels"
    for path in sorted({*root.rglob("*.py"), *kernels.rglob("*.py"), *kernels.glob("*.json")}):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
