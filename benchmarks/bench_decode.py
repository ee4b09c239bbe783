"""CPU time of an image for reading and decoding the pixels that are used, against decoding more.

python -m benchmarks.bench_decode [-o results.csv]

copies: the window of all copies of an image in a batch of 64, decoded once, against the crop of
each, decoded separately. evaluation: the pixels that the filter reads for the centre crop, against
the whole image. `part_ms` is the CPU time of the first, `whole_ms` that of the second, `ratio` the
second divided by the first, the median of rounds in which the two alternate. The rest of the path
(`exact`, 224 px, the recipe `deit`) is included.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import Pipeline

from benchmarks.loaders.case import BATCH
from benchmarks.loaders.images import MEAN, STD, write_images
from benchmarks.measuring import harness
from benchmarks.measuring.harness import Row
from fastdeit.data.augment.sample import FILL, REGION
from fastdeit.data.graphs.eval_crop import EvalCrop
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.graphs.pipeline import (
    build_eval_pipeline,
    build_train_pipeline,
    pack_draws,
    pack_eval,
)
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

ROUNDS, RUNS = 9, 8
IMAGES = 512
OPTIONS = PipelineOptions(MEAN, STD, num_threads=2, batch_size=BATCH, knows_sizes=True)
CROPS = (EvalCrop(224, 0.875), EvalCrop(224, 0.9, "bilinear"), EvalCrop(224, 0.5))
Fed = Callable[[int], tuple[object, ...]]


def train_pipeline(index: Index, plan: Plan, together: bool) -> Pipeline:
    """Build a pipeline of the plan's samples; together: whether copies are decoded once."""
    spec = plan.spec if together else dataclasses.replace(plan.spec, repeats=1)

    def feed(number: int) -> tuple[object, ...]:
        first = number % (IMAGES // BATCH) * BATCH
        draws = plan.draw(0, np.arange(first, first + BATCH))
        rows = draws.image_index
        return (index.encoded(rows), index.sizes[rows], *pack_draws(draws, spec, OPTIONS))

    return build_train_pipeline(_held(feed), spec, OPTIONS)


def eval_pipeline(index: Index, crop: EvalCrop, whole: bool) -> Pipeline:
    """Build a pipeline of an evaluation; whole: whether the whole of each image is decoded."""

    def feed(number: int) -> tuple[object, ...]:
        first = number % (IMAGES // BATCH) * BATCH
        rows = np.arange(first, first + BATCH)
        sizes = index.sizes[rows]
        windows, ints, floats = pack_eval(sizes, crop, OPTIONS)
        if whole:
            windows = np.concatenate((np.zeros_like(sizes), sizes), 1)
            ints[:, REGION:FILL] = windows
        return index.encoded(rows), sizes, windows, ints, floats

    return build_eval_pipeline(_held(feed), crop, OPTIONS)


def _held(feed: Fed) -> Fed:
    """Return a source that holds all that it feeds in memory, as DALI reads it in place."""
    batches = [feed(number) for number in range(IMAGES // BATCH)]
    return lambda number: batches[number % len(batches)]


def compare(case: str, whole: Pipeline, part: Pipeline) -> Row:
    """Measure two pipelines in alternating rounds; return and print a row."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for pipeline, milliseconds in zip((whole, part), found, strict=True):
            pipeline.run()
            start = time.process_time()
            for _ in range(RUNS):
                pipeline.run()
            milliseconds.append(1e3 * (time.process_time() - start) / (RUNS * BATCH))
    ratio = statistics.median(more / less for more, less in zip(*found, strict=True))
    times = [f"{statistics.median(milliseconds):.3f}" for milliseconds in found]
    row: Row = {"case": case, "whole_ms": times[0], "part_ms": times[1], "ratio": f"{ratio:.2f}"}
    print(" ".join(f"{name}: {value}" for name, value in row.items()))
    return row


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-decode.csv")
    output = parser.parse_args().output
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 128, links=IMAGES // 128)
        index = build_index(Path(folder), "train")
        for repeats in (2, 3):
            plan = Plan(PlanSpec(repeats=repeats), index.sizes)
            alone, together = (train_pipeline(index, plan, way) for way in (False, True))
            rows.append(compare(f"{repeats} copies", alone, together))
        for crop in CROPS:
            whole, part = (eval_pipeline(index, crop, way) for way in (True, False))
            name = f"evaluation, {crop.interpolation}, crop ratio {crop.crop_pct:g}"
            rows.append(compare(name, whole, part))
    stamp = harness.environment(torch.device("cpu"))
    harness.write_rows(output, [{**stamp, **row} for row in rows], [*stamp, *rows[0]])


if __name__ == "__main__":
    main()
