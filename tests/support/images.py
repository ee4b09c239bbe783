"""Small image folder: one shape per class, at random places and in random colours."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("circle", "square", "stripe")


def write_shapes(root: Path, train: int = 8, val: int = 3, side: int = 40) -> Path:
    """Write root/{train,val}/CLASS/NN.{jpg,png}, `train` and `val` images a class; return root."""
    random = np.random.default_rng(7)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                suffix = "png" if number % 3 == 0 else "jpg"
                _draw(random, label, side).save(folder / f"{number:02}.{suffix}")
    return root


def write_pixels(root: Path, split: str, pixels: np.ndarray) -> None:
    """Write MNIST's two files of a split: uint8 (N, H, W), with the labels 0 and 1 in turn."""
    shape = np.array(pixels.shape, ">u4").tobytes()
    labels = (np.arange(len(pixels)) % 2).astype(np.uint8)
    images = b"\0\0\x08\x03" + shape + pixels.tobytes()
    (root / f"{split}-images-idx3-ubyte").write_bytes(images)
    (root / f"{split}-labels-idx1-ubyte").write_bytes(
        b"\0\0\x08\x01" + shape[:4] + labels.tobytes()
    )


def _draw(random: np.random.Generator, label: int, side: int) -> Image.Image:
    height, width = (int(n) for n in random.integers(side, side + 12, 2))
    image = Image.fromarray(random.integers(0, 90, (height, width, 3), dtype=np.uint8))
    y, x = (int(n) for n in random.integers(4, side // 2, 2))
    colour = tuple(int(n) for n in random.integers(120, 256, 3))
    box = (x, y, x + 16, y + (6 if label == 2 else 16))
    draw = ImageDraw.Draw(image)
    (draw.ellipse if label == 0 else draw.rectangle)(box, fill=colour)
    return image
