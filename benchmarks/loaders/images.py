"""The images that the benchmarks of the data path read, as a folder and as shards."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHARDS = 4
PATTERN = f"train-{{0..{SHARDS - 1}}}.tar"
"""The pattern of the shards' names."""


def write_images(root: Path, count: int, links: int, size: tuple[int, int] = (500, 375)) -> None:
    """Write `count` JPEG files (1/f noise) to root/train/{0,1}, each under `links` names.

    The names make an epoch long enough for a measurement. size: width and height in pixels.
    """
    rng = np.random.default_rng(0)
    width, height = size
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
    decay = 1 / frequencies.clip(2e-3)
    for i in range(count):
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, height, width))) * decay).real
        pixels = (noise - noise.min()) / np.ptp(noise) * 255 + rng.normal(scale=4, size=noise.shape)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        target = root / f"train/{i % 2}/{i:04d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target, quality=90)
        for link in range(1, links):
            target.with_stem(f"{target.stem}-{link}").hardlink_to(target)


def write_shards(root: Path, images: Path) -> None:
    """Write the images of a folder as WebDataset shards, whose names `PATTERN` has, to `root`."""
    root.mkdir(parents=True, exist_ok=True)
    files = sorted(images.glob("train/*/*.jpg"))
    for shard in range(SHARDS):
        with tarfile.open(root / f"train-{shard}.tar", "w") as tar:
            for number, file in enumerate(files[shard::SHARDS]):
                name = f"{shard}-{number:05d}"
                _add_member(tar, f"{name}.jpg", file.read_bytes())
                _add_member(tar, f"{name}.cls", file.parent.name.encode())


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
