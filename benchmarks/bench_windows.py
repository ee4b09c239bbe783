"""Cost of a sample of the exact backend with --augment-device gpu, beside cpu: CPU time, and bytes
to the GPU.

python -m benchmarks.bench_windows [--images 256]

With `gpu` the host decodes the windows and copies them into one buffer; with `cpu` it does
everything, up to the finished images. Both are measured on the CPU in one process, in turn, in CPU
time; the kernels are not run (docs/kernels.md has an estimate of their time). Prints a Markdown
table.
"""

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.loaders.images import MEAN, STD, write_images
from benchmarks.loaders.process import measure
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.graphs.pipeline import build_train_pipeline
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders.packed import take_packed
from fastdeit.data.loaders.stream import Stream
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

BATCH, ROUNDS = 64, 3
TABLE_BYTES = 17 * 8
"""The bytes of a sample's row in the table that `resize` copies to the GPU."""
SPECS = {
    "deit, 1 copy": PlanSpec(repeats=1),
    "deit, 2 copies": PlanSpec(repeats=2),
    "deit, 3 copies": PlanSpec(repeats=3),
    "deit3, 3 copies": PlanSpec(
        repeats=3,
        ra_layers=0,
        three_augment=True,
        simple_crop=True,
        color_jitter=0.3,
        reprob=0.0,
    ),
}
HEAD = "| recipe | CPU ms a sample, cpu | gpu | ratio | KB to the GPU, cpu | gpu |"


def make_loader(index: Index, spec: PlanSpec, uses_kernels: bool) -> TrainLoader:
    options = PipelineOptions(MEAN, STD, num_threads=2, uses_kernels=uses_kernels)
    return TrainLoader(index, Plan(spec, index.sizes), options, batch_size=BATCH, micro_batch=BATCH)


def endless(loader: TrainLoader) -> Iterator[Any]:
    return (batch for epoch in itertools.count() for batch in loader.epoch(epoch))


def decode(index: Index, spec: PlanSpec) -> Iterator[tuple[torch.Tensor, Any]]:
    """Yield buffers of decoded windows, each with the planned micro-batch."""
    loader = make_loader(index, spec, uses_kernels=True)
    stream = Stream(
        index,
        loader.plan_batch,
        lambda source: build_train_pipeline(source, spec, loader.options),
        _take,
        Quarantine(index),
    )
    return map(stream.get, itertools.count())


def _take(decoded: Any, planned: Any) -> torch.Tensor:
    return take_packed(decoded, planned.decoding.windows)


def bytes_sent(packed: torch.Tensor, planned: Any) -> float:
    """Return the bytes that are sent to the kernels for a sample."""
    rows = sum(array.nbytes for array in planned.arrays)
    return (packed.numel() + rows) / BATCH + TABLE_BYTES


def row_of(name: str, spec: PlanSpec, index: Index, images: int) -> str:
    whole = endless(make_loader(index, spec, uses_kernels=False))
    windows = decode(index, spec)
    samples = [(batch.ordinals for batch in whole), (planned.ordinals for _, planned in windows)]
    for each in samples:
        next(each)
    rounds = [[measure((each, []), images) for each in samples] for _ in range(ROUNDS)]
    cpu, gpu = (statistics.median(times) for times in zip(*rounds, strict=True))
    sent = statistics.mean(bytes_sent(*next(windows)) for _ in range(4)) / 1e3
    finished = 3 * spec.input_size**2 * 4 / 1e3
    times = f"{cpu:.2f} | {gpu:.2f} | {gpu / cpu:.2f}"
    return f"| {name} | {times} | {finished:.0f} | {sent:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256, help="samples of each measurement")
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 32, 16)
        index = build_index(Path(folder), "train")
        print(HEAD, "|---|---|---|---|---|---|", sep="\n")
        for name, spec in SPECS.items():
            print(row_of(name, spec, index, images), flush=True)


if __name__ == "__main__":
    main()
