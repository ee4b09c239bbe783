"""The embedded data set: scikit-learn's handwritten digits as an image folder.

1,797 images of 8 x 8 pixels and 17 grey levels (UCI "Optical Recognition of Handwritten Digits",
its test part), written as 32 x 32 grayscale PNG files into ROOT/{train,val}/{0..9}/NNNN.png; NNNN
is the image's number in scikit-learn's order. Each class's last fifth, in that order, is held out:
the same split on every machine, without a random number.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32
VAL_SHARE = 5  # one image in this many is held out


def write_digits(root: Path) -> Path:
    """Write the data set to `root` unless it is there; return `root`.

    The folder is whole or absent, also when several processes write at once. Raises
    FileExistsError when `root` is a folder with other content.
    """
    root = Path(root)
    if _is_written(root):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        _write_images(partial)
        partial.chmod(0o755)  # mkdtemp's own mode excludes other users
        _move(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _is_written(root: Path) -> bool:
    return (root / "train").is_dir() and (root / "val").is_dir()


def _move(partial: Path, root: Path) -> None:
    try:
        os.rename(partial, root)
    except OSError as error:
        if not _is_written(root):  # otherwise another process was first
            raise FileExistsError(
                f"{root}: must be a new or an empty folder to hold the digits"
            ) from error


def _write_images(folder: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for digit in range(10):
        numbers = np.flatnonzero(digits.target == digit)
        held_out = len(numbers) // VAL_SHARE
        splits = {"train": numbers[:-held_out], "val": numbers[-held_out:]}
        for split, part in splits.items():
            target = folder / split / str(digit)
            target.mkdir(parents=True)
            for number in part:
                _upscaled(digits.images[number]).save(target / f"{number:04d}.png")


def _upscaled(pixels: np.ndarray) -> Image.Image:
    """Return a 32 x 32 grayscale image from levels 0 to 16, (8, 8)."""
    image = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8))
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
