"""`fastdeit cache sample`: compare a cache with its live teacher on some samples."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fastdeit.commands.cache_record import Job
from fastdeit.config.parse import require
from fastdeit.display.terminal import Terminal
from fastdeit.kernels.backend import use_backend
from fastdeit.teacher_cache.format import CacheError, Manifest, decode, list_differences
from fastdeit.teacher_cache.reader import Cache
from fastdeit.teacher_cache.record import compute_logits

# samples come from a few epochs only, because the order of an epoch is costly to compute
_MOST_EPOCHS = 8

Batches = list[tuple[int, np.ndarray]]
"""Epoch and ordinals of each micro-batch."""


def sample(argv: Sequence[str]) -> int:
    """run the live teacher on some samples, drawn at random, and print how often it agrees"""
    parser = argparse.ArgumentParser(
        prog="fastdeit cache sample", description=sample.__doc__, allow_abbrev=False
    )
    parser.add_argument("cache", type=Path)
    parser.add_argument("--number", type=int, default=256, help="samples")
    parsed, flags = parser.parse_known_args(list(argv))
    require(parsed.number >= 1, "number", parsed.number, "1 or more")
    cache = Cache(parsed.cache)
    job = Job(flags, "sample", parsed.cache)
    _check_origin(cache, job)
    micro_batch = min(job.config.optim.micro_batch, cache.manifest.samples)
    batches = _draw_samples(cache.coverage(), cache.manifest, parsed.number, micro_batch)
    with use_backend(job.config.run.kernels):
        same, distance = _compare(cache, job, batches, micro_batch)
    count = sum(len(ordinals) for _, ordinals in batches)
    share = f"{same} of {count} samples ({100 * same / count:.2f} %)"
    logits = f", recorded logits within {distance:.3g}" if cache.manifest.kind == "topk" else ""
    Terminal().say(f"{parsed.cache}: the live teacher agrees on {share}{logits}")
    return 0


def _check_origin(cache: Cache, job: Job) -> None:
    """Raise CacheError unless the cache was recorded from the job's samples and teacher.

    The precision may differ: its effect is what `sample` measures.
    """
    manifest = cache.manifest
    facts = job.describe_cache(manifest.kind, manifest.k, manifest).facts
    facts["teacher"].pop("precision")
    lines = list_differences(manifest.facts, facts)
    if lines:
        raise CacheError(f"{cache.folder} was recorded from something else: {'; '.join(lines)}")


def _compare(cache: Cache, job: Job, batches: Batches, micro_batch: int) -> tuple[int, float]:
    """Return the number of samples whose recorded class is the live one, and the largest difference
    of a recorded logit."""
    manifest = cache.manifest
    same = 0
    largest = 0.0
    loader = job.loader(batches, micro_batch)
    live = compute_logits(iter(loader), job.teacher, job.dtype)
    for (epoch, ordinals), (_, logits) in zip(batches, live, strict=True):
        raw, fault = cache.look_up(epoch, ordinals, job.plan.images, len(job.plan.excluded))
        if fault is not None:
            raise CacheError(fault)
        recorded = torch.from_numpy(raw).to(logits.device)
        same += int((decode(recorded, manifest, hard=True) == logits.argmax(1)).sum())
        if manifest.kind == "topk":
            largest = max(largest, _logit_distance(recorded, logits, manifest))
    loader.close()
    return same, largest


def _logit_distance(recorded: torch.Tensor, logits: torch.Tensor, manifest: Manifest) -> float:
    """Return the largest difference of the k largest logits, relative to each sample's largest."""
    kept = logits.topk(manifest.k, dim=1).indices
    live = logits - logits.amax(1, keepdim=True)
    distance = decode(recorded, manifest, hard=False).gather(1, kept) - live.gather(1, kept)
    return float(distance.abs().max())


def _draw_samples(
    coverage: np.ndarray, manifest: Manifest, number: int, micro_batch: int
) -> Batches:
    """Draw about `number` recorded samples as pairs from a few epochs; return them in
    micro-batches."""
    random = np.random.default_rng()
    recorded_epochs = np.flatnonzero(coverage.any(1))
    if not recorded_epochs.size:
        raise CacheError("nothing is recorded yet")
    epochs = random.permutation(recorded_epochs)[:_MOST_EPOCHS].tolist()
    shares = np.array_split(np.arange(-(-number // 2)), len(epochs))
    batches: Batches = []
    for epoch, share in zip(epochs, shares, strict=True):
        chunks = np.flatnonzero(coverage[epoch]).tolist()
        recorded = np.concatenate([manifest.ordinals(chunk)[::2] for chunk in chunks])
        pairs = np.sort(random.permutation(recorded)[: len(share)])
        ordinals = (pairs[:, None] + np.arange(2)).reshape(-1)
        for start in range(0, len(ordinals), micro_batch):
            batches.append((epoch, ordinals[start : start + micro_batch]))
    return batches
