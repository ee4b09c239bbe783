"""Training without a teacher, with a recorded one, and with a live one: python -m
benchmarks.bench_teacher [-o results.csv]

The same student, loss and heads in all: without a teacher the hard labels come from an array in
memory, so that what the recorded one costs beside it is the cache. In one process and in turns,
several rounds: the median over the rounds of each round's ratio is what counts on a machine that
others use too, and CPU time an image beside it. The teacher is a RegNet with random weights, and on
a CPU the student is chosen to cost about as much, as DeiT-S does beside RegNetY-16GF. Then the rate
of recording, the bytes that a step reads from the cache, and how long a cache of 300 epochs of
ImageNet (a sparse file) takes to open, with the first batch and the epoch's order, and to look
1,024 samples up.
"""

import argparse
import itertools
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from benchmarks import harness
from benchmarks.loaders import write_images
from fastdeit.commands.cache_record import Job
from fastdeit.config.cli import parse_config
from fastdeit.config.schema import Config
from fastdeit.data.batch import Batch
from fastdeit.data.build import build_train_loader
from fastdeit.data.index import Index
from fastdeit.data.loader import TrainLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.distributed.world import World, init_distributed
from fastdeit.kernels.mix import mix
from fastdeit.models.build import build_model, precision
from fastdeit.models.teacher import Teacher
from fastdeit.plan.build import build_plan
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec
from fastdeit.teacher_cache.format import LARGEST_CHUNK, Manifest, decode, encode
from fastdeit.teacher_cache.reader import Cache, CachedTeacher
from fastdeit.teacher_cache.record import ChunkBatches, record_chunks
from fastdeit.teacher_cache.writer import CacheWriter, create_cache
from fastdeit.training.build import build_trainer
from fastdeit.training.trainer import Trainer

FLAGS = {
    "cpu": "--model deit_tiny_distilled_patch16_224 --embed-dim 96 --num-heads 3 --depth 3 --batch-size 32 --micro-batch 32",
    "cuda": "--model deit_small_distilled_patch16_224 --batch-size 256 --micro-batch 256",
}
TEACHERS = {"cpu": "regnety_002", "cuda": "regnety_160"}
LINKS = {"cpu": 8, "cuda": 64}  # names an image, of 64 images
EPOCHS = 4  # recorded, more chunks than are held in memory; the samples repeat after them
WARM, STEPS = 3, 16
COLUMNS = (
    *("images_per_s", "cpu_ms_per_image", "speed_pct", "cpu_speed_pct", "bytes_per_step"),
    *("open_s", "lookup_ms", "new_chunk_ms"),
)
"""speed_pct: of the speed without a teacher; cpu_speed_pct: the same by CPU time; new_chunk_ms: a
look-up that checks one."""
IMAGENET = 1_281_166
LOOKUP = 1024


class Counting(Cache):
    """A cache that counts the bytes it reads."""

    nbytes = 0

    def read_chunk(self, epoch: int, chunk: int) -> np.ndarray | None:
        found = super().read_chunk(epoch, chunk)
        self.nbytes += 0 if found is None else found.nbytes + len(self.read_entry(epoch, chunk))
        return found


class Table(CachedTeacher):
    """Answers from memory: what no teacher at all would cost."""

    def records(
        self, epoch: int, ordinals: np.ndarray, labels: np.ndarray, lam: np.ndarray, version: int
    ) -> np.ndarray:
        return np.zeros((len(ordinals), self.cache.record_bytes), np.uint8)


@dataclass
class Way:
    """One way to train, ready to go on; seconds and CPU seconds an image of each round."""

    name: str
    trainer: Trainer
    loader: TrainLoader
    batches: Iterator[Batch] = field(init=False)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.batches = itertools.chain.from_iterable(
            self.loader.epoch(epoch) for epoch in itertools.count()
        )

    def run_round(self, batch_size: int) -> None:
        self._steps(WARM)
        wall, cpu = time.perf_counter(), time.process_time()
        self._steps(STEPS)
        self.wall.append((time.perf_counter() - wall) / STEPS / batch_size)
        self.cpu.append((time.process_time() - cpu) / STEPS / batch_size)

    def _steps(self, count: int) -> None:
        for _ in range(count):
            statistics = self.trainer.train_step(
                itertools.islice(self.batches, self.loader.micro_steps)
            )
        if not statistics.isfinite().all().item():  # waits for the device
            raise AssertionError(f"{self.name}: the loss is {statistics.tolist()}")


@dataclass
class Scene:
    """What all ways share."""

    config: Config
    world: World
    index: Index
    plan: Plan
    teacher: Teacher
    cache: Counting

    def way(
        self,
        name: str,
        cached_teacher: CachedTeacher | None,
        teacher: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> Way:
        model, _ = build_model(self.config, len(self.index.classes))
        rates: Any = model.drop_path_rates
        loader = build_train_loader(
            self.config,
            self.world,
            self.index,
            self.plan,
            drop_path=rates,
            quarantine=Quarantine(self.index),
            teacher_records=cached_teacher,
        )
        decode = None if cached_teacher is None else cached_teacher.decoder(hard=True)
        trainer = build_trainer(
            self.config, self.world, model, None, loader.steps_per_epoch, decode
        )
        trainer.teacher = teacher  # type: ignore[assignment]  # compiled, it is a plain function
        return Way(name, trainer, loader)

    def ways(self) -> Iterator[Way]:
        yield self.way("no teacher", Table(self.cache, "error", self.plan.images), None)
        yield self.way("recorded", CachedTeacher(self.cache, "error", self.plan.images), None)
        yield self.way("live", None, self.teacher)
        if self.world.device.type == "cuda":  # on a CPU the compiler's minutes would not pay
            yield self.way(
                "live, compiled", None, torch.compile(lambda images: self.teacher(images))
            )


def write_scene(root: Path, device: str) -> list[str]:
    """Images and a teacher; the flags that name them."""
    write_images(root / "data", 64, links=LINKS[device])
    torch.manual_seed(0)
    save_file(
        timm.create_model(TEACHERS[device], num_classes=2).state_dict(),
        root / "teacher.safetensors",
    )
    teacher = [
        "--teacher-model",
        TEACHERS[device],
        "--teacher-path",
        str(root / "teacher.safetensors"),
    ]
    return [
        *FLAGS[device].split(),
        "--data-path",
        str(root / "data"),
        "--cache-period",
        str(EPOCHS),
        *teacher,
    ]


def record_scene(flags: list[str], folder: Path) -> tuple[Job, float]:
    """Records EPOCHS epochs; the job, and images/s."""
    job = Job(flags, "build", folder)
    manifest = job.describe_cache("hard", 1)
    create_cache(folder, manifest)
    recorder = CacheWriter(folder)
    chunks = [(epoch, chunk) for epoch in range(EPOCHS) for chunk in range(manifest.chunks)]
    windows = ChunkBatches(manifest, chunks, job.config.optim.micro_batch)
    loader, rates = job.loader(windows, windows.micro_batch), [0.0]
    record_chunks(
        recorder, loader, chunks, job.teacher, job.dtype, lambda _, rate: rates.append(rate)
    )
    loader.close()
    recorder.close()
    return job, rates[-1]


def gate(scene: Scene) -> None:
    """The recorded answers to a batch are the live teacher's: all of them in fp32 on a CPU."""
    loader = build_train_loader(
        scene.config,
        scene.world,
        scene.index,
        scene.plan,
        quarantine=Quarantine(scene.index),
        teacher_records=CachedTeacher(scene.cache, "error", scene.plan.images),
    )
    batch = next(loader.epoch(0))
    assert batch.teacher_record is not None
    dtype = precision(scene.config, scene.world)[1]
    live = scene.teacher(mix(batch.images, batch.lam, batch.box, dtype, channels_last=True)).argmax(
        1
    )
    same = (
        (decode(batch.teacher_record, scene.cache.manifest, hard=True) == live)
        .float()
        .mean()
        .item()
    )
    loader.close()
    if same < (0.98 if scene.world.device.type == "cuda" else 1):
        raise AssertionError(
            f"the recorded answers agree with the live teacher's on {same:.1%} of a batch"
        )


def training_rows(scene: Scene, rounds: int) -> list[dict[str, str]]:
    ways, batch_size = list(scene.ways()), scene.config.optim.batch_size
    for way in ways:
        way.run_round(batch_size)
        way.wall, way.cpu = [], []
    read, steps = scene.cache.nbytes, 0
    for number in range(rounds):
        first = number % len(ways)  # each is the first of a round in its turn
        for way in ways[first:] + ways[:first]:
            way.run_round(batch_size)
        steps += WARM + STEPS
    none = ways[0]
    rows = []
    for way in ways:
        ratios = [ours / mine for ours, mine in zip(none.wall, way.wall, strict=True)]
        cpu = [ours / mine for ours, mine in zip(none.cpu, way.cpu, strict=True)]
        row = {"impl": way.name, "images_per_s": f"{1 / statistics.median(way.wall):.1f}"}
        row |= {"cpu_ms_per_image": f"{1e3 * statistics.median(way.cpu):.2f}"}
        row |= {
            "speed_pct": f"{100 * statistics.median(ratios):.1f}",
            "cpu_speed_pct": f"{100 * statistics.median(cpu):.1f}",
        }
        rows.append(row)
        way.loader.close()
    rows[1]["bytes_per_step"] = f"{(scene.cache.nbytes - read) / steps:.0f}"
    return rows


def imagenet_row(folder: Path) -> dict[str, str]:
    """Opening, and looking up, with the cache's files in the system's memory, as far as they are
    not holes."""
    samples = IMAGENET // 2 * 2
    manifest = Manifest("hard", 1, 1000, samples, {}, {}, LARGEST_CHUNK)
    plan = Plan(PlanSpec(), np.full((IMAGENET, 2), 256, np.int32))
    create_cache(folder, manifest)
    recorder, chunks = CacheWriter(folder), range(0, manifest.chunks, 8)
    logits = torch.nn.functional.one_hot(torch.arange(LARGEST_CHUNK) % 1000).float()
    for chunk in [*chunks, manifest.chunks - 1]:
        ordinals = manifest.ordinals(chunk)
        recorder.write(
            299, chunk, encode(logits[: len(ordinals)], manifest), plan.images(299, ordinals)
        )
    recorder.close()
    fresh = Plan(PlanSpec(), plan.sizes)
    start = time.perf_counter()
    cache = Cache(folder)
    _look_up(cache, 0, fresh)
    opened = time.perf_counter() - start
    new = [_seconds(cache, chunk, fresh) for chunk in chunks[1:]]
    held = [_seconds(cache, chunks[-1], fresh) for _ in range(100)]
    row = {"impl": "300 epochs of ImageNet", "open_s": f"{opened:.3f}"}
    return row | {
        "lookup_ms": f"{1e3 * statistics.median(held):.3f}",
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, help="default: results/DEVICE-teacher.csv")
    parser.add_argument("--rounds", type=int, default=9)
    asked, world = parser.parse_args(), init_distributed()
    device = world.device.type
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        flags = write_scene(root, device)
        job, rate = record_scene(flags, root / "cache")
        cache = Counting(root / "cache")
        config, _ = parse_config([*flags, "--epochs", "1000"], "bench_teacher")
        scene = Scene(
            config, world, job.index, build_plan(config, job.index.sizes), job.teacher, cache
        )
        gate(scene)
        rows = training_rows(scene, asked.rounds)
        rows += [
            {"impl": "recording", "images_per_s": f"{rate:.1f}"},
            imagenet_row(root / "imagenet"),
        ]
    setting = " ".join([*FLAGS[device].split()[1:], "--teacher-model", TEACHERS[device]])
    empty = dict.fromkeys(COLUMNS, "")
    stamp = harness.environment(world.device) | {"bench": "teacher", "setting": setting}
    full = [{**stamp, "impl": row["impl"], **empty, **row} for row in rows]
    for row in rows:
        print(
            "  ".join(
                f"{key} {value}" if key != "impl" else f"{value:24}" for key, value in row.items()
            )
        )
    place = (
        "cpu"
        if device == "cpu"
        else re.sub(r"[^a-z0-9]+", "-", harness.device_name(world.device).lower())
    )
    harness.write_rows(
        asked.output or harness.RESULTS / f"{place}-teacher.csv", full, list(full[0])
    )


if __name__ == "__main__":
    main()
