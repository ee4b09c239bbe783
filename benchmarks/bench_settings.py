"""Speed of our loader by backend, decoder, threads and prefetch depth: images/s of whole batches
and CPU ms for an image.

python -m benchmarks.bench_settings [-o results.csv] [--threads 16]

On a GPU every backend and decoder that it has is measured, else those of the CPU. The defaults in
fastdeit/config/schema/ follow from these figures.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.loaders.images import MEAN, STD, write_images
from benchmarks.measuring import harness
from fastdeit.data.graphs.options import DECODERS, PipelineOptions
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

CORES = len(os.sched_getaffinity(0))
THREADS = tuple(1 << power for power in range(CORES.bit_length()))
PREFETCH = (1, 2, 4)


def settings(device: str, threads: Sequence[int], prefetch: Sequence[int]) -> list[PipelineOptions]:
    """Return every combination that the device supports."""
    kinds = [("exact", "cpu"), ("native", "cpu")]
    kinds += [("native", decoder) for decoder in DECODERS if decoder != "cpu" and device == "gpu"]
    return [
        PipelineOptions(
            MEAN,
            STD,
            device=device,
            num_threads=count,
            prefetch=depth,
            backend=backend,
            decoder=decoder,
        )
        for (backend, decoder), count, depth in itertools.product(kinds, threads, prefetch)
    ]


def measure(index: Index, options: PipelineOptions, batch: int, images: int) -> dict[str, str]:
    """Return images/s and CPU ms for an image over `images`, after four batches."""
    loader = TrainLoader(
        index, Plan(PlanSpec(repeats=1), index.sizes), options, batch_size=batch, micro_batch=batch
    )
    batches = (batch for epoch in itertools.count() for batch in loader.epoch(epoch))
    for _ in range(4):
        last = next(batches)
    count = -(-images // batch)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        last = next(batches)
    last.images.flatten()[0].item()  # waits for the device
    passed, spent = time.perf_counter() - wall, time.process_time() - cpu
    loader.close()
    return {
        "images_per_s": f"{count * batch / passed:.0f}",
        "cpu_ms": f"{1e3 * spent / (count * batch):.3f}",
    }


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument(
        "-o", "--output", type=Path, default=harness.RESULTS / "loader-settings.csv"
    )
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=THREADS,
        help="default: one to all cores in doublings",
    )
    parser.add_argument("--prefetch", type=int, nargs="+", default=PREFETCH)
    args = parser.parse_args()
    device = "gpu" if torch.cuda.is_available() else "cpu"
    stamp = harness.environment(torch.device("cuda" if device == "gpu" else "cpu"))
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 128, links=8)
        index = build_index(Path(folder), "train")
        for options in settings(device, args.threads, args.prefetch):
            row = {"device": device, "backend": options.backend, "decoder": options.decoder}
            row |= {"threads": str(options.num_threads), "prefetch": str(options.prefetch)}
            row |= measure(index, options, 256 if device == "gpu" else 64, args.images)
            harness.write_rows(args.output, [{**stamp, **row}], [*stamp, *row])
            print(*(f"{name} {value}" for name, value in row.items()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
