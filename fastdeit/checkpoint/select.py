"""Where a run goes on from: every rank takes the same checkpoint, whichever rank finds fault with a
newer one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fastdeit.checkpoint.files import NewerFormat, Tensors
from fastdeit.checkpoint.store import list_checkpoints, load_checkpoint, step_of
from fastdeit.config.file import read_config_file
from fastdeit.storage.run_folder import RunFolder


@dataclass
class LoadedCheckpoint:
    """A checkpoint in memory; passed_over: a line for each newer one that is damaged."""

    path: Path
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]
    passed_over: list[str] = field(default_factory=list)


def find_checkpoint(
    folder: RunFolder, named: str, layout: Tensors, before: int | None = None
) -> LoadedCheckpoint | None:
    """The checkpoint that all ranks can load and hold for whole; None if a run folder has none. A
    collective.

    named: the one to take (--resume), "" for the newest whole one of the run `folder`; layout: as
    `load_checkpoint` takes it; before: only the run's own ones of earlier steps than this. Raises
    ValueError, the same on every rank, if a named one is not whole or does not fit, if none is, or
    if the newest was written by a later version, whose work an older checkpoint would undo.
    """
    candidates, asked_for = _candidates(folder, named, before)
    passed_over: list[str] = []
    for path in candidates:
        found, fault = _try(path, layout)
        if fault is None:
            assert found is not None, "no fault, no checkpoint"
            found.passed_over = passed_over
            return found
        if asked_for or isinstance(fault, NewerFormat):
            raise fault
        passed_over.append(str(fault))
    if passed_over:
        listed = "\n  ".join(passed_over)
        raise ValueError(
            f"--output-dir: {folder} has no whole checkpoint; remove them to start anew:\n  {listed}"
        )
    return None


def _candidates(folder: RunFolder, named: str, before: int | None) -> tuple[list[Path], bool]:
    """What rank 0 finds to go on from, the first choice first; and whether that is the named one."""
    choice: list[tuple[list[Path], bool]] = [([], False)]
    if dist.get_rank() == 0:
        own = [
            path
            for path in list_checkpoints(folder.checkpoints)
            if before is None or step_of(path) < before
        ]
        asked_for = bool(named) and not (own and _began_with(folder, named))
        choice[0] = ([Path(named)] if asked_for else own), asked_for
    dist.broadcast_object_list(choice)
    return choice[0]


def _began_with(folder: RunFolder, named: str) -> bool:
    """Whether a run folder was last used by a command with the same --resume; then this one goes on
    from what that saved."""
    config = folder.config
    return (
        config.is_file()
        and read_config_file(config, "--output-dir").get("checkpoint", {}).get("resume") == named
    )


def _try(path: Path, layout: Tensors) -> tuple[LoadedCheckpoint | None, ValueError | None]:
    """A checkpoint, and the first rank's fault with it if any rank finds one."""
    found: LoadedCheckpoint | None = None
    fault: ValueError | None = None
    try:
        found = LoadedCheckpoint(path, *load_checkpoint(path, layout))
    except ValueError as error:
        fault = error
    faults: list[ValueError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(faults, fault)
    return found, next((fault for fault in faults if fault is not None), None)
