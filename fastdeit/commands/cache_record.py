"""`fastdeit cache build` and `cache sample`: the two actions that run the teacher (cache_command.py
has the others)."""

import functools
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fastdeit.config.cli import parse_config
from fastdeit.config.schema import Config
from fastdeit.data.build import build_train_index, pipeline_options
from fastdeit.data.index import DataError
from fastdeit.data.loader import OrdinalLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.distributed.collectives import first_on_rank0, on_rank0
from fastdeit.distributed.world import World, init_distributed
from fastdeit.kernels.backend import use_backend
from fastdeit.models.build import build_teacher, precision
from fastdeit.models.teacher import Teacher
from fastdeit.plan.build import build_plan
from fastdeit.plan.plan import Plan
from fastdeit.run.identity import versions
from fastdeit.run.preflight import check_config
from fastdeit.teacher_cache.build import collect_sample_facts
from fastdeit.teacher_cache.check import collect_teacher_facts
from fastdeit.teacher_cache.format import (
    CacheError,
    Manifest,
    choose_chunk_size,
    decode,
    list_differences,
)
from fastdeit.teacher_cache.reader import BAD_IMAGES, Cache
from fastdeit.teacher_cache.record import (
    Chunk,
    ChunkBatches,
    JobShard,
    compute_logits,
    find_missing,
    record_chunks,
)
from fastdeit.teacher_cache.writer import CacheWriter, create_cache

_MICRO_BATCH = 256
_QUIET_S = 15.0
_PASSES = 3  # over chunks that images spoiled which were found bad on the way
_EPOCHS_SAMPLED = 8  # an epoch's order is costly to make


class Job:
    """The samples and the teacher of train's flags, on this rank. Raises ValueError for what cannot
    be used; a collective."""

    def __init__(self, flags: Sequence[str], action: str, folder: Path) -> None:
        config, _ = parse_config(flags, f"fastdeit cache {action}")
        if config.distill.distillation_type == "none" or config.distill.cache:
            raise ValueError(
                f"fastdeit cache {action} needs a teacher: --teacher-model, --teacher-path, no --cache"
            )
        self.world: World = init_distributed()
        micro = config.optim.micro_batch or _MICRO_BATCH
        # the student's batch plays no part
        self.config: Config = config.replace(
            optim={"micro_batch": micro, "batch_size": micro * self.world.size}
        )
        check_config(self.config, self.world.size)
        self.dtype = precision(config, self.world)[1]
        self.index = first_on_rank0(lambda: build_train_index(config))
        self.plan: Plan = build_plan(config, self.index.sizes)
        self.options = pipeline_options(config, self.world)
        teacher = build_teacher(config, self.world, self.index.classes)
        assert teacher is not None, "a run without a cache has one"
        self.teacher: Teacher = teacher
        self._file = folder / BAD_IMAGES
        self.quarantine = self.look_again()

    def look_again(self) -> Quarantine:
        """Leaves out what any rank or job has found bad."""
        self.quarantine = Quarantine(self.index, self.config.data.bad_images, self._file)
        self.plan.exclude(self.quarantine.rows)
        return self.quarantine

    def manifest(self, kind: str, k: int) -> Manifest:
        facts = collect_sample_facts(self.config, self.plan, self.index, self.options.describe())
        samples, number = self.plan.num_images // 2 * 2, len(self.index.classes)
        facts |= {"teacher": collect_teacher_facts(self.teacher)}
        return Manifest(kind, k, number, samples, facts, versions(), choose_chunk_size(samples))

    def loader(self, batches: Sequence[tuple[int, np.ndarray]], micro_batch: int) -> OrdinalLoader:
        return OrdinalLoader(
            self.index, self.plan, self.options, batches, micro_batch, self.quarantine
        )


def run_build(
    flags: Sequence[str],
    folder: Path,
    *,
    kind: str,
    k: int,
    part_text: str,
    epochs_text: str | None,
) -> int:
    """0; 1 when the recording ended early, for a full disk or images that cannot be read. Raises
    ValueError before any work."""
    part, epochs = parse_part(part_text), parse_epochs(epochs_text)
    job = Job(flags, "build", folder)
    manifest = job.manifest(kind, k)
    on_rank0(lambda: create_cache(folder, manifest))
    recorder = CacheWriter(folder)
    mine = part.chunks(
        manifest, epochs or range(job.config.distill.cache_period or job.config.optim.epochs)
    )
    on_rank0(lambda: _reserve(recorder, manifest, mine))
    try:
        with use_backend(job.config.run.kernels):
            left = _record_missing(job, recorder, mine)
    except (DataError, CacheError) as error:  # on one rank; the launcher then ends the others
        print(f"fastdeit: error: {error}", file=sys.stderr)
        return 1
    recorder.close()
    if job.world.rank == 0:
        print(f"{folder}: {len(mine) - left} of {len(mine)} chunks of part {part_text} recorded")
    return 1 if left else 0


def _reserve(recorder: CacheWriter, manifest: Manifest, mine: Sequence[Chunk]) -> None:
    for first, last in runs([epoch * manifest.chunks + chunk for epoch, chunk in mine]):
        recorder.reserve(first, last)


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of neighbours among ascending numbers, as first and last + 1."""
    starts = [number for i, number in enumerate(numbers) if i == 0 or numbers[i - 1] != number - 1]
    ends = [
        number + 1
        for i, number in enumerate(numbers)
        if i == len(numbers) - 1 or numbers[i + 1] != number + 1
    ]
    return list(zip(starts, ends, strict=True))


def _record_missing(job: Job, recorder: CacheWriter, mine: Sequence[Chunk]) -> int:
    """Records what is not there yet, each rank its share; how many chunks are left that could not
    be."""
    for done in range(_PASSES + 1):
        job.look_again()
        images = job.plan.images if len(job.quarantine) else None
        # one list for all: a rank that looked later would see what another has recorded by then
        todo = on_rank0(functools.partial(find_missing, recorder.folder, mine, images))
        if not todo or done == _PASSES:
            break
        _record_share(job, recorder, todo[job.world.rank :: job.world.size])
        dist.barrier()
    return len(todo)


def _record_share(job: Job, recorder: CacheWriter, share: Sequence[Chunk]) -> None:
    if not share:
        return
    manifest = recorder.manifest
    windows = ChunkBatches(manifest, share, job.config.optim.micro_batch)
    loader = job.loader(windows, windows.micro_batch)
    total = sum(len(manifest.ordinals(chunk)) for _, chunk in share)
    report = _Report(total, job.world, f"{job.teacher.describe()}; {job.index.root}")
    try:
        record_chunks(recorder, loader, share, job.teacher, job.dtype, report)
    finally:
        report.stop()
        loader.close()


class _Report:
    """Progress of rank 0's share, whose rate stands for the others'; a bar on a terminal, else a
    line now and then."""

    def __init__(self, total: int, world: World, heading: str) -> None:
        self._console, self._ranks = Console(quiet=world.rank != 0, highlight=False), world.size
        share = f" on this rank of {world.size}" if world.size > 1 else ""
        self._console.print(f"{total:,} samples{share}; {heading}", soft_wrap=True)
        columns = [
            TextColumn("recording"),
            BarColumn(),
            TextColumn("{task.fields[rate]:,.0f} images/s"),
            TimeRemainingColumn(),
        ]
        shown = world.rank == 0 and self._console.is_terminal
        self._progress = Progress(*columns, console=self._console, disable=not shown)
        self._task = self._progress.add_task("recording", total=total, rate=0.0)
        self._total, self._spoken = total, time.monotonic()
        self._progress.start()

    def __call__(self, done: int, rate: float) -> None:
        self._progress.update(self._task, completed=done, rate=rate * self._ranks)
        if self._progress.disable and (
            time.monotonic() - self._spoken > _QUIET_S or done == self._total
        ):
            left = f"{(self._total - done) / rate:,.0f} s left"
            self._console.print(
                f"{100 * done / self._total:.1f} %  {rate * self._ranks:,.0f} images/s  {left}"
            )
            self._spoken = time.monotonic()

    def stop(self) -> None:
        self._progress.stop()


def run_sample(flags: Sequence[str], folder: Path, number: int) -> int:
    """Asks the live teacher again about `number` samples, and prints how often it agrees; 0."""
    if number < 1:
        raise ValueError(f"--number: got {number}, allowed is 1 or more")
    cache = Cache(folder)
    job = Job(flags, "sample", folder)
    facts = job.manifest(cache.manifest.kind, cache.manifest.k).facts
    facts["teacher"].pop("precision")  # how much another one changes is what the sample tells
    lines = list_differences(cache.manifest.facts, facts)
    if lines:
        raise CacheError(f"{folder} was recorded of something else: {'; '.join(lines)}")
    micro_batch = min(job.config.optim.micro_batch, cache.manifest.samples)
    batches = _drawn(cache.coverage(), cache.manifest, number, micro_batch)
    with use_backend(job.config.run.kernels):
        same, distance = _compare(cache, job, batches, micro_batch)
    count = sum(len(ordinals) for _, ordinals in batches)
    logits = f", recorded logits within {distance:.3g}" if cache.manifest.kind == "topk" else ""
    print(
        f"{folder}: the live teacher agrees on {same} of {count} samples ({100 * same / count:.2f} %){logits}"
    )
    return 0


def _compare(
    cache: Cache, job: Job, batches: Sequence[tuple[int, np.ndarray]], micro_batch: int
) -> tuple[int, float]:
    """Samples whose recorded class is the live one's, and the largest difference of a recorded
    logit."""
    manifest, same, largest = cache.manifest, 0, 0.0
    loader = job.loader(batches, micro_batch)
    for (epoch, ordinals), (_, logits) in zip(
        batches, compute_logits(iter(loader), job.teacher, job.dtype), strict=True
    ):
        raw, fault = cache.look_up(epoch, ordinals, job.plan.images, len(job.plan.excluded))
        if fault is not None:
            raise CacheError(fault)
        recorded = torch.from_numpy(raw).to(logits.device)
        same += int((decode(recorded, manifest, hard=True) == logits.argmax(1)).sum())
        if manifest.kind == "topk":
            kept = logits.topk(manifest.k, dim=1).indices
            fresh = logits - logits.amax(1, keepdim=True)
            distance = decode(recorded, manifest, hard=False).gather(1, kept) - fresh.gather(
                1, kept
            )
            largest = max(largest, float(distance.abs().max()))
    loader.close()
    return same, largest


def _drawn(
    coverage: np.ndarray, manifest: Manifest, number: int, micro_batch: int
) -> list[tuple[int, np.ndarray]]:
    """Epoch and ordinals of micro-batches with about `number` recorded samples, pairs drawn at
    random out of a few epochs."""
    random = np.random.default_rng()
    epochs = np.flatnonzero(coverage.any(1))
    if not epochs.size:
        raise CacheError("nothing is recorded yet")
    epochs = random.permutation(epochs)[:_EPOCHS_SAMPLED]
    drawn = []
    for epoch, share in zip(
        epochs.tolist(), np.array_split(np.arange(-(-number // 2)), len(epochs)), strict=True
    ):
        recorded = np.concatenate(
            [manifest.ordinals(chunk)[::2] for chunk in np.flatnonzero(coverage[epoch]).tolist()]
        )
        pairs = np.sort(random.permutation(recorded)[: len(share)])
        ordinals = (pairs[:, None] + np.arange(2)).reshape(-1)
        drawn += [
            (epoch, ordinals[start : start + micro_batch])
            for start in range(0, len(ordinals), micro_batch)
        ]
    return drawn


def parse_part(text: str) -> JobShard:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise ValueError(f"--part: got {text!r}, allowed is NUMBER/JOBS, as 3/8")
    return JobShard(int(match[1]), int(match[2]))


def parse_epochs(text: str | None) -> list[int]:
    """Ascending; empty for None. A lone number is refused: it is as often meant to be how many."""
    found: set[int] = set()
    for item in text.split(",") if text is not None else ():
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", item.strip())
        if not match or text == match[1] or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(
                f"--epochs: got {text!r}, allowed are spans from 0, as 0-299 for 300 epochs, 7-7 for one, 0-9,20"
            )
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(found)
