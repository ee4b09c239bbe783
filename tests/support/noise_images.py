"""A small data set of noise and pipeline options for it, for the tests of the loaders."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE, IMAGES = 16, 150


def write_noise(root: Path) -> Index:
    """Write 150 small images of 3 classes; return their index."""
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        height, width = rng.integers(16, 40, 2)
        path = root / f"train/{i * 3 // IMAGES}/{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return build_index(root, "train")


def split_options(changes: dict[str, Any]) -> tuple[PipelineOptions, dict[str, Any]]:
    """Split changes into options of the pipeline and arguments of the loader."""
    names = {field.name for field in dataclasses.fields(PipelineOptions)} - {"batch_size"}
    ours = {name: value for name, value in changes.items() if name not in names}
    return PipelineOptions(
        MEAN, STD, **{name: changes[name] for name in changes.keys() & names}
    ), ours
