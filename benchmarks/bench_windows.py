"""Cost of a sample of the exact backend with --augment-device gpu, beside cpu: CPU time, and bytes
to the GPU.

python -m benchmarks.bench_windows [--images 256] [-o benchmarks/results/cpu-windows.csv]

With `gpu` the host decodes the windows and copies them into one buffer; with `cpu` it does all, up
to the finished images. Both are measured on the CPU in one process, in turn, in CPU time; the
kernels are not run (docs/kernels.md has an estimate of their time). Writes a row for each recipe,
and docs/augmentation.md has them as a table (`python -m benchmarks.tables`).
"""

import itertools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.loaders.images import MEAN, STD, write_images
from benchmarks.loaders.process import measure
from benchmarks.measuring import harness
from benchmarks.measuring.harness import Row
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


def compare(name: str, spec: PlanSpec, index: Index, images: int) -> Row:
    """Measure both forms in alternating rounds; return and print a row."""
    whole = endless(make_loader(index, spec, uses_kernels=False))
    windows = decode(index, spec)
    samples = [(batch.ordinals for batch in whole), (planned.ordinals for _, planned in windows)]
    for each in samples:
        next(each)
    rounds = [[measure((each, []), images) for each in samples] for _ in range(ROUNDS)]
    cpu, gpu = (statistics.median(times) for times in zip(*rounds, strict=True))
    sent = statistics.mean(bytes_sent(*next(windows)) for _ in range(4)) / 1e3
    finished = 3 * spec.input_size**2 * 4 / 1e3
    row: Row = {"recipe": name, "cpu_ms": f"{cpu:.2f}", "gpu_ms": f"{gpu:.2f}"}
    row |= {"ratio": f"{gpu / cpu:.2f}", "cpu_kb": f"{finished:.0f}", "gpu_kb": f"{sent:.0f}"}
    print(" ".join(f"{name}: {value}" for name, value in row.items()), flush=True)
    return row


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--images", type=int, default=256, help="samples of each measurement")
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-windows.csv")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 32, 16)
        index = build_index(Path(folder), "train")
        rows = [compare(name, spec, index, args.images) for name, spec in SPECS.items()]
    stamp = harness.environment(torch.device("cpu"))
    harness.write_rows(args.output, [{**stamp, **row} for row in rows], [*stamp, *rows[0]])


if __name__ == "__main__":
    main()
