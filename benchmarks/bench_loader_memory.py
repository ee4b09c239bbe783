"""Resident memory in MiB while the training and the evaluation loader alternate.

python -m benchmarks.bench_loader_memory [--iterations 2000] [-o results.csv]

Real loaders of both backends, or of one, at a small size. Each row is 100 iterations and the mean
of ten measurements, since the number of live batches varies. The exit code is 1 if the largest and
the smallest row after the warm-up differ by more than 4 % (2 % to either side of their middle).
"""

import itertools
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.loaders.images import MEAN, STD, write_images
from benchmarks.measuring import harness
from fastdeit.data.graphs.options import BACKENDS, PipelineOptions
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders.evaluation import EvalLoader
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

SIZE = 96
BATCH = 32
TRAIN_RUN = 20
"""The number of training batches before each evaluation."""
EVERY = 100
"""The number of iterations of a row."""
SAMPLES = 10
"""The number of memory measurements of a row."""
WARM_UP = 0.2
"""The share of the iterations in which DALI's pools grow until they fit the largest images."""
ALLOWED_PCT = 2.0


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def run(root: Path, backend: str, iterations: int) -> list[tuple[int, float]]:
    """Return (iteration, MiB) for each EVERY iterations.

    An iteration is a batch of training or of evaluation.
    """
    index = build_index(root, "train")
    options = PipelineOptions(MEAN, STD, num_threads=2, backend=backend)
    plan = Plan(PlanSpec(input_size=SIZE), index.sizes)
    train = TrainLoader(index, plan, options, batch_size=BATCH, micro_batch=BATCH)
    evaluation = EvalLoader(index, options, batch_size=BATCH, input_size=SIZE, crop_pct=0.875)
    batches = (batch for epoch in itertools.count() for batch in train.epoch(epoch))
    found = []
    samples: list[float] = []
    done = 0
    while done < iterations:
        for _ in itertools.chain(itertools.islice(batches, TRAIN_RUN), evaluation):
            done += 1
            if done % (EVERY // SAMPLES) == 0:
                samples.append(resident_mib())
            if done % EVERY == 0:
                found.append((done, statistics.mean(samples)))
                samples.clear()
    train.close()
    evaluation.close()
    return found


def swing_pct(found: list[tuple[int, float]]) -> float:
    """Return half the difference of the largest and the smallest memory after the warm-up, in
    percent of their middle."""
    mib = [value for iteration, value in found if iteration > WARM_UP * found[-1][0]]
    return 100 * (max(mib) - min(mib)) / (max(mib) + min(mib))


def main() -> int:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS))
    parser.add_argument(
        "-o", "--output", type=Path, default=harness.RESULTS / "cpu-loader-memory.csv"
    )
    args = parser.parse_args()
    stamp = harness.environment(torch.device("cpu"))
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 128, links=1)
        for backend in args.backends:
            found = run(Path(folder), backend, args.iterations)
            rows = []
            for done, mib in found:
                row: harness.Row = {"backend": backend, "iteration": done, "rss_mib": f"{mib:.1f}"}
                rows.append(stamp | row)
            harness.write_rows(args.output, rows, [*rows[0]])
            worst = max(worst, swing_pct(found))
            swing = f"+-{swing_pct(found):.2f} % after the warm-up"
            print(f"{backend}: {found[-1][1]:.0f} MiB after {found[-1][0]} iterations, {swing}")
    return int(worst > ALLOWED_PCT)


if __name__ == "__main__":
    sys.exit(main())
