"""Resident memory over training and evaluation in turns: python -m benchmarks.bench_memory
[--iterations 2000] [-o results.csv]

Real loaders of both backends, or of one, at a small size; a row for each 100 iterations, the mean
of ten looks, since the batches alive at one moment differ. Ends with exit code 1 when the largest
and the smallest after the warm-up are more than 4 % apart (2 % to either side of their middle).
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.loaders import MEAN, STD, write_images
from fastdeit.data.eval_loader import EvalLoader
from fastdeit.data.index import build_index
from fastdeit.data.loader import TrainLoader
from fastdeit.data.pipeline import BACKENDS, PipelineOptions
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

SIZE, BATCH, TRAIN_RUN, EVERY, LOOKS = 96, 32, 20, 100, 10
WARM_UP = 0.2  # share of the iterations: DALI's pools grow until they have met the largest images
ALLOWED_PCT = 2.0


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def run(root: Path, backend: str, iterations: int) -> list[tuple[int, float]]:
    """(iteration, MiB) for each EVERY iterations; an iteration is a batch of training or of
    evaluation."""
    index, options = (
        build_index(root, "train"),
        PipelineOptions(MEAN, STD, num_threads=2, backend=backend),
    )
    plan = Plan(PlanSpec(input_size=SIZE), index.sizes)
    train = TrainLoader(index, plan, options, batch_size=BATCH, micro_batch=BATCH)
    evaluation = EvalLoader(index, options, batch_size=BATCH, input_size=SIZE, crop_pct=0.875)
    batches = (batch for epoch in itertools.count() for batch in train.epoch(epoch))
    found, looks, done = [], [], 0
    while done < iterations:
        for _ in itertools.chain(itertools.islice(batches, TRAIN_RUN), evaluation):
            done += 1
            if done % (EVERY // LOOKS) == 0:
                looks.append(resident_mib())
            if done % EVERY == 0:
                found.append((done, statistics.mean(looks)))
                looks.clear()
    train.close()
    evaluation.close()
    return found


def swing_pct(found: list[tuple[int, float]]) -> float:
    """Half the distance between the smallest and the largest after the warm-up, in percent of their
    middle."""
    held = [mib for iteration, mib in found if iteration > WARM_UP * found[-1][0]]
    return 100 * (max(held) - min(held)) / (max(held) + min(held))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS))
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-memory.csv")
    arguments = parser.parse_args()
    stamp, worst = harness.environment(torch.device("cpu")), 0.0
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 128, links=1)
        for backend in arguments.backends:
            found = run(Path(folder), backend, arguments.iterations)
            rows = [
                {**stamp, "backend": backend, "iteration": str(done), "rss_mib": f"{mib:.1f}"}
                for done, mib in found
            ]
            harness.write_rows(arguments.output, rows, [*rows[0]])
            worst = max(worst, swing_pct(found))
            swing = f"+-{swing_pct(found):.2f} % after the warm-up"
            print(f"{backend}: {found[-1][1]:.0f} MiB after {found[-1][0]} iterations, {swing}")
    return int(worst > ALLOWED_PCT)


if __name__ == "__main__":
    sys.exit(main())
