"""The bottleneck of a run: images/s of the loader alone, of the step on one batch, of both.

python -m benchmarks.bench_train [--out FOLDER] [--seconds 150] [--rounds 3]

The loader and the step are those of the trainer: planning, DropPath's bits, digests, records of a
teacher, DALI, mixing, student, loss, backward, update, EMA. The three rates are measured in turns,
both together once with `--read-ahead off` and once with `on`; a row is the median of the rounds,
after as many batches as the queues hold. host_ms is the CPU time of all threads of the process for
a step, which other programs on the machine change less than images/s. The printed line names the
bottleneck: "the loader" or "the step" if both together are within a tenth of the slower one, else
that they share the CPU.

Rows of the mode "between steps" are about the thread that trains, at other batch sizes, with a step
of some small torch calls and a pause: ms is its wait for a batch, host_ms its CPU time for a step,
calls included. impl "cached" has no loader. Rows of the mode "calls" have the time of the calls,
which a loader in a thread delays while it holds Python's lock.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.loaders.images import MEAN, STD, write_images
from benchmarks.measuring import harness
from benchmarks.measuring.trainers import CLASSES, MANIFEST, make_config, make_trainer
from fastdeit.data.build import choose_options
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.distributed.world import World, init_distributed
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

CASES = {
    "cuda": [("small", 128), ("small", 256), ("small", 1024)],
    "cpu": [("toy", 64), ("tiny", 4)],
}
"""The student and the batch of each case, the most important first."""
MEASURED = {"cuda": 30, "cpu": 8}
"""The number of batches in a measurement."""
FILLED = 4
"""The number of batches at the start of a measurement that the queues already hold, which are not
counted."""
GAP_BATCHES = (128, 256, 1024)
CALLS = 300
"""The number of small torch calls in a step between two batches."""
PAUSE_S = 200e-6
"""The pause of such a step for each image, after which DALI has the batch ready."""
NEAR = 0.9
SIZES = ("small", "large")
"""The folders of images for a toy, and for 224 px."""
ALONE = ("loader alone", "step alone")
THREAD = {"off": False, "on": True}
Batches = Iterator[Batch]


class HardRecords:
    """A teacher cache in memory: the same class for every sample."""

    missed = 0

    def records(
        self, epoch: int, ordinals: np.ndarray, labels: np.ndarray, lam: np.ndarray, version: int
    ) -> np.ndarray:
        """Return the records, uint8 (B, record bytes)."""
        classes = (ordinals % CLASSES).astype(MANIFEST.record)
        return classes.view(np.uint8).reshape(len(ordinals), -1)


def make_loader(
    index: Index, world: World, size: int, batch: int, *, thread: bool, side_of_gap: bool = False
) -> TrainLoader:
    """Return the loader of the recipe `deit`; side_of_gap: whether DALI has one thread."""
    options = choose_options(
        world,
        mean=MEAN,
        std=STD,
        num_workers=1 if side_of_gap else 0,
        read_ahead="on" if thread else "off",
    )
    return TrainLoader(
        index,
        Plan(PlanSpec(input_size=size), index.sizes),
        options,
        batch_size=batch,
        micro_batch=batch,
        drop_path=np.linspace(0, 0.1, 12).tolist(),
        teacher_records=HardRecords(),
    )


def endless(loader: TrainLoader) -> Batches:
    return (batch for epoch in itertools.count() for batch in loader.epoch(epoch))


class Rate(NamedTuple):
    """The speed of a step."""

    images_per_s: float
    host_ms: float
    """The CPU time of the process for a step."""


def measure_rate(step: Callable[[], object], images: int, device: torch.device) -> Rate:
    """Return the speed of a step that uses or makes `images` images, after the batches in the
    queues."""
    for _ in range(FILLED):
        step()
    _wait_for(device)
    start, cpu = time.perf_counter(), time.process_time()
    count = MEASURED[device.type]
    for _ in range(count):
        step()
    _wait_for(device)
    spent = time.process_time() - cpu
    return Rate(count * images / (time.perf_counter() - start), 1e3 * spent / count)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure_rates(
    student: str, batch: int, index: Index, world: World, rounds: int
) -> dict[str, Rate]:
    """Return the speed of each implementation, medians of alternating rounds."""
    config = make_config(student, batch)
    trainer = make_trainer(config, world)
    found: dict[str, list[Rate]] = {}
    with ExitStack() as stack:
        stack.callback(trainer.engine.destroy)
        batches = {}
        for name, thread in THREAD.items():
            loader = make_loader(index, world, config.data.input_size, batch, thread=thread)
            batches[name] = endless(stack.enter_context(closing(loader)))
        held = next(batches["off"])
        steps: dict[str, Callable[[], object]] = {
            ALONE[0]: lambda: next(batches["off"]),
            ALONE[1]: lambda: trainer.train_step([held]),
        }
        for name, source in batches.items():
            steps[f"both, read-ahead {name}"] = partial(_train_next, trainer.train_step, source)
        for _ in range(rounds):
            for impl, step in steps.items():
                found.setdefault(impl, []).append(measure_rate(step, batch, world.device))
    return {
        impl: Rate(*map(statistics.median, zip(*of, strict=True))) for impl, of in found.items()
    }


def _train_next(train_step: Callable[[list[Batch]], object], batches: Batches) -> None:
    train_step([next(batches)])


def name_bottleneck(loader: float, step: float, both: float) -> str:
    """Return a text that names the bottleneck, from the rates in images/s of the loader alone, the
    step alone and both together."""
    if both < NEAR * min(loader, step):
        return "both share the CPU"
    return "the loader" if loader < step else "the step"


class Gap(NamedTuple):
    """The times of the training thread in some steps, in ms, one value for each step."""

    waits: list[float]
    calls: list[float]
    host: list[float]


def measure_gap(take: Callable[[], object], batch: int, steps: int) -> Gap:
    """Return the times of synthetic steps whose batches come from `take`."""
    small = torch.zeros(16)
    gap = Gap([], [], [])
    for number in range(FILLED + steps):
        begin, cpu = time.perf_counter(), time.thread_time()
        take()
        there = time.perf_counter()
        for _ in range(CALLS):
            small.add_(1)
        if number >= FILLED:
            gap.waits.append(1e3 * (there - begin))
            gap.calls.append(1e3 * (time.perf_counter() - there))
            gap.host.append(1e3 * (time.thread_time() - cpu))
        time.sleep(PAUSE_S * batch)
    return gap


def measure_gaps(batch: int, index: Index, world: World, rounds: int) -> dict[str, Gap]:
    """Return the times, by the source of the batches, of alternating rounds."""
    steps = max(8, 2048 // batch)
    with ExitStack() as stack:
        takes: dict[str, Callable[[], object]] = {"cached": lambda: None}
        for name, thread in THREAD.items():
            loader = make_loader(index, world, 16, batch, thread=thread, side_of_gap=True)
            source = endless(stack.enter_context(closing(loader)))
            takes[f"read-ahead {name}"] = partial(next, source)
        found = {impl: Gap([], [], []) for impl in takes}
        for _ in range(rounds):
            for impl, take in takes.items():
                gap = measure_gap(take, batch, steps)
                for held, new in zip(found[impl], gap, strict=True):
                    held += new
    return found


def _row(mode: str, shape: str, dtype: str, impl: str, **measured: float) -> harness.Row:
    empty: harness.Row = dict.fromkeys((*harness.MEASURED, *harness.COUNTED), "")
    shown = {name: float(f"{value:.4g}") for name, value in measured.items()}
    return harness.case_columns("train", mode, shape, dtype, impl) | empty | shown


def _quantiles(times: list[float]) -> dict[str, float]:
    p20, _, _, p80 = statistics.quantiles(times, n=5)
    return {"ms_p20": p20, "ms_p50": statistics.median(times), "ms_p80": p80}


def rate_rows(case: tuple[str, int], index: Index, world: World, rounds: int) -> list[harness.Row]:
    """Measure a case, print its bottleneck, and return its rows."""
    student, batch = case
    found = measure_rates(student, batch, index, world, rounds)
    loader, step = (found[name].images_per_s for name in ALONE)
    best = max(of.images_per_s for name, of in found.items() if name not in ALONE)
    print(f"{student} {batch}: {name_bottleneck(loader, step, best)}", flush=True)
    for name, of in found.items():
        print(
            f"  {name}: {of.images_per_s:.0f} images/s, {of.host_ms:.1f} CPU ms a step", flush=True
        )
    dtype = "bf16" if world.device.type == "cuda" else "fp32"
    return [
        _row("rate", f"{student} {batch}", dtype, impl, **of._asdict())
        for impl, of in found.items()
    ]


def gap_rows(batch: int, index: Index, world: World, rounds: int) -> list[harness.Row]:
    """Measure the time between two steps, print it, and return its rows."""
    rows = []
    for impl, gap in measure_gaps(batch, index, world, rounds).items():
        host = statistics.mean(gap.host)
        waits = _row("between steps", str(batch), "", impl, **_quantiles(gap.waits), host_ms=host)
        rows += [waits, _row("calls", str(batch), "", impl, **_quantiles(gap.calls))]
        worst = max(gap.calls)
        calls = f"{statistics.median(gap.calls):.2f} ms, longest {worst:.2f}"
        wait = f"wait {statistics.median(gap.waits):.3f} ms, host {host:.2f} ms"
        print(f"between steps, {batch}, {impl}: {wait}, {CALLS} calls {calls}", flush=True)
    return rows


def measure_all(args: argparse.Namespace, world: World, folder: Path) -> list[harness.Row]:
    """Measure every case until the time limit, and return all rows; folder: for the images."""
    write_images(folder / "large", 32, links=64)
    write_images(folder / "small", 16, links=400, size=(64, 48))
    small, large = (build_index(folder / name, "train", check="headers") for name in SIZES)
    jobs: list[Callable[[], list[harness.Row]]] = []
    for case in CASES[world.device.type]:
        index = small if case[0] == "toy" else large
        jobs.append(partial(rate_rows, case, index, world, args.rounds))
    jobs += [partial(gap_rows, batch, small, world, args.rounds) for batch in GAP_BATCHES]
    start = time.monotonic()
    stamp = harness.environment(world.device)
    rows: list[harness.Row] = []
    for job in jobs:
        if time.monotonic() - start > args.seconds:
            print("skipped, no time:", *job.args[:1])  # type: ignore[attr-defined]
            continue
        new = [stamp | row for row in job()]
        harness.append(new, world.device, args.out)
        rows += new
    return rows


def main() -> None:
    parser = harness.make_parser(__doc__)
    harness.add_out(parser)
    parser.add_argument("--seconds", type=float, default=150, help="start no case after this time")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    world = init_distributed()
    with TemporaryDirectory() as folder:
        measure_all(args, world, Path(folder))


if __name__ == "__main__":
    main()
