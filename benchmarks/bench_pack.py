"""CPU time of our loader for an image of a packed data set, beside that of its source, in one run.

python -m benchmarks.bench_pack [--size 224] [--images 512] [--rounds 5] [--workers 2] [-o FILE.csv]

The source is 500 x 375 JPEG files of 1/f noise, whose colours are harder to compress than those of
photographs. Ratios are the packed data set's divided by the source's, the median of rounds in which
they alternate: of bytes, of DALI reading and decoding the planned crop, and of the whole path of
the backend `exact`. The PSNR is that which `fastdeit pack` reports.
"""

import argparse
import statistics
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.bench_pipeline import Processes, append
from benchmarks.loaders.case import BATCH, Case
from benchmarks.loaders.images import write_images
from benchmarks.measuring import harness
from benchmarks.measuring.harness import Row
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.data.packing.encode import Encoding
from fastdeit.data.packing.job import Packing, ShardSize
from fastdeit.data.packing.pack import Summary, pack

ENCODINGS = {
    "288 px, 90, 4:2:0": Encoding(),
    "288 px, 90, 4:4:4": Encoding(subsampling="4:4:4"),
    "288 px, 95, 4:2:0": Encoding(quality=95),
    "copy": Encoding(copy=True),
}
STAGES = {"decode_ratio": "ours:start_decoding", "exact_ratio": "ours:start_exact"}
SHOWN = "{packed:20} bytes {bytes_ratio} decode {decode_ratio} exact {exact_ratio} PSNR {psnr_db}"
DISTINCT = 128  # images; the other files are further names of these


def pack_folder(index: Index, output: Path, encoding: Encoding) -> Summary:
    """Write a packed folder."""
    source = {"train": index}
    return pack(Packing(source, output, encoding, "folder", ShardSize(images=1000), "skip", 2))


def compare(root: Path, args: argparse.Namespace) -> list[Row]:
    """Measure every encoding beside the source; return and print a row for each."""
    write_images(root / "source", DISTINCT, links=-(-2 * args.images // DISTINCT))
    index = build_index(root / "source", "train")
    rows: list[Row] = []
    summaries = {}
    cases = {"source": Case(str(root / "source"), size=args.size, workers=args.workers)}
    for number, (name, encoding) in enumerate(ENCODINGS.items()):
        summaries[name] = pack_folder(index, root / str(number), encoding)
        cases[name] = Case(str(root / str(number)), size=args.size, workers=args.workers)
    with closing(Processes(None)) as processes:
        for name, summary in summaries.items():
            row: Row = {"packed": name, "size": args.size}
            packed = sum(file.bytes for file in summary.manifest.files if file.split)
            row["bytes_ratio"] = f"{packed / int(index.num_bytes.sum()):.2f}"
            for column, start in STAGES.items():
                row[column] = f"{measure(processes, cases, name, start, args):.2f}"
            row["psnr_db"] = "/".join(map(str, summary.trial.psnr_db)) or "equal"
            print(SHOWN.format(**row), flush=True)
            rows.append(row)
    return rows


def measure(
    processes: Processes, cases: dict[str, Case], name: str, start: str, args: argparse.Namespace
) -> float:
    """Return the CPU time of a packed case divided by that of the source."""
    ratios = []
    for _ in range(args.rounds):
        ms = [
            processes.measure({start: start}, cases[case], args.images, 1)[start][0]
            for case in (name, "source")
        ]
        ratios.append(ms[0] / ms[1])
    return statistics.median(ratios)


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-pack.csv")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=512, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        rows = compare(Path(folder), args)
    append(args.output, rows, batch=BATCH, workers=args.workers)


if __name__ == "__main__":
    main()
