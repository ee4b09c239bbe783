"""A recorded teacher in a run's service: what decided its samples and answers, and whether that is
what the run does."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from fastdeit.config.schema import Config
from fastdeit.data.index import Index
from fastdeit.data.quarantine import read_quarantine
from fastdeit.distributed.collectives import on_every_rank
from fastdeit.models.teacher import Teacher
from fastdeit.models.weights import file_sha256
from fastdeit.plan.plan import VERSION, Plan
from fastdeit.teacher_cache.format import CacheError, differences
from fastdeit.teacher_cache.reader import BAD_IMAGES, Cache, CachedTeacher

_SHOWN = 8


def sample_facts(config: Config, plan: Plan, index: Index, pixels: str) -> dict[str, Any]:
    """Everything that decides the mixed images, by name; pixels: `PipelineOptions.describe()`."""
    classes = hashlib.sha256(json.dumps(index.classes).encode()).hexdigest()
    return {
        "plan": {"version": VERSION} | json.loads(json.dumps(dataclasses.asdict(plan.spec))),
        "data set": index.fingerprint(),
        "image sizes": hashlib.sha256(plan.sizes.tobytes()).hexdigest(),
        "classes": {"number": len(index.classes), "names": classes},
        "augmentation": pixels,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
    }


def teacher_facts(teacher: Teacher, with_precision: bool = True) -> dict[str, Any]:
    """Everything that decides a teacher's answer to an image, by name."""
    view = {
        "mean": list(teacher.view.mean),
        "std": list(teacher.view.std),
        "input_size": teacher.view.size,
    }
    precision = {"precision": str(teacher.dtype).removeprefix("torch.")} if with_precision else {}
    return {"name": teacher.name, "sha256": teacher.sha256, **view, **precision}


def open_cache(
    config: Config, plan: Plan, index: Index, pixels: str, teacher: Teacher | None
) -> CachedTeacher:
    """The cache of --cache for a run with this plan; teacher: the live one, for what is missing. A
    collective.

    Raises ValueError on every rank, before any work, naming each fact in which the recorded samples
    or the teacher differ (but for the teacher's precision: a run may have another), and with
    --cache-miss error the epochs that are not recorded whole.
    """
    on_every_rank(lambda: _check(Cache(config.distill.cache), config, plan, index, pixels, teacher))
    cache = Cache(config.distill.cache)
    return CachedTeacher(cache, config.distill.cache_miss, plan.images, bad_images(cache, index))


def _check(
    cache: Cache, config: Config, plan: Plan, index: Index, pixels: str, teacher: Teacher | None
) -> None:
    distill = config.distill
    facts: dict[str, Any] = sample_facts(config, plan, index, pixels)
    if teacher is not None:
        facts["teacher"] = teacher_facts(teacher, with_precision=False)
    elif Path(distill.teacher_path).is_file():
        facts["teacher"] = {"sha256": file_sha256(Path(distill.teacher_path))}
    lines = differences(cache.manifest.facts, facts)
    if lines:
        raise CacheError(
            f"--cache: {distill.cache} was recorded for another run: {'; '.join(lines)}"
        )
    if distill.distillation_type == "soft" and cache.manifest.kind == "hard":
        raise CacheError(
            f"--cache: {distill.cache} holds classes, allowed with --distillation-type soft is --kind topk"
        )
    if distill.cache_miss == "error":
        batch_size = config.optim.batch_size
        _check_coverage(
            cache,
            config.optim.epochs,
            distill.cache_period,
            plan.steps_per_epoch(batch_size) * batch_size,
        )


def bad_images(cache: Cache, index: Index) -> dict[int, str]:
    """Rows of the index that were found bad while it was recorded, with the fault."""
    images = read_quarantine(cache.folder / BAD_IMAGES, index.split)
    return {
        image.row: f"excluded when {cache.folder} was recorded: {image.fault}"
        for image in images
        if image.row < len(index)
    }


def _check_coverage(cache: Cache, epochs: int, period: int, samples: int) -> None:
    """Raises CacheError for epochs of the run that are not recorded as far as it reads them."""
    wanted = np.arange(min(epochs, period or epochs))
    coverage = cache.coverage()[:, : -(-samples // cache.manifest.chunk)]
    recorded = np.zeros(len(wanted), bool)
    recorded[: len(coverage)] = coverage[: len(wanted)].all(1)
    missing = wanted[~recorded]
    if missing.size:
        named = ", ".join(map(str, missing[:_SHOWN])) + (
            f" and {missing.size - _SHOWN} more" if missing.size > _SHOWN else ""
        )
        raise CacheError(
            f"{cache.folder}: epochs not recorded: {named}; record them, or --cache-miss live or ground-truth"
        )


def count_missed(cached_teacher: CachedTeacher | None) -> dict[str, float]:
    """For the log: samples of all ranks without a record, since the start; a collective. Empty
    where there can be none."""
    if cached_teacher is None or cached_teacher.miss == "error":
        return {}
    counts = [0] * dist.get_world_size()
    dist.all_gather_object(counts, cached_teacher.missed)
    return {"unrecorded": sum(counts)}
