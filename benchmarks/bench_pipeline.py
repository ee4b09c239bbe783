"""Our loader against timm's on the CPU: the same files, recipe and workers, in turns within one run.

python benchmarks/bench_pipeline.py [-o results.csv] [--images 512] [--workers 2] [--size 224]

The primary figure is CPU milliseconds an image, over all threads and processes: images/s swings with other load on the
machine. The files are synthetic JPEGs of 500 x 375 pixels (1/f noise, quality 90, 4:2:0), in the page cache.
"""

import argparse
import csv
import datetime
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from rich.console import Console
from rich.table import Table
from timm.data import create_dataset, create_loader

from fastdeit.data.index import Index, build_index
from fastdeit.data.loader import TrainLoader
from fastdeit.plan import Plan, PlanSpec

BATCH = 64
ROUNDS = 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAGES: dict[str, tuple[dict, dict]] = {
    "decode, crop, resize, flip, normalise": ({"ra_layers": 0, "reprob": 0.0}, {"auto_augment": None, "re_prob": 0.0}),
    "... + RandAugment": ({"reprob": 0.0}, {"re_prob": 0.0}),
    "... + RandomErasing (all)": ({}, {}),
}
Loader = Callable[[], tuple[Iterator[object], list[int]]]
"""Starts a loader: its batches, and the process ids of its workers."""


def write_images(root: Path, count: int, links: int) -> None:
    """`count` JPEG files of about 64 KB in root/train/{0,1}, each under `links` names: timm's epoch must not end."""
    rng = np.random.default_rng(0)
    decay = 1 / np.hypot(np.fft.fftfreq(375)[:, None], np.fft.fftfreq(500)[None]).clip(2e-3)
    for i in range(count):
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, 375, 500))) * decay).real
        pixels = (noise - noise.min()) / np.ptp(noise) * 255 + rng.normal(scale=4, size=noise.shape)
        target = root / "train" / str(i % 2) / f"{i:04d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(target, quality=90)
        for link in range(1, links):
            target.with_stem(f"{target.stem}-{link}").hardlink_to(target)


def cpu_seconds(workers: list[int]) -> float:
    """Of this process and of `workers`, user and system."""
    ticks = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13] for pid in workers]
    return time.process_time() + sum(int(tick) for pair in ticks for tick in pair) / os.sysconf("SC_CLK_TCK")


def measure(start: Loader, batches: int) -> tuple[float, float]:
    """CPU ms an image and images/s over `batches`, after four that fill the queues."""
    iterator, workers = start()
    for _ in range(4):
        next(iterator)
    wall, cpu = time.perf_counter(), cpu_seconds(workers)
    for _ in range(batches):
        next(iterator)
    images = batches * BATCH
    return 1e3 * (cpu_seconds(workers) - cpu) / images, images / (time.perf_counter() - wall)


def ours(index: Index, size: int, workers: int, **spec: object) -> Loader:
    def start() -> tuple[Iterator[object], list[int]]:
        plan = Plan(PlanSpec(input_size=size, repeats=1, **spec), index.sizes)  # type: ignore[arg-type]
        loader = TrainLoader(index, plan, batch_size=BATCH, micro_batch=BATCH, mean=MEAN, std=STD, num_threads=workers)
        return (batch for epoch in range(2**20) for batch in loader.epoch(epoch)), []

    return start


def timms(root: Path, size: int, workers: int, **recipe: object) -> Loader:
    def start() -> tuple[Iterator[object], list[int]]:
        options = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel", "color_jitter": None, **recipe}
        options |= {"interpolation": "bicubic", "mean": MEAN, "std": STD, "num_workers": workers, "use_prefetcher": False}
        dataset = create_dataset("", root=str(root / "train"))
        batches = iter(create_loader(dataset, (3, size, size), BATCH, is_training=True, **options))
        return batches, [worker.pid for worker in batches._workers]

    return start


def decoding(index: Index, workers: int) -> Loader:
    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None)
    def graph(plan: Plan):  # type: ignore[no-untyped-def]
        def source(i: int):  # type: ignore[no-untyped-def]
            draws = plan.draw(i, np.arange(BATCH))
            return index.path_bytes(draws.image), draws.crop

        paths, crop = fn.external_source(source, num_outputs=2, dtype=[types.UINT8, types.INT32], ndim=1)
        window = {"start": crop[0:2], "shape": crop[2:4], "axis_names": "HW"}
        return fn.decoders.image_slice(fn.io.file.read(paths), **window)

    def start() -> tuple[Iterator[object], list[int]]:
        pipeline = graph(Plan(PlanSpec(repeats=1), index.sizes))
        pipeline.build()
        return iter(pipeline.run, None), []

    return start


def compare(root: Path, images: int, workers: int, size: int) -> list[dict[str, object]]:
    """One row for each stage and loader; rounds alternate between the loaders."""
    index = build_index(root, "train")
    contests: dict[str, dict[str, Loader]] = {"read, decode the crop": {"fastdeit": decoding(index, workers)}}
    for stage, (spec, recipe) in STAGES.items():
        contests[stage] = {"fastdeit": ours(index, size, workers, **spec), "timm": timms(root, size, workers, **recipe)}
    rows = []
    for stage, loaders in contests.items():
        rounds = [{name: measure(start, images // BATCH) for name, start in loaders.items()} for _ in range(ROUNDS)]
        for name in loaders:
            cpu_ms, speed = (statistics.median(one[name][k] for one in rounds) for k in range(2))
            rows.append({"stage": stage, "impl": name, "cpu_ms": round(cpu_ms, 3), "images_per_s": round(speed)})
    return rows


def show(rows: list[dict[str, object]]) -> None:
    table = Table("stage", "loader", "CPU ms/image", "images/s", "timm's CPU ms / ours")
    timm_ms = {row["stage"]: row["cpu_ms"] for row in rows if row["impl"] == "timm"}
    for row in rows:
        ratio = f"{timm_ms[row['stage']] / row['cpu_ms']:.2f}" if row["impl"] != "timm" and row["stage"] in timm_ms else ""  # type: ignore[operator]
        table.add_row(*(str(row[key]) for key in ("stage", "impl", "cpu_ms", "images_per_s")), ratio)
    Console().print(table)


def append(output: Path, rows: list[dict[str, object]], **conditions: object) -> None:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    cpu = next((x.split(":")[1].strip() for x in open("/proc/cpuinfo") if x.startswith("model name")), platform.machine())
    stamp = {"date": datetime.date.today().isoformat(), "commit": commit, "cpu": f"{cpu} x{os.cpu_count()}", **conditions}
    stamp |= {"dali": version("nvidia-dali-cuda120"), "timm": version("timm"), "pillow": version("pillow")}
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*stamp, *rows[0]])
        if not file.tell():
            writer.writeheader()
        writer.writerows({**stamp, **row} for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="our loader against timm's on the CPU")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/cpu-pipeline.csv"))
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 128, links=-(-2 * arguments.images // 128))
        rows = compare(Path(folder), arguments.images, arguments.workers, arguments.size)
    show(rows)
    append(arguments.output, rows, size=arguments.size, batch=BATCH, workers=arguments.workers)


if __name__ == "__main__":
    main()
