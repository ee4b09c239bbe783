"""Ten seconds of training: the speed of the loader and of the step, and a test of the step."""

import dataclasses
import itertools
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastdeit.doctor.findings import Finding, Target, fail, good, warn
from fastdeit.doctor.images import COUNT, NoImagesError, locate_images, make_jpegs
from fastdeit.doctor.scratch import open_any_scratch

if TYPE_CHECKING:
    from fastdeit.data.loaders.batch import Batch
    from fastdeit.distributed.world import World

_LOADER_S = 3.0
_STEPS_S = 2.0
_LEAST_STEPS = 3
_MOST_STEPS = 30
_CLASSES = 16
_MADE = 32  # generated JPEG files, each of which is written under several names
_SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp", b"BM": ".bmp"}


class Speed(NamedTuple):
    """A rate, and a text on the conditions of the measurement."""

    images_per_s: float
    where: str


class Steps(NamedTuple):
    """The losses of steps on one batch, and the rate of all steps except the first."""

    losses: list[float]
    images_per_s: float


def try_training(target: Target) -> Finding:
    """Train a small DeiT at 224 px for ten seconds, after the imports."""
    folder = open_any_scratch(target) / "trial"
    what = write_images(target, folder)
    world = join_alone()
    return judge(*measure(folder, world), what, world.device.type)


def join_alone() -> "World":
    """Start a process group of this rank alone; return its world, with the rank's share of the
    cores and the one GPU that it sees."""
    import torch

    from fastdeit.distributed.environment import count_local_ranks, is_alone
    from fastdeit.distributed.world import init_distributed

    local_size = 1 if is_alone() else count_local_ranks()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    world = dataclasses.replace(init_distributed(), local_size=local_size)
    if world.device.type == "cpu":
        torch.set_num_threads(max(1, world.threads - 1))
    return world


def write_images(target: Target, folder: Path) -> str:
    """Write images of the data set, or generated ones, as class folders; return a text that names
    their origin."""
    images, what = _choose_images(target)
    for number, data in enumerate(itertools.islice(itertools.cycle(images), COUNT)):
        suffix = _SUFFIXES.get(data[:2], ".ppm")
        path = folder / "train" / f"{number % _CLASSES:02d}" / f"{number:04d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return what


def _choose_images(target: Target) -> tuple[list[bytes], str]:
    from fastdeit.data.formats.check import read_place

    if target.data_path:
        try:
            places = locate_images(target.data_path, target.train_split)
            return [read_place(place) for place in places], "images of the data set"
        except NoImagesError:
            pass
    return make_jpegs(_MADE), "generated JPEG files, 500 x 375"


def measure(folder: Path, world: "World") -> tuple[Speed, Steps, Steps]:
    """Return the speed of the loader, and the same steps twice, on the loader's first batch."""
    from fastdeit.doctor.trial.build import (
        build_loader,
        build_small_trainer,
        index_images,
        make_config,
    )

    config = make_config(folder, world)
    index = index_images(config)
    loader = build_loader(config, world, index)
    first, speed = _measure_loader(loader, world)
    loader.close()
    runs: list[Steps] = []
    for _ in range(2):
        trainer = build_small_trainer(config, world, index)
        runs.append(_measure_steps(trainer, first, len(runs[0].losses) if runs else 0))
        trainer.engine.destroy()
    return speed, runs[0], runs[1]


def _measure_loader(loader: Any, world: "World") -> tuple["Batch", Speed]:
    """Return the first batch of a loader, and the speed of the next ones."""
    batches: Iterator[Batch] = (b for epoch in itertools.count() for b in loader.epoch(epoch))
    first = next(batches)
    next(batches)
    began = time.monotonic()
    images = 0
    while time.monotonic() - began < _LOADER_S:
        images += len(next(batches).labels)
    _wait(world.device)
    rate = images / (time.monotonic() - began)
    unit = "GPU" if world.device.type == "cuda" else "process"
    return first, Speed(
        rate, f"{loader.options.describe()}, cores a {unit}: {loader.options.num_threads}"
    )


def _measure_steps(trainer: Any, batch: "Batch", count: int) -> Steps:
    """Train steps on one batch: `count`, or, if that is 0, for `_STEPS_S` seconds."""
    device = trainer.engine.device
    rows: list[Any] = []
    began = 0.0
    while len(rows) < (count or _MOST_STEPS):
        rows.append(trainer.train_step([batch]).clone())
        if len(rows) == 1:  # the first step compiles and allocates
            _wait(device)
            began = time.monotonic()
        enough = len(rows) >= _LEAST_STEPS and time.monotonic() - began >= _STEPS_S
        if not count and enough:
            break
    _wait(device)
    seconds = time.monotonic() - began
    return Steps([float(row[0]) for row in rows], len(batch.labels) * (len(rows) - 1) / seconds)


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def judge(loader: Speed, steps: Steps, again: Steps, what: str, device: str) -> Finding:
    """Return the finding of a trial; what: the origin of the images; device: cpu or cuda."""
    first, last = steps.losses[0], steps.losses[-1]
    limit = "loader" if loader.images_per_s < steps.images_per_s else "step"
    found = (
        f"loader {loader.images_per_s:,.0f} images/s ({what}; {loader.where}), step "
        f"{steps.images_per_s:,.0f} images/s on {device}: the {limit} limits; "
        f"loss {first:.3f} to {last:.3f} in {len(steps.losses)} steps"
    )
    if not all(map(math.isfinite, steps.losses)):
        return fail(
            f"{found}: not finite", "use --kernels reference; look at Triton's kernels above"
        )
    if not last < first:
        return fail(f"{found}: it does not fall", "use --kernels reference, and report it")
    if steps.losses != again.losses:
        return warn(
            f"{found}; the same steps again gave other losses",
            "report it: resume and replay differ",
        )
    found += ", the same twice"
    if limit == "loader" and device == "cuda":
        cure = "use more cores, fastdeit pack or --augment-device gpu (docs/throughput.md)"
        return warn(found, cure)
    return good(found)
