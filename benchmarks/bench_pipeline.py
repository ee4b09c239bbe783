"""Our data path against timm's loader and torchvision's transforms on the CPU: same files, recipe,
workers, in one run.

python -m benchmarks.bench_pipeline [-o results.csv] [--images 768] [--workers 2] [--sizes 224 384]

CPU ms an image counts all threads and processes; images/s swings with other load. `ratio`: timm's
CPU ms over the row's, the median of rounds in which the loaders alternate. Stages are cumulative: a
stage alone is the difference to the one before.
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
from fastdeit.data.index import build_index
from fastdeit.data.pipeline import BACKENDS

ROUNDS = 5
STAGES: dict[
    str, tuple[dict, dict, dict]
] = {  # what our spec, timm's recipe and torchvision's leave out
    "+ resize, flip, normalise": (
        {"ra_layers": 0, "reprob": 0.0},
        {"auto_augment": None, "re_prob": 0.0},
        {"operations": 0, "erase": 0.0},
    ),
    "+ RandAugment": ({"reprob": 0.0}, {"re_prob": 0.0}, {"erase": 0.0}),
    "+ RandomErasing = all": ({}, {}, {}),
}
Row = dict[str, str | float]


def cpu_seconds(workers: list[int]) -> float:
    """Of this process and of `workers`, user and system."""
    ticks = [
        Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13] for pid in workers
    ]
    return time.process_time() + sum(int(tick) for pair in ticks for tick in pair) / os.sysconf(
        "SC_CLK_TCK"
    )


def measure(start: Start, batches: int) -> tuple[float, float]:
    """CPU ms an image and images/s over `batches`, after four that fill the queues."""
    iterator, workers = start()
    for _ in range(4):
        next(iterator)
    wall, cpu = time.perf_counter(), cpu_seconds(workers)
    for _ in range(batches):
        next(iterator)
    spent, passed = cpu_seconds(workers) - cpu, time.perf_counter() - wall
    return 1e3 * spent / (batches * BATCH), batches * BATCH / passed


def contest(loaders: dict[str, Start], images: int, **where: str | float) -> list[Row]:
    """A row for each loader; rounds alternate between them."""
    rounds = [
        {name: measure(start, images // BATCH) for name, start in loaders.items()}
        for _ in range(ROUNDS)
    ]
    rows: list[Row] = []
    for name in loaders:
        cpu_ms, speed = (statistics.median(one[name][k] for one in rounds) for k in range(2))
        ratio = (
            f"{statistics.median(one['timm'][0] / one[name][0] for one in rounds):.2f}"
            if "timm" in loaders
            else ""
        )
        rows.append(
            {
                **where,
                "impl": name,
                "cpu_ms": f"{cpu_ms:.3f}",
                "images_per_s": f"{speed:.0f}",
                "ratio": ratio,
            }
        )
        print(
            "{data:7}{size:4} {stage:26} {impl:16} {cpu_ms} CPU ms/image {images_per_s:>5} images/s {ratio}".format(
                **rows[-1]
            )
        )
    return rows


def compare(folder: Path, shards: Path, pattern: str, arguments: argparse.Namespace) -> list[Row]:
    """Every stage for the folder at the first size; the whole path for the tars and for the other
    sizes."""
    index, workers, images, first = (
        build_index(folder, "train"),
        arguments.workers,
        arguments.images,
        arguments.sizes[0],
    )
    in_folder: dict[str, object] = {"name": "", "root": str(folder / "train")}
    rows = []
    for stage, decode in (("read", False), ("+ decode the crop", True)):
        rows += contest(
            {"fastdeit": reading(index, workers, decode)},
            images,
            data="folder",
            size=first,
            stage=stage,
        )
    for size in arguments.sizes:
        for stage, (spec, recipe, transforms) in STAGES.items():
            if size != first and spec:
                continue
            loaders = {
                f"fastdeit {backend}": ours(index, size, workers, backend, **spec)
                for backend in BACKENDS
            }
            loaders |= {"timm": timms(in_folder, size, workers, **recipe)}
            loaders |= {"torchvision v2": torchvisions(folder, size, workers, **transforms)}
            rows += contest(loaders, images, data="folder", size=size, stage=stage)
    tars = build_index(shards, pattern)
    in_tars: dict[str, object] = {
        "name": "wds/",
        "root": str(shards),
        "split": f"{pattern}|{len(tars)}",
    }
    loaders = {f"fastdeit {backend}": ours(tars, first, workers, backend) for backend in BACKENDS}
    loaders |= {"timm": timms(in_tars, first, workers)}
    return rows + contest(loaders, images, data="tars", size=first, stage="+ RandomErasing = all")


def append(output: Path, rows: list[Row], **conditions: float) -> None:
    names = [
        line.split(": ")[1]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
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
    arguments = parser.parse_args()
    multiprocessing.set_start_method(
        "forkserver"
    )  # timm's workers, forked beside DALI's threads, can lock up
    with tempfile.TemporaryDirectory() as folder:
        images, shards = Path(folder) / "folder", Path(folder) / "tars"
        write_images(images, 128, links=-(-2 * arguments.images // 128))
        rows = compare(images, shards, write_shards(shards, images), arguments)
    append(arguments.output, rows, batch=BATCH, workers=arguments.workers)


if __name__ == "__main__":
    main()
