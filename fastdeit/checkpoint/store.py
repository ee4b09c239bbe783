"""Checkpoints in a portable form of our own: safetensors and JSON by parameter name, free of stage
and world size.

A checkpoint is a folder `step-00000123/` with one .safetensors file for each named set of tensors,
`state.json`, and `manifest.json` with the size and SHA-256 of the others. It is written under a
temporary name, flushed, then renamed: what carries the final name is whole. No state of random
generators is kept: nothing that decides a run draws from them; the plan's draws follow from (seed,
epoch, ordinal), those of a timm model from (seed, step, samples). Nothing here is pickled.
"""

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastdeit.checkpoint.files import (
    Tensors,
    compare_files,
    read_manifest,
    read_state,
    sync,
    write_files,
)
from fastdeit.storage.tensor_files import check_header, read_tensors

FEWEST = 2
"""Newest whole checkpoints that are never removed."""
OPTIONAL = frozenset({"ema"})
"""Sets of tensors that a checkpoint may lack: a run can begin its average from the weights."""

_ASIDE = ".aside"


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Tensors,
    state: Mapping[str, Any],
    keep: int,
    scores: Mapping[int, float] | None = None,
) -> Path:
    """Writes `folder/step-N` atomically, then removes older ones as `prune_checkpoints` does.

    tensors: sets of CPU tensors by file stem and name; state: JSON values. Raises ValueError for a
    number that is not finite, OSError when the disk refuses; then nothing of the new checkpoint
    stays and the older ones are untouched.
    """
    _check_finite(tensors)
    final = folder / f"step-{step:08d}"
    work = folder / f"{final.name}.tmp-{uuid.uuid4().hex[:8]}"
    work.mkdir(parents=True)
    try:
        write_files(work, tensors, state)
        _put_in_place(work, final)
    except OSError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    sync(folder)
    sync(folder.parent)
    prune_checkpoints(folder, keep, scores or {})
    return final


def _put_in_place(work: Path, final: Path) -> None:
    """Gives a written checkpoint its name; one that has the name goes only once the new one is
    there."""
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
    """Removes all but the newest `keep` checkpoints, at least `FEWEST`, and the one of the highest
    score.

    scores: by step; of equal ones the later counts. A damaged checkpoint does not count as one that
    is kept: before any is removed, the newest `FEWEST` are loaded again.
    """
    keep = max(keep, FEWEST)
    found = list_checkpoints(folder)
    if len(found) <= keep:
        return
    kept: list[Path] = []
    for path in found:
        if len(kept) < keep and (len(kept) >= FEWEST or _is_whole(path)):
            kept.append(path)
    if len(kept) < FEWEST:
        return  # a disk that does not read: whatever is there may be needed
    scored = [path for path in found if step_of(path) in scores]
    kept += sorted(scored, key=lambda path: (scores[step_of(path)], step_of(path)))[-1:]
    for path in found:
        if path not in kept:
            _remove(path)


def _remove(path: Path) -> None:
    """Under a name that `sweep` knows, should the process end in the middle: what carries a final
    name is whole."""
    work = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(OSError):
        path.rename(work)
        shutil.rmtree(work, ignore_errors=True)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name[5:])


def list_checkpoints(folder: Path) -> list[Path]:
    """Folders with a final name, newest first, whole or not."""
    found = [
        path
        for path in folder.glob("step-*")
        if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()
    ]
    return sorted(found, key=step_of, reverse=True)


def verify_checkpoint(path: Path, layout: Tensors | None = None) -> None:
    """Raises ValueError naming the first file that is missing, of another size, or of another
    content.

    layout: the tensors that are expected by set and name, of which only shape and dtype count;
    checked first, in the files' headers, so that no memory is taken for anything else.
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
    """The tensors (CPU, by set and name) and the state of a whole checkpoint.

    layout: as in `verify_checkpoint`; other sets are left out. Raises ValueError if it is not
    whole, or holds a number that is not finite.
    """
    verify_checkpoint(path, layout)
    stems = [Path(name).stem for name in read_manifest(path) if name.endswith(".safetensors")]
    tensors = {
        stem: read_tensors(path / f"{stem}.safetensors")[0]
        for stem in stems
        if layout is None or stem in layout
    }
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


def sweep(folder: Path) -> None:
    """Removes what interrupted saves left behind."""
    for path in folder.glob("step-*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path, after: int) -> list[Path]:
    """Gives checkpoints later than step `after`, from which a run goes on, a name under which they
    are not found.

    They are damaged, or of a future that the run has left; no save may be compared with them.
    Returns the new names.
    """
    aside = []
    for path in list_checkpoints(folder):
        if step_of(path) > after:
            name = path.name + _ASIDE
            taken = len(list(folder.glob(f"{name}*")))
            aside.append(path.rename(folder / (f"{name}-{taken}" if taken else name)))
    return aside


def _is_whole(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except ValueError:
        return False
    return True
