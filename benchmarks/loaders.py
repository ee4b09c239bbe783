"""The loaders that bench_pipeline and bench_memory compare: ours, timm's and torchvision's, on the
same files and recipe.

Each builder returns a function that starts the loader and returns an endless iterator of batches
and the ids of its worker processes.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.index import Index
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHARDS = 4
Started = tuple[Iterator[object], list[int]]
Start = Callable[[], Started]


def write_images(root: Path, count: int, links: int) -> None:
    """Write `count` 500 x 375 JPEG files (1/f noise) to root/train/{0,1}, each under `links` names.

    The names make timm's epoch long enough for a measurement.
    """
    rng = np.random.default_rng(0)
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(500), np.fft.fftfreq(375)))
    decay = 1 / frequencies.clip(2e-3)
    for i in range(count):
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, 375, 500))) * decay).real
        pixels = (noise - noise.min()) / np.ptp(noise) * 255 + rng.normal(scale=4, size=noise.shape)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        target = root / f"train/{i % 2}/{i:04d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target, quality=90)
        for link in range(1, links):
            target.with_stem(f"{target.stem}-{link}").hardlink_to(target)


def write_shards(root: Path, images: Path) -> str:
    """Write the images of a folder as WebDataset shards to `root`; return their brace pattern."""
    root.mkdir(parents=True, exist_ok=True)
    files = sorted(images.glob("train/*/*.jpg"))
    for shard in range(SHARDS):
        with tarfile.open(root / f"train-{shard}.tar", "w") as tar:
            for number, file in enumerate(files[shard::SHARDS]):
                name = f"{shard}-{number:05d}"
                _add_member(tar, f"{name}.jpg", file.read_bytes())
                _add_member(tar, f"{name}.cls", file.parent.name.encode())
    return f"train-{{0..{SHARDS - 1}}}.tar"


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def ours(index: Index, size: int, workers: int, backend: str, **spec: object) -> Start:
    """Return a start of fastdeit's training loader; spec: changed fields of `PlanSpec`."""

    def start() -> Started:
        plan = Plan(PlanSpec(input_size=size, repeats=1, **spec), index.sizes)  # type: ignore[arg-type]
        options = PipelineOptions(MEAN, STD, num_threads=workers, backend=backend)
        loader = TrainLoader(index, plan, options, batch_size=BATCH, micro_batch=BATCH)
        return (batch for epoch in range(2**20) for batch in loader.epoch(epoch)), []

    return start


def timms(dataset: dict[str, object], size: int, workers: int, **recipe: object) -> Start:
    """Return a start of timm's loader; dataset: arguments of create_dataset."""

    def start() -> Started:
        options = {
            "auto_augment": "rand-m9-mstd0.5-inc1",
            "re_prob": 0.25,
            "re_mode": "pixel",
            "color_jitter": None,
            **recipe,
        }
        options |= {
            "interpolation": "bicubic",
            "mean": MEAN,
            "std": STD,
            "num_workers": workers,
            "use_prefetcher": False,
        }
        made = create_dataset(**dataset, is_training=True, batch_size=BATCH)
        return _started(create_loader(made, (3, size, size), BATCH, is_training=True, **options))

    return start


def torchvisions(
    root: Path, size: int, workers: int, operations: int = 2, erase: float = 0.25
) -> Start:
    """Return a start of torchvision's ImageFolder (decoding by Pillow) with its transforms v2.

    Its RandAugment applies every chosen operation, without a probability.
    """

    def start() -> Started:
        bicubic = InterpolationMode.BICUBIC
        augment = [v2.RandAugment(operations, 9, interpolation=bicubic)] if operations else []
        steps = [
            v2.RandomResizedCrop(size, interpolation=bicubic, antialias=True),
            v2.RandomHorizontalFlip(),
            *augment,
        ]
        steps += [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(erase),
        ]
        made = ImageFolder(str(root / "train"), v2.Compose(steps))
        return _started(DataLoader(made, BATCH, shuffle=True, num_workers=workers))

    return start


def _started(loader: DataLoader) -> Started:
    batches = iter(loader)
    return batches, [worker.pid for worker in batches._workers]  # type: ignore[attr-defined]


def reading(index: Index, workers: int, decode: bool) -> Start:
    """Return a start of DALI that reads whole files, and with `decode` decodes the planned crop."""
    plan = Plan(PlanSpec(repeats=1), index.sizes)

    def source(i: int) -> tuple[object, np.ndarray]:
        draws = plan.draw(i, np.arange(BATCH))
        return index.encoded(draws.image_index), draws.crop

    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None)
    def graph() -> object:
        first, crop = fn.external_source(
            source, num_outputs=2, dtype=[types.UINT8, types.INT32], ndim=1
        )
        encoded = fn.io.file.read(first, dont_use_mmap=True) if index.feeds_paths else first
        if not decode:
            return encoded, crop
        return fn.decoders.image_slice(encoded, start=crop[0:2], shape=crop[2:4], axis_names="HW")

    return lambda: (iter(graph().run, None), [])
