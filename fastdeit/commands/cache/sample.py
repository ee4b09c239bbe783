"""`fastdeit cache sample`: compare a cache with its live teacher on some samples."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fastdeit.commands.cache.flags import (
    add_record_flags,
    make_parser,
    parse_epochs,
    training_epochs,
)
from fastdeit.commands.cache.record import Job
from fastdeit.config.parse import require
from fastdeit.display.terminal import Terminal
from fastdeit.kernels.backend import use_backend
from fastdeit.teacher_cache.format import CacheError, Manifest, decode, list_differences
from fastdeit.teacher_cache.reader import Cache
from fastdeit.teacher_cache.record import compute_logits
from fastdeit.teacher_cache.tail import compare_soft

# samples come from a few epochs only, because the order of an epoch is costly to compute
_MOST_EPOCHS = 8

Batches = list[tuple[int, np.ndarray]]
"""The epoch and the ordinals of each micro-batch."""


def sample(argv: Sequence[str]) -> int:
    """run the live teacher on some samples, drawn at random, and print how often it agrees"""
    parsed, flags = make_sample_parser().parse_known_args(list(argv))
    require(parsed.number >= 1, "number", parsed.number, "1 or more")
    epochs = parse_epochs(parsed.epochs)
    cache = Cache(parsed.cache)
    job = Job([*flags, *training_epochs(parsed.epochs)], "sample", parsed.cache)
    _check_origin(cache, job)
    micro_batch = min(job.config.optim.micro_batch, cache.manifest.samples)
    coverage = cache.coverage()
    if epochs:
        coverage[np.setdiff1d(np.arange(len(coverage)), epochs)] = False
    batches = _draw_samples(coverage, cache.manifest, parsed.number, micro_batch)
    with use_backend(job.config.run.kernels):
        agreement = _compare(cache, job, batches, micro_batch)
    Terminal().say(f"{parsed.cache}: {agreement.describe()}")
    return 0


def make_sample_parser() -> argparse.ArgumentParser:
    """Return the parser of the action's flags, without those of train."""
    parser = make_parser(sample)
    add_record_flags(parser, used=False)
    parser.add_argument("cache", type=Path, help="the cache's folder")
    parser.add_argument("--number", type=int, default=256, help="samples to draw (default: 256)")
    return parser


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


@dataclass
class Agreement:
    """The agreement of a cache with its live teacher, summed over batches.

    samples: their number; same: samples of the same class; distance: the largest difference of a
    recorded logit; soft: float32 (3,), sums of the fields of `SoftCost`.
    """

    manifest: Manifest
    samples: int = 0
    same: int = 0
    distance: float = 0.0
    soft: torch.Tensor = field(default_factory=lambda: torch.zeros(3))

    def add(self, recorded: torch.Tensor, logits: torch.Tensor) -> None:
        """Compare records, uint8 (B, record bytes), with the live teacher's logits (B, K)."""
        manifest = self.manifest
        self.samples += len(logits)
        self.same += int((decode(recorded, manifest, hard=True) == logits.argmax(1)).sum())
        if manifest.kind == "hard":
            return
        answer = decode(recorded, manifest, hard=False, tau=manifest.tau)
        kept = logits.topk(manifest.k, dim=1).indices
        live = logits - logits.amax(1, keepdim=True)
        distance = (answer.gather(1, kept) - live.gather(1, kept)).abs().max()
        self.distance = max(self.distance, float(distance))
        self.soft += len(logits) * torch.tensor(compare_soft(logits, answer, manifest.tau))

    def describe(self) -> str:
        """Return the lines to print."""
        share = f"{self.same} of {self.samples} samples ({100 * self.same / self.samples:.2f} %)"
        if self.manifest.kind == "hard":
            return f"the live teacher agrees on {share}"
        live, recorded, cosine = (self.soft / self.samples).tolist()
        return (
            f"the live teacher agrees on {share}, recorded logits within {self.distance:.3g}\n"
            f"soft distillation at tau {self.manifest.tau:g}, for a student of equal logits: loss "
            f"{recorded:.4g} recorded, {live:.4g} live; cosine of the gradients {cosine:.4f}"
        )


def _compare(cache: Cache, job: Job, batches: Batches, micro_batch: int) -> Agreement:
    agreement = Agreement(cache.manifest)
    loader = job.loader(batches, micro_batch)
    live = compute_logits(iter(loader), job.teacher, job.dtype)
    for (epoch, ordinals), (_, logits) in zip(batches, live, strict=True):
        raw, fault = cache.look_up(epoch, ordinals, job.plan.images, len(job.plan.excluded))
        if fault is not None:
            raise CacheError(fault)
        agreement.add(torch.from_numpy(raw).to(logits.device), logits)
    loader.close()
    return agreement


def _draw_samples(
    coverage: np.ndarray, manifest: Manifest, number: int, micro_batch: int
) -> Batches:
    """Draw about `number` recorded samples, as pairs, from a few epochs; return them in
    micro-batches. Raises CacheError if nothing is recorded."""
    random = np.random.default_rng()
    recorded_epochs = np.flatnonzero(coverage.any(1))
    if not recorded_epochs.size:
        raise CacheError("nothing is recorded of these epochs")
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
