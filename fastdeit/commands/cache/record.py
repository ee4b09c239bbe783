"""`fastdeit cache build`: record a teacher's output for the samples of a run."""

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.distributed as dist

from fastdeit.commands.cache.flags import (
    add_record_flags,
    choose_kind,
    make_parser,
    parse_epochs,
    parse_part,
    training_epochs,
)
from fastdeit.commands.errors import print_error
from fastdeit.config.cli import parse_config
from fastdeit.config.parse import require, require_value
from fastdeit.config.schema import Config
from fastdeit.data.build import build_train_index, fetch_data, pipeline_options
from fastdeit.data.index import DataError
from fastdeit.data.loaders.train import OrdinalLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.display.progress import ProgressBar
from fastdeit.display.terminal import Terminal
from fastdeit.distributed.collectives import (
    check_same_on_ranks,
    each_rank,
    first_on_rank0,
    on_rank0,
)
from fastdeit.distributed.versions import versions
from fastdeit.distributed.world import World, init_distributed
from fastdeit.kernels.backend import use_backend
from fastdeit.models.build import build_teacher, check_compilation, precision
from fastdeit.models.teachers.ensemble import LiveTeacher
from fastdeit.plan.build import build_plan
from fastdeit.plan.plan import Plan
from fastdeit.run.preflight import check_config, fetch_weight_files
from fastdeit.teacher_cache.build import collect_sample_facts
from fastdeit.teacher_cache.check import collect_teacher_facts
from fastdeit.teacher_cache.format import (
    DEFAULT_K,
    FORMAT,
    MANIFEST,
    CacheError,
    Manifest,
    choose_chunk_size,
    read_manifest,
)
from fastdeit.teacher_cache.reader import BAD_IMAGES
from fastdeit.teacher_cache.record import Chunk, ChunkBatches, find_missing, record_chunks
from fastdeit.teacher_cache.writer import CacheWriter, create_cache

_MICRO_BATCH = 256
# how often chunks are recorded again, after images in them were found bad during the recording
_PASSES = 3


def build(argv: Sequence[str]) -> int:
    """record a teacher's output for the samples of a run with these flags; the same command resumes
    a recording that was stopped"""
    parsed, flags = make_build_parser().parse_known_args(list(argv))
    shard = parse_part(parsed.part)
    epochs = parse_epochs(parsed.epochs)
    job = Job([*flags, *training_epochs(parsed.epochs)], "build", parsed.output)
    folder = job.folder
    begun = read_manifest(folder) if (folder / MANIFEST).exists() else None
    kind = choose_kind(parsed.kind, job.config.distill.distillation_type)
    manifest = job.describe_cache(kind, parsed.k, begun)
    chunks = shard.chunks(manifest, job.choose_epochs(epochs))
    check_same_on_ranks(manifest.facts)
    on_rank0(lambda: create_cache(folder, manifest))
    writer = CacheWriter(folder)
    on_rank0(lambda: _reserve(writer, manifest, chunks))
    try:
        with use_backend(job.config.run.kernels):
            remaining = _record_missing(job, writer, chunks)
    except (DataError, CacheError) as error:
        # on one rank; the launcher then ends the others
        print_error(error)
        return 1
    writer.close()
    if job.world.rank == 0:
        recorded = len(chunks) - remaining
        Terminal().say(
            f"{folder}: {recorded} of {len(chunks)} chunks of part {parsed.part} recorded"
        )
    return 1 if remaining else 0


def make_build_parser() -> argparse.ArgumentParser:
    """Return the parser of the action's flags, without those of train."""
    parser = make_parser(build)
    add_record_flags(parser, used=True)
    return parser


class Job:
    """The samples and the live teacher of a run with train's flags, on this rank.

    action: of `fastdeit cache`, for messages. folder: of the cache; None: that of --cache.
    Attributes: folder, config, world, dtype, index, plan, options, teacher, quarantine. Raises
    ValueError for flags that cannot be used. A collective.
    """

    def __init__(self, flags: Sequence[str], action: str, folder: Path | None) -> None:
        config, _ = parse_config(flags, f"fastdeit cache {action}")
        kind = config.distill.distillation_type
        require(kind != "none", "distillation_type", kind, "soft or hard: a teacher is recorded")
        named = str(folder or config.distill.cache)
        require_value(bool(named), "-o", named, "the cache's folder")
        self.folder = Path(named)
        # only a training reads a cache
        config = config.replace(distill={"cache": "", "cache_miss": "error"})
        self.world: World = init_distributed()
        micro_batch = config.optim.micro_batch or _MICRO_BATCH
        # no student is trained: the batch is one micro-batch of each rank
        batch_size = micro_batch * self.world.size
        self.config: Config = config.replace(
            optim={"micro_batch": micro_batch, "batch_size": batch_size}
        )
        check_config(self.config, self.world.size, trains=False)
        fetch_weight_files(self.config, trains=False)
        fetch_data(self.config)
        self.dtype = precision(config, self.world)[1]
        self.index = first_on_rank0(lambda: build_train_index(config))
        self.plan: Plan = build_plan(config, self.index.sizes)
        self.options = pipeline_options(config, self.world)
        each_rank(lambda: check_compilation(config, self.world))
        teacher = build_teacher(config, self.world, self.index.classes)
        assert teacher is not None, "a run without a cache has one"
        self.teacher: LiveTeacher = teacher
        self._bad_images = self.folder / BAD_IMAGES
        self.quarantine = self.reload_quarantine()

    def choose_epochs(self, asked: Sequence[int]) -> list[int]:
        """Return the epochs to record: of `asked` (none: all of the run), those within the
        --cache-period, which repeats them. Raises ValueError if none is left."""
        period = self.config.distill.cache_period
        chosen = [
            epoch
            for epoch in asked or range(self.config.optim.epochs)
            if epoch < period or not period
        ]
        allowed = f"below {period}, as --cache-period repeats the first {period}"
        require(bool(chosen), "epochs", list(asked[:1]), allowed)
        return chosen

    def reload_quarantine(self) -> Quarantine:
        """Exclude the images that any rank or job has found bad; return the new quarantine."""
        self.quarantine = Quarantine(self.index, self.config.data.bad_images, self._bad_images)
        self.plan.exclude(self.quarantine.rows)
        return self.quarantine

    def describe_cache(self, kind: str, k: int | None, begun: Manifest | None = None) -> Manifest:
        """Return the manifest of a cache that this job would record.

        kind: "hard" or "topk"; k: logits per sample, None for the default. begun: the manifest of a
        cache that is continued, perhaps in an older format.
        """
        samples = self.plan.num_images // 2 * 2
        facts = collect_sample_facts(self.config, self.plan, self.index, self.options.describe())
        teacher = collect_teacher_facts(self.teacher, begun)
        facts["teacher"] = teacher | {"precision": self.teacher.precision}
        manifest = Manifest(
            kind=kind,
            k=1,
            num_classes=len(self.index.classes),
            samples=samples,
            facts=facts,
            versions=versions(),
            chunk=choose_chunk_size(samples),
            format=begun.format if begun else FORMAT,
        )
        if kind == "hard":
            return manifest
        default = begun.k if begun else min(DEFAULT_K, manifest.num_classes)
        tau = 1.0 if manifest.format == 1 else float(self.config.distill.distillation_tau)
        return dataclasses.replace(manifest, k=default if k is None else k, tau=tau)

    def loader(self, batches: Sequence[tuple[int, np.ndarray]], micro_batch: int) -> OrdinalLoader:
        """Return a loader of samples; batches: the epoch and the ordinals of each."""
        return OrdinalLoader(
            self.index,
            self.plan,
            self.options,
            batches,
            micro_batch=micro_batch,
            quarantine=self.quarantine,
        )


def _reserve(writer: CacheWriter, manifest: Manifest, chunks: Sequence[Chunk]) -> None:
    """Reserve room on the disk for chunks."""
    for first, end in find_spans([epoch * manifest.chunks + chunk for epoch, chunk in chunks]):
        writer.reserve(first, end)


def find_spans(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the spans [first, end) of successive numbers among ascending ones."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number:
            spans[-1] = (spans[-1][0], number + 1)
        else:
            spans.append((number, number + 1))
    return spans


def _record_missing(job: Job, writer: CacheWriter, chunks: Sequence[Chunk]) -> int:
    """Record the missing chunks, each rank its share; return the number that is still missing."""
    for done in range(_PASSES + 1):
        job.reload_quarantine()
        images = job.plan.images if len(job.quarantine) else None
        # one list for all ranks: a later look would not find what other ranks have recorded
        todo = on_rank0(functools.partial(find_missing, writer.folder, chunks, images))
        if not todo or done == _PASSES:
            break
        _record_share(job, writer, todo[job.world.rank :: job.world.size])
        dist.barrier()
    return len(todo)


def _record_share(job: Job, writer: CacheWriter, share: Sequence[Chunk]) -> None:
    if not share:
        return
    manifest = writer.manifest
    batches = ChunkBatches(manifest, share, job.config.optim.micro_batch)
    loader = job.loader(batches, batches.micro_batch)
    total = sum(len(manifest.ordinals(chunk)) for _, chunk in share)
    heading = (
        f"{job.teacher.describe()}; {job.index.root}\nimages: {job.teacher.describe_view()}\n"
        f"form: {job.teacher.describe_execution(batches.micro_batch)}"
    )
    report = _Report(total, job.world, heading)
    try:
        record_chunks(writer, loader, share, job.teacher, job.dtype, report)
    finally:
        report.stop()
        loader.close()


class _Report:
    """The progress of rank 0's share of the samples; the other ranks are assumed to be as fast."""

    def __init__(self, total: int, world: World, heading: str) -> None:
        self._total = total
        self._ranks = world.size
        terminal = Terminal(enabled=world.rank == 0)
        share = f" on this rank of {world.size}" if world.size > 1 else ""
        terminal.say(f"{total:,} samples{share}; {heading}")
        self._bar = ProgressBar(terminal, total, "recording")
        self._bar.start()

    def __call__(self, done: int, rate: float) -> None:
        facts = f"{rate * self._ranks:,.0f} images/s"
        left = f"{(self._total - done) / rate:,.0f} s left"
        percent = f"{100 * done / self._total:.1f} %"
        self._bar.update(done, facts, line=f"{percent}  {facts}  {left}")

    def stop(self) -> None:
        self._bar.stop()
