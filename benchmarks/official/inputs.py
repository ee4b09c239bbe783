"""The images and the teacher that both trainers read."""

import shutil
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from fastdeit.data.formats.idx import idx_files, list_idx, read_images

SIDE = 28


def write_images(source: Path, folder: Path, counts: dict[str, int]) -> None:
    """Write the first images of each split of IDX files as PNG files in folders of classes.

    counts: the number of images by split. Existing images remain. Raises ValueError if the source
    has no IDX files of a split, or too few images, or if the folder has more than `counts`.
    """
    for split, count in counts.items():
        files = idx_files(source, split)
        if files is None:
            raise ValueError(f"--source must have IDX files of {split} (got {source})")
        labels = list_idx(source, *files, None).labels
        if not 0 < count <= len(labels):
            raise ValueError(f"images of {split} must be 1 to {len(labels)} (got {count})")
        pixels = read_images(files[0])[:count, -SIDE * SIDE :].reshape(-1, SIDE, SIDE)
        for number, image in enumerate(pixels):
            path = folder / split / str(labels[number]) / f"{number:05}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
        present = sum(1 for _ in (folder / split).rglob("*.png"))
        if present != count:
            raise ValueError(f"{folder}: has {present} images of {split}, not {count}; remove it")


def write_teacher(run: Path, file: Path) -> None:
    """Write a run's weights in the form of deit's checkpoints, from which both trainers load."""
    beside = file.with_suffix(".new")
    torch.save({"model": load_file(run / "model.safetensors")}, beside)
    shutil.move(beside, file)
