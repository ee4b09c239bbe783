"""The recorded teacher of a run, built from a `Config`, and the facts that decide its samples."""

import dataclasses
import hashlib
import json
from typing import Any

from fastdeit.config.schema import Config
from fastdeit.data.index import Index
from fastdeit.distributed.collectives import each_rank
from fastdeit.models.teachers.ensemble import LiveTeacher
from fastdeit.models.teachers.identity import combine_facts, find_files
from fastdeit.plan.plan import VERSION, Plan
from fastdeit.teacher_cache.check import (
    check_coverage,
    check_facts,
    check_soft,
    collect_file_facts,
    collect_teacher_facts,
    read_bad_images,
)
from fastdeit.teacher_cache.format import Manifest
from fastdeit.teacher_cache.reader import Cache, CachedTeacher


def collect_sample_facts(config: Config, plan: Plan, index: Index, pixels: str) -> dict[str, Any]:
    """Return everything that decides the mixed images, by name; pixels:
    `PipelineOptions.describe()`."""
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


def open_cache(
    config: Config, plan: Plan, index: Index, pixels: str, teacher: LiveTeacher | None
) -> CachedTeacher:
    """Open the cache of --cache for a run with this plan; a collective.

    teacher: the live one, for missing records. Raises ValueError on every rank, before any work, if
    the recorded samples or the teacher differ from the run's in any fact except the teacher's
    precision; with --cache-miss error also for epochs that are not recorded whole.
    """

    def check() -> None:
        cache = Cache(config.distill.cache)
        check_cache(cache, config, plan, index, pixels, teacher)

    each_rank(check)
    cache = Cache(config.distill.cache)
    bad = read_bad_images(cache, index)
    return CachedTeacher(cache, config.distill.cache_miss, plan.images, bad)


def check_cache(
    cache: Cache, config: Config, plan: Plan, index: Index, pixels: str, teacher: LiveTeacher | None
) -> None:
    """Raise ValueError, naming each fact that differs, unless a cache fits a run; arguments and
    errors as of `open_cache`."""
    distill = config.distill
    facts = collect_sample_facts(config, plan, index, pixels)
    if teacher is not None:
        facts["teacher"] = collect_teacher_facts(teacher, cache.manifest)
    else:
        facts["teacher"] = _collect_named_facts(config, cache.manifest)
    check_facts(cache, facts)
    if distill.distillation_type == "soft":
        check_soft(cache, distill.distillation_tau)
    if distill.cache_miss == "error":
        epochs = config.optim.epochs
        samples = plan.steps_per_epoch(config.optim.batch_size) * config.optim.batch_size
        check_coverage(cache, min(epochs, distill.cache_period or epochs), samples)


def _collect_named_facts(config: Config, manifest: Manifest) -> dict[str, Any]:
    """Return the facts of teachers that are not loaded, as far as the settings name them: their
    files, their view."""
    distill = config.distill
    view = json.loads(json.dumps(distill.teacher_view))
    sources = distill.teachers
    facts = combine_facts([view] * len(sources))
    files = find_files(sources)
    return facts | collect_file_facts(files, manifest) if files else facts
