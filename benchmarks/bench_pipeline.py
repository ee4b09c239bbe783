"""Our loader against timm's on the CPU: the same files, recipe and workers, in turns within one run.

python -m benchmarks.bench_pipeline [-o results.csv] [--images 768] [--workers 2] [--size 224]

CPU ms an image counts all threads and processes; images/s swings with other load. Last column: timm's CPU ms over the row's.
"""

import argparse
import csv
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from timm.data import create_dataset, create_loader

from benchmarks import harness
from fastdeit.data.index import Index, build_index
from fastdeit.data.loader import TrainLoader
from fastdeit.plan import Plan, PlanSpec

BATCH, ROUNDS = 64, 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAGES: dict[str, tuple[dict, dict]] = {  # what our spec and timm's recipe leave out
    "+ resize, flip, normalise": ({"ra_layers": 0, "reprob": 0.0}, {"auto_augment": None, "re_prob": 0.0}),
    "+ RandAugment": ({"reprob": 0.0}, {"re_prob": 0.0}),
    "+ RandomErasing = all": ({}, {}),
}
Started = tuple[Iterator[object], list[int]]  # batches, and the process ids of the workers
Loader = Callable[[], Started]


def write_images(root: Path, count: int, links: int) -> None:
    """`count` 500 x 375 JPEG files (1/f noise) in root/train/{0,1}, each under `links` names: timm's epoch must not end."""
    rng, decay = np.random.default_rng(0), 1 / np.hypot(*np.meshgrid(*map(np.fft.fftfreq, (500, 375)))).clip(2e-3)
    for i in range(count):
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, 375, 500))) * decay).real
        pixels = (noise - noise.min()) / np.ptp(noise) * 255 + rng.normal(scale=4, size=noise.shape)
        target = root / f"train/{i % 2}/{i:04d}.jpg"
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
    spent, passed = cpu_seconds(workers) - cpu, time.perf_counter() - wall
    return 1e3 * spent / (batches * BATCH), batches * BATCH / passed


def ours(index: Index, size: int, workers: int, **spec: object) -> Loader:
    def start() -> Started:
        plan = Plan(PlanSpec(input_size=size, repeats=1, **spec), index.sizes)  # type: ignore[arg-type]
        loader = TrainLoader(index, plan, batch_size=BATCH, micro_batch=BATCH, mean=MEAN, std=STD, num_threads=workers)
        return (batch for epoch in range(2**20) for batch in loader.epoch(epoch)), []

    return start


def timms(root: Path, size: int, workers: int, **recipe: object) -> Loader:
    def start() -> Started:
        options = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel", "color_jitter": None, **recipe}
        options |= {"interpolation": "bicubic", "mean": MEAN, "std": STD, "num_workers": workers, "use_prefetcher": False}
        dataset = create_dataset("", root=str(root / "train"))
        batches = iter(create_loader(dataset, (3, size, size), BATCH, is_training=True, **options))
        return batches, [worker.pid for worker in batches._workers]

    return start


def decoding(index: Index, workers: int) -> Loader:
    plan = Plan(PlanSpec(repeats=1), index.sizes)

    def source(i: int) -> tuple[list[np.ndarray], np.ndarray]:
        return index.path_bytes((draws := plan.draw(i, np.arange(BATCH))).image), draws.crop

    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None)
    def graph() -> object:
        paths, crop = fn.external_source(source, num_outputs=2, dtype=[types.UINT8, types.INT32], ndim=1)
        return fn.decoders.image_slice(fn.io.file.read(paths), start=crop[0:2], shape=crop[2:4], axis_names="HW")

    return lambda: (iter(graph().run, None), [])


def compare(root: Path, images: int, workers: int, size: int) -> list[dict[str, str]]:
    """One row for each stage and loader; rounds alternate between the loaders."""
    index, rows = build_index(root, "train"), []
    contests: dict[str, dict[str, Loader]] = {"read, decode the crop": {"fastdeit": decoding(index, workers)}}
    for stage, (spec, recipe) in STAGES.items():
        contests[stage] = {"fastdeit": ours(index, size, workers, **spec), "timm": timms(root, size, workers, **recipe)}
    for stage, loaders in contests.items():
        rounds = [{name: measure(start, images // BATCH) for name, start in loaders.items()} for _ in range(ROUNDS)]
        for name in loaders:
            cpu_ms, speed = (statistics.median(one[name][k] for one in rounds) for k in range(2))
            ratio = f"{statistics.median(one['timm'][0] / one[name][0] for one in rounds):.2f}" if "timm" in loaders else ""
            values = (stage, name, f"{cpu_ms:.3f}", f"{speed:.0f}", ratio)
            rows.append(dict(zip(("stage", "impl", "cpu_ms", "images_per_s", "ratio"), values, strict=True)))
    return rows


def append(output: Path, rows: list[dict[str, str]], **conditions: float) -> None:
    names = [line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    stamp = {**harness.environment(torch.device("cpu")), "timm": version("timm"), "pillow": version("pillow")}
    stamp |= {"cpu": f"{names[0]} x{len(names)}", **conditions}
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*stamp, *rows[0]])
        if not file.tell():
            writer.writeheader()
        writer.writerows({**stamp, **row} for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-pipeline.csv")
    for flag, default in (("--images", 768), ("--workers", 2), ("--size", 224)):
        parser.add_argument(flag, type=int, default=default)
    arguments = parser.parse_args()
    multiprocessing.set_start_method("forkserver")  # timm's workers, forked beside DALI's threads, can lock up
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 128, links=-(-2 * arguments.images // 128))
        rows = compare(Path(folder), arguments.images, arguments.workers, arguments.size)
    for row in rows:
        print("{stage:26} {impl:9} {cpu_ms} CPU ms/image {images_per_s:>5} images/s {ratio}".format(**row))
    append(arguments.output, rows, size=arguments.size, batch=BATCH, workers=arguments.workers)


if __name__ == "__main__":
    main()
