"""Checkpoints in a portable form of our own: safetensors and JSON by parameter name, independent of
ZeRO stage and world size.

A checkpoint is a folder `step-00000123/` with one .safetensors file for each named set of tensors,
`state.json`, and `manifest.json` with the size and SHA-256 of the others. It is written under a
temporary name, flushed, then renamed: what has the final name is whole. No state of random
generators is stored, as nothing that decides a run draws from them: the plan's draws follow from
(seed, epoch, ordinal), those of a timm model from (seed, step, samples). Nothing is pickled.
"""

import contextlib
import itertools
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastdeit.checkpoint.files import (
    Tensors,
    compare_files,
    read_manifest,
    read_state,
    write_files,
)
from fastdeit.storage.atomic import sync
from fastdeit.storage.tensor_files import check_header, read_tensors

MIN_KEPT = 2
"""The number of the newest whole checkpoints that are never removed."""
OPTIONAL = frozenset({"ema"})
"""Sets of tensors that a checkpoint may lack: a run can begin its EMA from the weights."""

_ASIDE = ".aside"


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Tensors,
    state: Mapping[str, Any],
    keep: int,
    scores: Mapping[int, float] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write `folder/step-N` atomically, then remove older ones as `prune_checkpoints` does.

    tensors: sets of CPU tensors by file stem and name; state: JSON values; metadata: of the
    weights. Raises ValueError for a value that is not finite, OSError when the disk refuses; then
    nothing of the new checkpoint remains, and the older ones have not changed.
    """
    _check_finite(tensors)
    final = folder / f"step-{step:08d}"
    work = folder / f"{final.name}.tmp-{uuid.uuid4().hex[:8]}"
    work.mkdir(parents=True)
    try:
        write_files(work, tensors, state, metadata)
        _put_in_place(work, final)
    except OSError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    sync(folder)
    sync(folder.parent)
    prune_checkpoints(folder, keep, scores or {})
    return final


def _put_in_place(work: Path, final: Path) -> None:
    """Give a written checkpoint its name; remove an older one of that name only after that."""
    old = work.with_name(f"{work.name}-old")
    if final.exists():
        os.rename(final, old)
    try:
        os.rename(work, final)
    except OSError:
        if old.exists():
            os.rename(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def prune_checkpoints(folder: Path, keep: int, scores: Mapping[int, float]) -> None:
    """Remove all checkpoints but the newest `keep` (at least `MIN_KEPT`) and the best one.

    scores: as of `find_best`. A damaged checkpoint does not count among these: before any is
    removed, the newest `MIN_KEPT` are loaded again.
    """
    keep = max(keep, MIN_KEPT)
    found = list_checkpoints(folder)
    if len(found) <= keep:
        return
    kept: list[Path] = []
    for path in found:
        if len(kept) < keep and (len(kept) >= MIN_KEPT or _is_whole(path)):
            kept.append(path)
    if len(kept) < MIN_KEPT:
        return  # the disk cannot be read: any of them may be needed
    best = find_best(found, scores)
    for path in found:
        if path not in kept and path != best:
            _remove(path)


def find_best(found: Sequence[Path], scores: Mapping[int, float]) -> Path | None:
    """Return the checkpoint with the highest score, of equal ones the later; None if none has one.

    scores: by step.
    """
    scored = [path for path in found if step_of(path) in scores]
    return max(scored, key=lambda path: (scores[step_of(path)], step_of(path)), default=None)


def _remove(path: Path) -> None:
    """Remove a checkpoint, so that what has a final name is whole even if the process is killed.

    It first gets a name that `remove_temporary` finds.
    """
    work = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(OSError):
        path.rename(work)
        shutil.rmtree(work, ignore_errors=True)


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(path.name.removeprefix("step-"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints with a final name, newest first, whole or not."""
    found = [
        path
        for path in folder.glob("step-*")
        if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()
    ]
    return sorted(found, key=step_of, reverse=True)


def verify_checkpoint(path: Path, layout: Tensors | None = None) -> None:
    """Raise ValueError naming the first file that is missing or is not what the manifest lists.

    layout: the expected tensors by set and name, of which only shape and dtype count. They are
    compared first, with the files' headers, so that no memory is taken for anything else.
    """
    try:
        files = read_manifest(path)
        for stem, wanted in (layout or {}).items():
            if f"{stem}.safetensors" in files:
                check_header(path / f"{stem}.safetensors", wanted)
            elif stem not in OPTIONAL:
                raise ValueError(f"{path}: damaged: manifest.json lists no {stem}.safetensors")
        compare_files(path, files)
        read_state(path)
    except OSError as error:
        raise ValueError(f"{path}: damaged: {error}") from error


def load_checkpoint(
    path: Path, layout: Tensors | None = None
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Return the tensors (on the CPU, by set and name) and the state of a whole checkpoint.

    layout: as in `verify_checkpoint`; other sets are not read. Raises ValueError if the checkpoint
    is not whole, or holds a value that is not finite.
    """
    verify_checkpoint(path, layout)
    files = [path / name for name in read_manifest(path) if name.endswith(".safetensors")]
    wanted = [file for file in files if layout is None or file.stem in layout]
    tensors = {file.stem: read_tensors(file)[0] for file in wanted}
    try:
        _check_finite(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return tensors, read_state(path)


def _check_finite(tensors: Tensors) -> None:
    for stem, named in tensors.items():
        for name, tensor in named.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"not finite: {name} of {stem}")


def remove_temporary(folder: Path) -> None:
    """Remove what interrupted saves have left in a folder of checkpoints."""
    for path in folder.glob("step-*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path, after: int) -> list[Path]:
    """Rename the checkpoints later than step `after`, so that they are not found again.

    A run that resumes from `after` either found them damaged or has rolled back; its next saves
    must not compete with them. Returns the new names.
    """
    return [rename_aside(path) for path in list_checkpoints(folder) if step_of(path) > after]


def rename_aside(path: Path) -> Path:
    """Rename a checkpoint, so that it is not found again; return its new name."""
    name = path.name + _ASIDE
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(1)))
    free = (place for place in map(path.with_name, names) if not place.exists())
    return path.rename(next(free))


def _is_whole(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except ValueError:
        return False
    return True
