"""The table on disk at the size of ImageNet: the time to load it, its memory, and the time to feed
a row."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fastdeit.data import table
from fastdeit.data.checks.tables import build_table
from fastdeit.data.checks.work import ImageCheck
from fastdeit.data.formats.check import ImageInfo
from fastdeit.data.formats.listing import Listing, stamp
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index

FACTS = ImageInfo(375, 500, "JPEG", "RGB", 1)


def synthetic(root: Path, images: int) -> Path:
    """Make a data set of a thousand classes without its files: only the folders and the table."""
    classes = [f"n{number:08}" for number in range(1000)]
    for name in classes:
        (root / "train" / name).mkdir(parents=True)
    for place in (root, root / "train", *(root / "train").iterdir()):
        os.utime(place, (1e9, 1e9))  # a folder that changed just now is listed again
    labels = np.repeat(np.arange(1000), images // 1000)
    names = [
        f"train/{classes[label]}/{classes[label]}_{row}.JPEG"
        for row, label in enumerate(labels.tolist())
    ]
    same = np.full(len(labels), 100_000)
    stamps = stamp(root, [root / "train", *(root / "train").iterdir()])
    listing = Listing(
        classes=tuple(classes),
        names=pa.array(names).cast(pa.binary()),
        labels=labels,
        num_bytes=same,
        mtimes=same,
        ctimes=same,
        stamps=stamps,
        facts=FACTS,
    )
    source = {"kind": "folder", "paths": ["train"], "classes": classes}
    places = table.table_places(root, "train", None)
    build_table(listing, root, source, places, 1, ImageCheck())
    return root


def check_load(root: Path, images: int, seconds: float, mebibytes: float) -> None:
    started = time.process_time()
    index = build_index(root, "train")
    index.fingerprint()
    taken = time.process_time() - started
    assert len(index) == images and taken < seconds
    arrays: Sequence[np.ndarray] = (index.labels, index.sizes, index.num_bytes)
    assert (sum(array.nbytes for array in arrays) + index.names.nbytes) / 2**20 < mebibytes


def test_a_large_table_loads_fast(tmp_path: Path) -> None:
    check_load(synthetic(tmp_path, 100_000), 100_000, seconds=1, mebibytes=8)


@pytest.mark.slow
def test_the_table_of_imagenet_loads_fast(tmp_path: Path) -> None:
    root = synthetic(tmp_path, 1_281_000)
    check_load(root, 1_281_000, seconds=2, mebibytes=130)
    code = (
        f"from pathlib import Path; from fastdeit.data.indexing import build_index;"
        f"build_index(Path({str(root)!r}), 'train').fingerprint();"
        f"print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    peak_kib = int(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
    )
    assert peak_kib < 500 * 1024


def test_encoding_a_row_takes_microseconds(tmp_path: Path) -> None:
    index = build_index(synthetic(tmp_path, 10_000), "train")
    rows = np.random.default_rng(0).integers(0, len(index), 256)
    index.encoded(rows)
    fastest = min(timed(index, rows) for _ in range(20))
    assert fastest / len(rows) < 10e-6  # 2e-6 on a quiet core


def timed(index: Index, rows: np.ndarray) -> float:
    started = time.process_time()
    index.encoded(rows)
    return time.process_time() - started
