"""What planning costs, and how long Python holds the interpreter's lock: python -m benchmarks.bench_planning [-o results.csv]

us_per_sample: CPU time of drawing a sample and packing its rows (DeiT's recipe, DropPath's bits of 12 blocks), by micro-batch.
lock_pct: CPU time of the thread that runs Python, DALI's calls included, over the time that passes while two DALI threads
make the batch: an upper bound of the share in which the lock is held.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.loaders import MEAN, STD, write_images
from fastdeit.data.index import Index, build_index
from fastdeit.data.loader import TrainLoader
from fastdeit.data.pipeline import PipelineOptions
from fastdeit.plan import Plan, PlanSpec

MICRO_BATCHES = (64, 128, 256, 1024)
SAMPLES = 40_960
BATCHES = 24


def loader(index: Index, micro_batch: int) -> TrainLoader:
    options = PipelineOptions(MEAN, STD, num_threads=2)
    rates = [0.1] * 12
    return TrainLoader(
        index, Plan(PlanSpec(), index.sizes), options, batch_size=micro_batch, micro_batch=micro_batch, drop_path=rates
    )


def planning_us(index: Index, micro_batch: int) -> float:
    """CPU microseconds a sample, of what the loader does to plan its micro-batches in order."""
    one = loader(index, micro_batch)
    per_epoch = one.steps_per_epoch
    one.plan_batch(0)
    start = time.process_time()
    for number in range(per_epoch, per_epoch + SAMPLES // micro_batch):
        one.plan_batch(number)
    spent = time.process_time() - start
    one.close()
    return 1e6 * spent / SAMPLES


def lock_pct(index: Index, micro_batch: int) -> float:
    """Share of the time in which the thread that runs Python is on a core, in percent."""
    one = loader(index, micro_batch)
    batches = (batch for epoch in range(2**20) for batch in one.epoch(epoch))
    for _ in range(4):
        next(batches)
    wall, mine = time.perf_counter(), time.thread_time()
    for _ in range(BATCHES):
        next(batches)
    share = (time.thread_time() - mine) / (time.perf_counter() - wall)
    one.close()
    return 100 * share


def measure(index: Index, micro: int) -> dict[str, str]:
    return {
        "micro_batch": str(micro),
        "us_per_sample": f"{planning_us(index, micro):.2f}",
        "lock_pct": f"{lock_pct(index, micro):.2f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-planning.csv")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 64, links=64)
        index = build_index(Path(folder), "train")
        rows = [measure(index, micro) for micro in MICRO_BATCHES]
        for row in rows:
            print("micro-batch {micro_batch:>5}: {us_per_sample} us/sample, lock held at most {lock_pct} %".format(**row))
    stamp = harness.environment(torch.device("cpu"))
    harness.write_rows(output, [{**stamp, **row} for row in rows], [*stamp, *rows[0]])


if __name__ == "__main__":
    main()
