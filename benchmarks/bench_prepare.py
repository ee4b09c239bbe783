"""CPU time of preparing a data set: its index, and packing it, from each form in which ImageNet is
published.

python -m benchmarks.bench_prepare [--images 512] [--rounds 3] [-o FILE.csv]

The images are 500 x 375 JPEG files of 1/f noise, read from the page cache by one thread, and
written to a folder for temporary files. A row is the median of rounds in which the forms alternate.
"""

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.bench_pipeline import append
from benchmarks.loaders.images import write_images
from benchmarks.measuring import harness
from benchmarks.measuring.harness import Row
from fastdeit.data.checks.work import CheckKind
from fastdeit.data.indexing import build_index
from fastdeit.data.packing import trial
from fastdeit.data.packing.encode import Encoding
from fastdeit.data.packing.job import Packing, ShardSize
from fastdeit.data.packing.pack import pack

DISTINCT = 128  # images; the other files are further names of these
COPY = Encoding(copy=True)
SHARDS = ShardSize(images=1000)
trial.IMAGES = 4  # for a million images the trial takes a negligible share of the time


def write_parquet(folder: Path, images: Path) -> None:
    """Write the images of class folders as Hugging Face's `datasets` does, in one file."""
    files = sorted(images.rglob("*.*"))
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    table = pa.table({"image": rows, "label": [0] * len(rows)})
    folder.mkdir()
    pq.write_table(table, folder / "train-00000-of-00001.parquet", row_group_size=100)


def index(root: Path, check: CheckKind) -> None:
    """Index a data set as if it were the first time."""
    shutil.rmtree(root / ".fastdeit", ignore_errors=True)
    build_index(root, "train", workers=1, check=check)


def write_packed(root: Path, output: Path, encoding: Encoding) -> None:
    """Pack an indexed data set into a new folder of shards."""
    source = {"train": build_index(root, "train", workers=1)}
    shutil.rmtree(output, ignore_errors=True)
    pack(Packing(source | {"val": source["train"]}, output, encoding, "shards", SHARDS, "skip", 1))


def list_works(root: Path) -> dict[tuple[str, str], Callable[[], None]]:
    """Return the functions to measure, by form of the data set and work."""
    works: dict[tuple[str, str], Callable[[], None]] = {}
    out = root / "out"
    for form in ("image files", "shards", "Parquet files"):
        home = root / form
        if form != "Parquet files":  # whose images are always decoded
            works[form, "index, headers"] = partial(index, home, "headers")
        works[form, "index, decoded"] = partial(index, home, "decode")
        works[form, "packing, copy"] = partial(write_packed, home, out, COPY)
        works[form, "packing, 288 px"] = partial(write_packed, home, out, Encoding())
    return works


def compare(root: Path, args: argparse.Namespace) -> list[Row]:
    """Measure all works; return and print a row for each."""
    write_images(root / "image files", DISTINCT, links=args.images // DISTINCT)
    write_parquet(root / "Parquet files", root / "image files" / "train")
    write_packed(root / "image files", root / "shards", COPY)
    works = list_works(root)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    for _ in range(args.rounds):
        for key, work in works.items():
            started = time.process_time()
            work()
            seconds[key].append(time.process_time() - started)
    rows: list[Row] = []
    for (form, work_name), values in seconds.items():
        images = args.images * (1 if work_name.startswith("index") else 2)
        hours = statistics.median(values) / images * 1e6 / 3600
        rows.append({"form": form, "work": work_name, "core_hours_a_million": f"{hours:.2f}"})
        print("{form:15} {work:18} {core_hours_a_million}".format(**rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-prepare.csv")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        rows = compare(Path(folder), args)
    append(args.output, rows, images=args.images)


if __name__ == "__main__":
    main()
