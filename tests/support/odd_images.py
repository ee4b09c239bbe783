"""A data set of images of every kind and of odd sizes, for what must hold for any image."""

from pathlib import Path

import numpy as np
from PIL import Image

from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index

SHAPES = [(1, 1), (1, 40), (37, 1), (2, 3), (5, 310), (290, 4), (9, 130), (8, 8), (16, 17)]
"""Heights and widths at the edges of what there is; the others are drawn."""
KINDS = ("jpg", "png", "grey", "cmyk", "alpha", "progressive", "palette", "webp")


def write_odd_images(root: Path, count: int, most: int = 90) -> Index:
    """Write `count` images of 2 classes, of sides up to `most` but for `SHAPES`; return their
    index."""
    rng = np.random.default_rng(5)
    for number in range(count):
        drawn = rng.integers(1, most, 2)
        height, width = SHAPES[number] if number < len(SHAPES) else drawn.tolist()
        folder = root / "train" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), np.uint8)
        smooth = np.asarray(
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        )
        noisy = np.clip(smooth.astype(int) + rng.integers(-12, 13, smooth.shape), 0, 255)
        _save(Image.fromarray(noisy.astype(np.uint8)), folder / f"{number:04d}", KINDS[number % 8])
    return build_index(root, "train")


def _save(image: Image.Image, path: Path, kind: str) -> None:
    if kind == "jpg":
        image.save(path.with_suffix(".jpg"), quality=90)
    elif kind == "progressive":
        image.save(path.with_suffix(".jpg"), progressive=True, subsampling=0)
    elif kind in ("grey", "cmyk"):
        image.convert({"grey": "L", "cmyk": "CMYK"}[kind]).save(path.with_suffix(".jpg"))
    elif kind == "webp":
        image.save(path.with_suffix(".webp"), lossless=True)
    elif kind == "palette":
        image.quantize(64).save(path.with_suffix(".png"))
    else:
        image.convert("RGBA" if kind == "alpha" else "RGB").save(path.with_suffix(".png"))
