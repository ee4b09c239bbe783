"""CPU ms an image and images/s of our loader, against timm's and torchvision's on the CPU.

python -m benchmarks.bench_pipeline [-o results.csv] [--images 768] [--workers 2] [--sizes 224 384]

All use the same files, recipe and number of workers, in one run. CPU ms counts all threads and
processes; images/s varies with the load of the machine. `ratio` is timm's CPU ms divided by the
row's, the median of rounds in which the loaders alternate. Stages are cumulative: the cost of a
stage is the difference to the one before.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.loaders import (
    BATCH,
    Start,
    ours,
    reading,
    timms,
    torchvisions,
    write_images,
    write_shards,
)
from fastdeit.data.graphs.options import BACKENDS
from fastdeit.data.index import build_index

ROUNDS = 5
# stage → changes of our spec, of timm's recipe and of torchvision's, which switch later stages off
STAGES: dict[str, tuple[dict, dict, dict]] = {
    "+ resize, flip, normalise": (
        {"ra_layers": 0, "reprob": 0.0},
        {"auto_augment": None, "re_prob": 0.0},
        {"operations": 0, "erase": 0.0},
    ),
    "+ RandAugment": ({"reprob": 0.0}, {"re_prob": 0.0}, {"erase": 0.0}),
    "+ RandomErasing = all": ({}, {}, {}),
}
SHOWN = (
    "{data:7}{size:4} {stage:26} {impl:16} {cpu_ms} CPU ms/image {images_per_s:>5} images/s {ratio}"
)
Row = dict[str, str | float]


def cpu_seconds(workers: list[int]) -> float:
    """Return the CPU seconds of this process and of `workers`, user and system."""
    ticks = 0
    for pid in workers:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def measure(start: Start, batches: int) -> tuple[float, float]:
    """Measure CPU ms an image and images/s over `batches`, after four that fill the queues."""
    iterator, workers = start()
    for _ in range(4):
        next(iterator)
    wall, cpu = time.perf_counter(), cpu_seconds(workers)
    for _ in range(batches):
        next(iterator)
    spent, passed = cpu_seconds(workers) - cpu, time.perf_counter() - wall
    return 1e3 * spent / (batches * BATCH), batches * BATCH / passed


def measure_all(loaders: dict[str, Start], images: int, **where: str | float) -> list[Row]:
    """Measure the loaders in alternating rounds; return and print a row for each."""
    cpu_ms: dict[str, list[float]] = {name: [] for name in loaders}
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(ROUNDS):
        for name, start in loaders.items():
            milliseconds, speed = measure(start, images // BATCH)
            cpu_ms[name].append(milliseconds)
            speeds[name].append(speed)
    rows: list[Row] = []
    for name in loaders:
        row = {**where, "impl": name, "cpu_ms": f"{statistics.median(cpu_ms[name]):.3f}"}
        row |= {"images_per_s": f"{statistics.median(speeds[name]):.0f}", "ratio": ""}
        if "timm" in loaders:
            ratios = [timm / ms for timm, ms in zip(cpu_ms["timm"], cpu_ms[name], strict=True)]
            row["ratio"] = f"{statistics.median(ratios):.2f}"
        rows.append(row)
        print(SHOWN.format(**row))
    return rows


def compare(folder: Path, shards: Path, pattern: str, args: argparse.Namespace) -> list[Row]:
    """Measure every stage for the folder at the first size, and the whole path for the tars and for
    the other sizes."""
    index = build_index(folder, "train")
    workers = args.workers
    images = args.images
    first = args.sizes[0]
    in_folder: dict[str, object] = {"name": "", "root": str(folder / "train")}
    rows = []
    for stage, decode in (("read", False), ("+ decode the crop", True)):
        loaders = {"fastdeit": reading(index, workers, decode)}
        rows += measure_all(loaders, images, data="folder", size=first, stage=stage)
    for size in args.sizes:
        for stage, (spec, recipe, transforms) in STAGES.items():
            if size != first and spec:
                continue
            loaders = {}
            for backend in BACKENDS:
                loaders[f"fastdeit {backend}"] = ours(index, size, workers, backend, **spec)
            loaders["timm"] = timms(in_folder, size, workers, **recipe)
            loaders["torchvision v2"] = torchvisions(folder, size, workers, **transforms)
            rows += measure_all(loaders, images, data="folder", size=size, stage=stage)
    tars = build_index(shards, pattern)
    split = f"{pattern}|{len(tars)}"
    in_tars: dict[str, object] = {"name": "wds/", "root": str(shards), "split": split}
    loaders = {f"fastdeit {backend}": ours(tars, first, workers, backend) for backend in BACKENDS}
    loaders["timm"] = timms(in_tars, first, workers)
    stage = "+ RandomErasing = all"
    return rows + measure_all(loaders, images, data="tars", size=first, stage=stage)


def append(output: Path, rows: list[Row], **conditions: float) -> None:
    """Append rows to the result file with versions, the CPU and further conditions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(": ")[1] for line in lines if "model name" in line]
    stamp = {
        **harness.environment(torch.device("cpu")),
        "timm": version("timm"),
        "pillow": version("pillow"),
    }
    stamp |= {"cpu": f"{names[0]} x{len(names)}", **conditions}
    harness.write_rows(output, [{**stamp, **row} for row in rows], [*stamp, *rows[0]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-pipeline.csv")
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384])
    args = parser.parse_args()
    # timm's workers can deadlock when they are forked while DALI's threads run
    multiprocessing.set_start_method("forkserver")
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "folder"
        shards = Path(folder) / "tars"
        write_images(images, 128, links=-(-2 * args.images // 128))
        rows = compare(images, shards, write_shards(shards, images), args)
    append(args.output, rows, batch=BATCH, workers=args.workers)


if __name__ == "__main__":
    main()
