"""Selection of the checkpoint that a run resumes from: the newest that every rank can load."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fastdeit.checkpoint.files import NewerFormat, Tensors
from fastdeit.checkpoint.store import list_checkpoints, load_checkpoint, step_of
from fastdeit.config.file import read_config_file
from fastdeit.distributed.collectives import on_rank0
from fastdeit.storage.run_folder import RunFolder


@dataclass
class LoadedCheckpoint:
    """A checkpoint in memory; damaged: a line for each newer one that cannot be loaded."""

    path: Path
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]
    damaged: list[str] = field(default_factory=list)


def find_checkpoint(
    folder: RunFolder, named: str, layout: Tensors, before: int | None = None
) -> LoadedCheckpoint | None:
    """Load the checkpoint that all ranks find whole; None if a run folder has none. A collective.

    named: the one to load (--resume), "" for the newest whole one of the run `folder`; layout: as
    `load_checkpoint` takes it; before: if given, only the run's own checkpoints of earlier steps
    are tried. Raises ValueError, the same on every rank, if the named one is not whole or does not
    fit, or if no checkpoint is whole; also if the newest was written by a later version, whose work
    would be lost with an older checkpoint.
    """
    candidates, is_named = on_rank0(lambda: _list_candidates(folder, named, before))
    damaged: list[str] = []
    for path in candidates:
        loaded, fault = _load_everywhere(path, layout)
        if loaded is not None and fault is None:
            loaded.damaged = damaged
            return loaded
        if fault is not None and (is_named or isinstance(fault, NewerFormat)):
            raise fault
        damaged.append(str(fault))
    if damaged:
        advice = "no whole checkpoint; remove them to start from the beginning"
        raise ValueError("\n  ".join([f"--output-dir: {folder} has {advice}:", *damaged]))
    return None


def _list_candidates(folder: RunFolder, named: str, before: int | None) -> tuple[list[Path], bool]:
    """Return the checkpoints to try, the first choice first, and True if that is the named one."""
    own = list_checkpoints(folder.checkpoints)
    if before is not None:
        own = [path for path in own if step_of(path) < before]
    if named and not (own and _started_with(folder, named)):
        return [Path(named)], True
    return own, False


def _started_with(folder: RunFolder, named: str) -> bool:
    """Return True if a command with the same --resume has used the run folder before.

    Then this one continues from what that has saved.
    """
    if not folder.config.is_file():
        return False
    settings = read_config_file(folder.config, "--output-dir")
    return settings.get("checkpoint", {}).get("resume") == named


def _load_everywhere(
    path: Path, layout: Tensors
) -> tuple[LoadedCheckpoint | None, ValueError | None]:
    """Load a checkpoint on every rank; return it, and the fault of the first rank that has one."""
    loaded: LoadedCheckpoint | None = None
    fault: ValueError | None = None
    try:
        loaded = LoadedCheckpoint(path, *load_checkpoint(path, layout))
    except ValueError as error:
        fault = error
    faults: list[ValueError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(faults, fault)
    return loaded, next((fault for fault in faults if fault is not None), None)
