"""CPU time of planning in microseconds a sample, and the share of time in which Python holds the
interpreter's lock.

python -m benchmarks.bench_planning [-o results.csv]

us_per_sample: CPU time of drawing the parameters and writing them to arrays (DeiT's recipe,
DropPath masks of 12 blocks), by micro-batch. digest_us: the time of it for the hash of the
parameters. lock_pct: CPU time of the Python thread, with its calls of DALI, in percent of the time
in which two DALI threads make the batch: an upper bound of the share in which the lock is held.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.loaders.images import MEAN, STD, write_images
from benchmarks.measuring import harness
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.plan.digest import sample_digests
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

MICRO_BATCHES = (64, 128, 256, 1024)
SAMPLES = 40_960
BATCHES = 24


def loader(index: Index, micro_batch: int) -> TrainLoader:
    options = PipelineOptions(MEAN, STD, num_threads=2)
    rates = [0.1] * 12
    return TrainLoader(
        index,
        Plan(PlanSpec(), index.sizes),
        options,
        batch_size=micro_batch,
        micro_batch=micro_batch,
        drop_path=rates,
    )


def planning_us(index: Index, micro_batch: int) -> float:
    """Return the CPU microseconds a sample for planning the loader's micro-batches in order."""
    train_loader = loader(index, micro_batch)
    per_epoch = train_loader.steps_per_epoch
    train_loader.plan_batch(0)
    start = time.process_time()
    for number in range(per_epoch, per_epoch + SAMPLES // micro_batch):
        train_loader.plan_batch(number)
    spent = time.process_time() - start
    train_loader.close()
    return 1e6 * spent / SAMPLES


def digest_us(index: Index, micro_batch: int) -> float:
    """Return the CPU microseconds a sample for the hash of its planned parameters."""
    plan = Plan(PlanSpec(), index.sizes)
    ordinals = np.arange(4096)
    draws = plan.draw(0, ordinals)
    keep = plan.keep(0, ordinals, [0.1] * 12)
    steps = ordinals // micro_batch
    times = SAMPLES // len(ordinals)
    sample_digests(steps, 0, ordinals, draws, keep)
    start = time.process_time()
    for _ in range(times):
        sample_digests(steps, 0, ordinals, draws, keep)
    return 1e6 * (time.process_time() - start) / (times * len(ordinals))


def lock_pct(index: Index, micro_batch: int) -> float:
    """Return the percentage of the time in which the Python thread runs on a core."""
    train_loader = loader(index, micro_batch)
    batches = (batch for epoch in range(2**20) for batch in train_loader.epoch(epoch))
    for _ in range(4):
        next(batches)
    wall_start = time.perf_counter()
    thread_start = time.thread_time()
    for _ in range(BATCHES):
        next(batches)
    share = (time.thread_time() - thread_start) / (time.perf_counter() - wall_start)
    train_loader.close()
    return 100 * share


def measure(index: Index, micro: int) -> dict[str, str]:
    return {
        "micro_batch": str(micro),
        "us_per_sample": f"{planning_us(index, micro):.2f}",
        "lock_pct": f"{lock_pct(index, micro):.2f}",
        "digest_us": f"{digest_us(index, micro):.3f}",
    }


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-planning.csv")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 64, links=64)
        index = build_index(Path(folder), "train")
        rows = [measure(index, micro) for micro in MICRO_BATCHES]
        for row in rows:
            planning = f"{row['us_per_sample']} us/sample, of it {row['digest_us']} for the digest"
            lock = f"lock held at most {row['lock_pct']} %"
            print(f"micro-batch {row['micro_batch']:>5}: {planning}, {lock}")
    stamp = harness.environment(torch.device("cpu"))
    harness.write_rows(output, [{**stamp, **row} for row in rows], [*stamp, *rows[0]])


if __name__ == "__main__":
    main()
