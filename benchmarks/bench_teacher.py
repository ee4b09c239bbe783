"""Speed of training without a teacher, with a teacher cache, and with a live teacher, in images/s.

python -m benchmarks.bench_teacher [-o results.csv] [--rounds 9]

Student, loss and heads are the same in all. Without a teacher the hard labels come from an array in
memory, so that the difference to the teacher cache is the cost of the cache. All variants run in
one process and alternate over several rounds: on a shared machine the median of each round's ratio
is the reliable figure, and beside it CPU time an image. The teacher is a RegNet with random
weights; on a CPU the student is chosen to cost about as much as the teacher, as DeiT-S does beside
RegNetY-16GF. Then the rate of recording, the bytes that a step reads from the cache, and for a
cache of 300 epochs of ImageNet (a sparse file) the time to open it, with the first batch and the
epoch's order, and to look up 1,024 samples.
"""

import itertools
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

from benchmarks.loaders.images import write_images
from benchmarks.measuring import harness
from benchmarks.measuring.look_ups import imagenet_row
from fastdeit.commands.cache.record import Job
from fastdeit.config.cli import parse_config
from fastdeit.config.schema import Config
from fastdeit.data.build import build_train_loader
from fastdeit.data.index import Index
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.distributed.world import World, init_distributed
from fastdeit.kernels.mix import mix
from fastdeit.models.build import build_model, precision
from fastdeit.models.teachers.ensemble import LiveTeacher
from fastdeit.plan.build import build_plan
from fastdeit.plan.plan import Plan
from fastdeit.teacher_cache.format import decode
from fastdeit.teacher_cache.reader import Cache, CachedTeacher
from fastdeit.teacher_cache.record import ChunkBatches, record_chunks
from fastdeit.teacher_cache.writer import CacheWriter, create_cache
from fastdeit.training.build import build_trainer
from fastdeit.training.trainer import Trainer

FLAGS = {
    "cpu": "--model deit_tiny_distilled_patch16_224 --embed-dim 96 --num-heads 3 --depth 3 "
    "--batch-size 32 --micro-batch 32",
    "cuda": "--model deit_small_distilled_patch16_224 --batch-size 256 --micro-batch 256",
}
TEACHERS = {"cpu": "regnety_002", "cuda": "regnety_160"}
LINKS = {"cpu": 8, "cuda": 64}
"""The number of names of each of 64 images."""
EPOCHS = 4
"""The number of recorded epochs, which have more chunks than the memory of the cache; then the
samples repeat."""
WARM_UP = 3
STEPS = 16
"""The number of timed steps in a round, and of the steps before them."""
COLUMNS = (
    *("images_per_s", "cpu_ms_per_image", "speed_pct", "cpu_speed_pct", "bytes_per_step"),
    *("open_s", "lookup_ms", "new_chunk_ms"),
)
"""The columns. speed_pct: percent of the speed without a teacher; cpu_speed_pct: the same by CPU
time; new_chunk_ms: the time of a look-up that reads and verifies a chunk."""


class Counting(Cache):
    """A cache that counts the bytes it reads."""

    nbytes = 0

    def read_chunk(self, epoch: int, chunk: int) -> np.ndarray | None:
        found = super().read_chunk(epoch, chunk)
        self.nbytes += 0 if found is None else found.nbytes + len(self.read_entry(epoch, chunk))
        return found


class Table(CachedTeacher):
    """A teacher cache in memory, with which training costs as much as without a teacher."""

    def records(
        self, epoch: int, ordinals: np.ndarray, labels: np.ndarray, lam: np.ndarray, version: int
    ) -> np.ndarray:
        return np.zeros((len(ordinals), self.cache.record_bytes), np.uint8)


@dataclass
class Variant:
    """One way to train, with the seconds and the CPU seconds for an image in each round."""

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
        self._steps(WARM_UP)
        wall, cpu = time.perf_counter(), time.process_time()
        self._steps(STEPS)
        self.wall.append((time.perf_counter() - wall) / STEPS / batch_size)
        self.cpu.append((time.process_time() - cpu) / STEPS / batch_size)

    def _steps(self, count: int) -> None:
        for _ in range(count):
            batches = itertools.islice(self.batches, self.loader.micro_steps)
            losses = self.trainer.train_step(batches)
        if not losses.isfinite().all().item():  # waits for the device
            raise AssertionError(f"{self.name}: the loss is {losses.tolist()}")


@dataclass
class Setup:
    """The parts that all variants share."""

    config: Config
    world: World
    index: Index
    plan: Plan
    teacher: LiveTeacher
    cache: Counting

    def variant(
        self,
        name: str,
        cached_teacher: CachedTeacher | None,
        teacher: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> Variant:
        """Return a way to train, with its own student and loader."""
        model, _ = build_model(self.config, self.index.classes)
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
        steps = loader.steps_per_epoch
        decode = None if cached_teacher is None else cached_teacher.decoder(hard=True)
        trainer = build_trainer(self.config, self.world, model, None, steps, decode)
        trainer.teacher = teacher  # type: ignore[assignment]  # compiled, it is a plain function
        return Variant(name, trainer, loader)

    def variants(self) -> Iterator[Variant]:
        yield self.variant("no teacher", Table(self.cache, "error", self.plan.images), None)
        yield self.variant("recorded", CachedTeacher(self.cache, "error", self.plan.images), None)
        yield self.variant("live", None, self.teacher)
        if self.world.device.type == "cuda":  # compiling for a CPU takes minutes
            compiled = torch.compile(lambda images: self.teacher(images))
            yield self.variant("live, compiled", None, compiled)


def write_inputs(root: Path, device: str) -> list[str]:
    """Write images and a teacher; return the flags that name them."""
    data = root / "data"
    weights = root / "teacher.safetensors"
    write_images(data, 64, links=LINKS[device])
    torch.manual_seed(0)
    save_file(timm.create_model(TEACHERS[device], num_classes=2).state_dict(), weights)
    flags = [*FLAGS[device].split(), "--data-path", str(data), "--cache-period", str(EPOCHS)]
    return [*flags, "--teacher-model", TEACHERS[device], "--teacher-path", str(weights)]


def record_cache(flags: list[str], folder: Path) -> tuple[Job, float]:
    """Record EPOCHS epochs; return the job and images/s."""
    job = Job(flags, "build", folder)
    manifest = job.describe_cache("hard", None)
    create_cache(folder, manifest)
    writer = CacheWriter(folder)
    chunks = [(epoch, chunk) for epoch in range(EPOCHS) for chunk in range(manifest.chunks)]
    batches = ChunkBatches(manifest, chunks, job.config.optim.micro_batch)
    loader = job.loader(batches, batches.micro_batch)
    rates = [0.0]

    def report(_: object, rate: float) -> None:
        rates.append(rate)

    record_chunks(writer, loader, chunks, job.teacher, job.dtype, report)
    loader.close()
    writer.close()
    return job, rates[-1]


def check_agreement(setup: Setup) -> None:
    """Raise AssertionError unless the recorded classes of a batch are those of the live teacher.

    In bf16 on a GPU 98 % must be equal, in fp32 on a CPU all of them.
    """
    loader = build_train_loader(
        setup.config,
        setup.world,
        setup.index,
        setup.plan,
        quarantine=Quarantine(setup.index),
        teacher_records=CachedTeacher(setup.cache, "error", setup.plan.images),
    )
    batch = next(loader.epoch(0))
    assert batch.teacher_record is not None
    dtype = precision(setup.config, setup.world)[1]
    images = mix(batch.unmixed, batch.lam, batch.box, dtype, channels_last=True)
    live = setup.teacher(images).argmax(1)
    recorded = decode(batch.teacher_record, setup.cache.manifest, hard=True)
    share = (recorded == live).float().mean().item()
    loader.close()
    required = 0.98 if setup.world.device.type == "cuda" else 1
    if share < required:
        raise AssertionError(
            f"equal recorded and live classes must be at least {required:.0%} (got {share:.1%})"
        )


def training_rows(setup: Setup, rounds: int) -> list[dict[str, str]]:
    """Train all variants in alternation; return a row for each."""
    variants = list(setup.variants())
    batch_size = setup.config.optim.batch_size
    for variant in variants:
        variant.run_round(batch_size)
        variant.wall.clear()
        variant.cpu.clear()
    read_before = setup.cache.nbytes
    for number in range(rounds):
        first = number % len(variants)  # another variant is first in each round
        for variant in variants[first:] + variants[:first]:
            variant.run_round(batch_size)
    rows = []
    for variant in variants:
        rows.append(variant_row(variant, variants[0]))
        variant.loader.close()
    steps = rounds * (WARM_UP + STEPS)
    rows[1]["bytes_per_step"] = f"{(setup.cache.nbytes - read_before) / steps:.0f}"
    return rows


def variant_row(variant: Variant, baseline: Variant) -> dict[str, str]:
    """Return the row of a variant; its speeds are relative to the baseline."""
    speeds = [base / own for base, own in zip(baseline.wall, variant.wall, strict=True)]
    cpu_speeds = [base / own for base, own in zip(baseline.cpu, variant.cpu, strict=True)]
    return {
        "impl": variant.name,
        "images_per_s": f"{1 / statistics.median(variant.wall):.1f}",
        "cpu_ms_per_image": f"{1e3 * statistics.median(variant.cpu):.2f}",
        "speed_pct": f"{100 * statistics.median(speeds):.1f}",
        "cpu_speed_pct": f"{100 * statistics.median(cpu_speeds):.1f}",
    }


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, help="default: results/DEVICE-teacher.csv")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    world = init_distributed()
    device = world.device.type
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        flags = write_inputs(root, device)
        job, rate = record_cache(flags, root / "cache")
        cache = Counting(root / "cache")
        config, _ = parse_config([*flags, "--epochs", "1000"], "bench_teacher")
        plan = build_plan(config, job.index.sizes)
        setup = Setup(config, world, job.index, plan, job.teacher, cache)
        check_agreement(setup)
        rows = training_rows(setup, args.rounds)
        rows.append({"impl": "recording", "images_per_s": f"{rate:.1f}"})
        rows.append(imagenet_row(root / "imagenet"))
    setting = " ".join([*FLAGS[device].split()[1:], "--teacher-model", TEACHERS[device]])
    empty = dict.fromkeys(COLUMNS, "")
    stamp = harness.environment(world.device) | {"bench": "teacher", "setting": setting}
    full = [{**stamp, "impl": row["impl"], **empty, **row} for row in rows]
    for row in rows:
        figures = [f"{key} {value}" for key, value in row.items() if key != "impl"]
        print("  ".join([f"{row['impl']:24}", *figures]))
    place = "cpu" if device == "cpu" else harness.device_slug(world.device)
    path = args.output or harness.RESULTS / f"{place}-teacher.csv"
    harness.write_rows(path, full, list(full[0]))


if __name__ == "__main__":
    main()
