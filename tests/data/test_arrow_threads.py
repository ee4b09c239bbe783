"""Arrow starts no thread of its own: one that still works aborts a process at its end."""

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdeit.data.indexing import build_index
from tests.support.images import write_shapes
from tests.support.launching import ROOT
from tests.support.parquet import write_hub_folder

READ_ALL = """
import os, sys
from pathlib import Path
import numpy as np, pyarrow.parquet as pq
from fastdeit.data.counts import read_counts
from fastdeit.data.indexing import build_index
from fastdeit.data.snapshot import keep_images, reconcile
from fastdeit.report.predictions import RecordedPredictions, read_predictions, write_predictions

root = Path(sys.argv[1])
before = len(os.listdir("/proc/self/task"))
index = build_index(root / "folder", "train")
assert read_counts(root / "folder", "train").images == len(index)
keep_images(index, root / "images.parquet")
assert reconcile(index, root / "images.parquet") == (index, {})
assert build_index(root / "folder", "list.parquet", workers=1).labels.size
assert build_index(root / "hub", "train", workers=1).read(0)
rows = np.arange(3, dtype=np.int32)
write_predictions(root / "p", RecordedPredictions(1, "x", ("a", "b"), rows, rows % 2, {}))
assert read_predictions(root / "p").step == 1
if len(sys.argv) > 2:
    pq.ParquetFile(root / "images.parquet").read()
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("arrow")
    folder = write_shapes(root / "folder")
    for split in ("train", "val"):
        shutil.rmtree(folder / split / "stripe")  # the other form has two classes
    index = build_index(folder, "train")
    names = [name.decode() for name in index.names.to_pylist()]
    table = pa.table({"image_path": names, "target": index.labels})
    pq.write_table(table, folder / "list.parquet")
    write_hub_folder(root / "hub", folder)
    return root


def count_new_threads(*words: str | Path) -> int:
    """Return how many threads more than at its start a process has that has read everything."""
    command = [sys.executable, "-c", READ_ALL, *map(str, words)]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_reading_starts_no_thread(root: Path) -> None:
    assert count_new_threads(root) == 0
    assert count_new_threads(root, "with threads of Arrow") > 0
