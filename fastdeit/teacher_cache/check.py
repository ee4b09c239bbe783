"""Checks that a teacher cache fits a run: facts, kind, coverage and bad images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from fastdeit.config.parse import is_callable
from fastdeit.data.index import Index
from fastdeit.data.quarantine import read_quarantine
from fastdeit.models.teachers.ensemble import LiveTeacher
from fastdeit.models.teachers.identity import combine_facts, identify_files
from fastdeit.models.weights import hash_weights
from fastdeit.teacher_cache.format import CacheError, Manifest, list_differences
from fastdeit.teacher_cache.reader import BAD_IMAGES, Cache, CachedTeacher

_SHOWN = 8
"""Epochs that a message names."""


def collect_teacher_facts(teacher: LiveTeacher, manifest: Manifest | None) -> dict[str, Any]:
    """Return a live teacher's identity, in the form of a cache's facts. manifest: that of the
    cache; None: the cache is new.

    A cache from before the weights were hashed has a hash of the teacher's file instead. Raises
    CacheError for such a cache of a callable, as it does not show with which weights it was
    recorded.
    """
    identity = teacher.identity()
    if manifest is None or _has_weights(manifest):
        return identity
    if is_callable(teacher.name):
        fault = f"an older cache, which does not name the weights of {teacher.name}"
        raise CacheError(f"{fault}: record them again, into a new folder (-o NEW)")
    view = {name: identity[name] for name in ("mean", "std", "input_size")}
    return {"name": teacher.name, "sha256": teacher.sha256} | view


def collect_file_facts(files: Sequence[tuple[str, Path]], manifest: Manifest) -> dict[str, Any]:
    """Return the same facts of teachers that are not loaded, as far as their files decide them;
    files: name and file of each."""
    if _has_weights(manifest):
        return identify_files(files)
    return combine_facts([{"sha256": hash_weights(path)} for _, path in files])


def _has_weights(manifest: Manifest) -> bool:
    return "weights" in manifest.facts.get("teacher", {})


def check_facts(cache: Cache, facts: Mapping[str, Any]) -> None:
    """Raise CacheError, naming each difference, unless the cache was recorded with these facts."""
    lines = list_differences(cache.manifest.facts, facts)
    if lines:
        raise CacheError(
            f"--cache: {cache.folder} was recorded for another run: {'; '.join(lines)}"
        )


def check_soft(cache: Cache, tau: float) -> None:
    """Raise CacheError unless the records are exact for soft distillation at a temperature."""
    manifest = cache.manifest
    if tau in manifest.taus:
        return
    if manifest.kind == "hard":
        fault = (
            f"--cache: {cache.folder} must have --kind topk for --distillation-type soft (got hard)"
        )
    else:
        recorded = f"{_join(manifest.taus)}, as recorded in {cache.folder}"
        fault = f"--distillation-tau must be {recorded} (got {tau:g})"
    again = f"fastdeit cache build [the flags of this run] --kind topk --distillation-tau {tau:g}"
    raise CacheError(f"{fault}; or record again: {again} -o NEW")


def _join(taus: Sequence[float]) -> str:
    return " or ".join(f"{tau:g}" for tau in dict.fromkeys(taus))


def check_coverage(cache: Cache, epochs: int, samples: int) -> None:
    """Raise CacheError unless the first `samples` ordinals of the first `epochs` epochs are
    recorded."""
    coverage = cache.coverage()[:epochs, : -(-samples // cache.manifest.chunk)]
    recorded = np.zeros(epochs, bool)
    recorded[: len(coverage)] = coverage.all(1)
    missing = np.flatnonzero(~recorded)
    if not missing.size:
        return
    named = ", ".join(map(str, missing[:_SHOWN]))
    if missing.size > _SHOWN:
        named += f" and {missing.size - _SHOWN} more"
    advice = "record them, or use --cache-miss live or ground-truth"
    raise CacheError(f"{cache.folder}: epochs not recorded: {named}; {advice}")


def read_bad_images(cache: Cache, index: Index) -> dict[int, str]:
    """Return the rows of the index that were found bad during recording, with the fault."""
    images = read_quarantine(cache.folder / BAD_IMAGES, index.split)
    return {
        image.row: f"excluded when {cache.folder} was recorded: {image.fault}"
        for image in images
        if image.row < len(index)
    }


def count_missed(cached_teacher: CachedTeacher | None, missed: int) -> dict[str, float]:
    """Return, for the log, the samples of all ranks without a record since the start; a collective.

    missed: those of this rank. The dict is empty where there can be none.
    """
    if cached_teacher is None or cached_teacher.miss == "error":
        return {}
    counts = [0] * dist.get_world_size()
    dist.all_gather_object(counts, missed)
    return {"unrecorded": sum(counts)}
