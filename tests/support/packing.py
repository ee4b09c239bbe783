"""Packed data sets: the job of a small one, and what is in it."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.data.packing.encode import Encoding
from fastdeit.data.packing.job import Packing, ShardSize

COPY = Encoding(copy=True)


def make_job(root: Path, output: Path, **changes: Any) -> Packing:
    train = build_index(root, "train", bad_images="skip")
    val = build_index(root, "val", classes=train.classes, bad_images="skip")
    job = Packing(
        source={"train": train, "val": val},
        output=output,
        encoding=Encoding(resize=32),
        layout="shards",
        shard_size=ShardSize(images=7),
        bad_images="skip",
        workers=2,
    )
    return dataclasses.replace(job, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def pixels(index: Index, row: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(index.read(row))).convert("RGB"))
