"""The time of look-ups in a teacher cache of ImageNet's size."""

import statistics
import time
from pathlib import Path

import numpy as np
import torch

from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec
from fastdeit.teacher_cache.format import LARGEST_CHUNK, Manifest, encode
from fastdeit.teacher_cache.reader import Cache
from fastdeit.teacher_cache.writer import CacheWriter, create_cache

IMAGENET = 1_281_166
LOOKUP = 1024


def imagenet_row(folder: Path) -> dict[str, str]:
    """Return the times to open a cache of ImageNet's size and to look up records; the written
    chunks are in the page cache."""
    samples = IMAGENET // 2 * 2
    manifest = Manifest("hard", 1, 1000, samples, {}, {}, LARGEST_CHUNK)
    plan = Plan(PlanSpec(), np.full((IMAGENET, 2), 256, np.int32))
    create_cache(folder, manifest)
    writer = CacheWriter(folder)
    chunks = range(0, manifest.chunks, 8)
    logits = torch.nn.functional.one_hot(torch.arange(LARGEST_CHUNK) % 1000).float()
    for chunk in [*chunks, manifest.chunks - 1]:
        ordinals = manifest.ordinals(chunk)
        records = encode(logits[: len(ordinals)], manifest)
        writer.write(299, chunk, records, plan.images(299, ordinals))
    writer.close()
    fresh = Plan(PlanSpec(), plan.sizes)
    start = time.perf_counter()
    cache = Cache(folder)
    _look_up(cache, 0, fresh)
    opened = time.perf_counter() - start
    new = [_seconds(cache, chunk, fresh) for chunk in chunks[1:]]
    in_memory = [_seconds(cache, chunks[-1], fresh) for _ in range(100)]
    return {
        "impl": "300 epochs of ImageNet",
        "open_s": f"{opened:.3f}",
        "lookup_ms": f"{1e3 * statistics.median(in_memory):.3f}",
        "new_chunk_ms": f"{1e3 * statistics.median(new):.3f}",
    }


def _look_up(cache: Cache, chunk: int, plan: Plan) -> None:
    fault = cache.look_up(299, chunk * LARGEST_CHUNK + np.arange(LOOKUP), plan.images)[1]
    if fault is not None:
        raise AssertionError(fault)


def _seconds(cache: Cache, chunk: int, plan: Plan) -> float:
    start = time.perf_counter()
    _look_up(cache, chunk, plan)
    return time.perf_counter() - start
