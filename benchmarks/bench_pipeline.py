"""CPU time of our loader and of its peers for an image, on the same files in one run.

python -m benchmarks.bench_pipeline [--pillow-simd DIR] [--data folder tars] [--sizes 224 384]
    [--copies 1 2 3] [--images 512] [--rounds 5] [--workers 2] [--stages] [-o results.csv]

Needs `pip install -c constraints.txt -e ".[bench]"`. Pillow-SIMD has the import name of Pillow, so
it is installed in a separate folder, for `--pillow-simd`:

    CC="cc -mavx2" pip install --no-deps --no-binary pillow-simd --target DIR pillow-simd

Every loader (benchmarks/loaders/, docs/throughput.md) runs in its own process, with the same
images, recipe (`deit`) and number of workers. CPU ms includes all threads and processes. The
loaders alternate in rounds, and a row is their median. Ratios are a peer's CPU ms divided by the
row's: that of timm sample by sample (`ratio`), of timm as its train.py runs it (`ratio_train`), of
the fastest loader built from torch's own functions (`ratio_expert`). At the end, the peers' CPU
time divided by that of `exact` is printed, as a table for the docs.

`--stages` measures the stages of the first case instead of all cases: stages are cumulative, and
the cost of a stage is the difference to the stage before.
"""

import argparse
import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import distributions, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.loaders.case import BATCH, Case
from benchmarks.loaders.images import write_images, write_shards
from benchmarks.loaders.process import LoaderProcess
from benchmarks.measuring import harness
from benchmarks.measuring.harness import Row

OURS = "fastdeit exact"
TIMM, TRAIN, SIMD = "timm per sample", "timm train.py", "timm train.py, Pillow-SIMD"
EXPERT, ONCE = "torchvision v2, simplejpeg", "torchvision v2, simplejpeg, decoded once"
LOADERS = {
    OURS: "ours:start_exact",
    "fastdeit native": "ours:start_native",
    TIMM: "timms:start_per_sample",
    TRAIN: "timms:start_prefetcher",
    SIMD: "timms:start_prefetcher",
    EXPERT: "expert:start_each_copy",
    ONCE: "expert:start_decoded_once",
    "DALI auto_aug": "auto_aug:start_auto_aug",
}
RATIOS = {"ratio": (TIMM,), "ratio_train": (TRAIN,), "ratio_expert": (EXPERT, ONCE)}
# stage -> the loaders that are measured, and the case's fields
PARTS = (OURS, "fastdeit native", TIMM, TRAIN, EXPERT)
STAGES: dict[str, tuple[dict[str, str], dict[str, bool]]] = {
    "read": ({"DALI": "ours:start_reading"}, {}),
    "+ decode the crop": ({"DALI, decoding": "ours:start_decoding"}, {}),
    "+ resize, flip, normalise": ({}, {"augments": False, "erases": False}),
    "+ RandAugment": ({}, {"erases": False}),
    "+ RandomErasing = all": ({}, {}),
}
WHOLE = "+ RandomErasing = all"
SHOWN = "{data:6} {size} x{copies} {stage:26}{impl:42}{cpu_ms:>6} CPU ms"
DISTINCT = 128  # images; the others are further names of them
Measured = dict[str, list[float]]
"""The CPU milliseconds for an image in each round, by loader."""


class Processes:
    """The loaders' processes, each started when it is first used; `close` ends them."""

    def __init__(self, pillow_simd: Path | None) -> None:
        self._paths = {SIMD: (pillow_simd,)} if pillow_simd else {}
        self._running: dict[str, LoaderProcess] = {}

    def measure(self, loaders: dict[str, str], case: Case, images: int, rounds: int) -> Measured:
        """Measure the loaders in alternating rounds."""
        found: Measured = {name: [] for name in loaders}
        for _ in range(rounds):
            for name, start in loaders.items():
                found[name].append(self._get(name, start).measure(case, images))
        return found

    def _get(self, name: str, start: str) -> LoaderProcess:
        if name not in self._running:
            paths = self._paths.get(name, ())
            self._running[name] = LoaderProcess(f"benchmarks.loaders.{start}", paths)
        return self._running[name]

    def close(self) -> None:
        for process in self._running.values():
            process.close()


def ratio(found: Measured, peers: Sequence[str], name: str) -> float:
    """Return the CPU time of the fastest of `peers` divided by that of `name`, the median of the
    rounds; NaN without them."""
    ratios = [
        statistics.median(p / n for p, n in zip(found[peer], found[name], strict=True))
        for peer in peers
        if peer in found
    ]
    return min(ratios, default=math.nan)


def rows_of(case: Case, stage: str, found: Measured) -> list[Row]:
    """Return a row for each loader, and print it."""
    rows: list[Row] = []
    where: Row = {"data": case.data, "size": case.size, "copies": case.copies, "stage": stage}
    for name, cpu_ms in found.items():
        row = {**where, "impl": name, "cpu_ms": f"{statistics.median(cpu_ms):.3f}"}
        for column, peers in RATIOS.items():
            value = ratio(found, peers, name)
            row[column] = "" if math.isnan(value) else f"{value:.2f}"
        rows.append(row)
        print(SHOWN.format(**row), flush=True)
    return rows


def table(found: dict[Case, Measured]) -> str:
    """Return a table in Markdown, one row a case: the CPU time of every loader divided by that of
    `OURS`; a cell is empty if a loader was not measured."""
    present = set().union(*found.values()) - {OURS}
    peers = [name for name in LOADERS if name in present]
    lines = [["images", *peers], ["---"] * (1 + len(peers))]
    for case, measured in found.items():
        copies = f"{case.copies} cop{'y' if case.copies == 1 else 'ies'}"
        ratios = [_cell(measured, peer) for peer in peers]
        lines.append([f"{case.data}, {case.size} px, {copies}", *ratios])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(found: Measured, peer: str) -> str:
    return f"{ratio(found, (peer,), OURS):.1f}" if peer in found else ""


def loaders_of(case: Case, pillow_simd: Path | None) -> dict[str, str]:
    """Return the loaders of a case; with one copy, all decode an image once."""
    absent = {SIMD} if pillow_simd is None else set()
    absent |= {ONCE} if case.copies == 1 else set()
    return {name: start for name, start in LOADERS.items() if name not in absent}


def compare_cases(
    processes: Processes, cases: Sequence[Case], args: argparse.Namespace
) -> list[Row]:
    """Measure every loader on every case; return the rows and print the table."""
    rows: list[Row] = []
    found = {}
    for case in cases:
        loaders = loaders_of(case, args.pillow_simd)
        found[case] = processes.measure(loaders, case, args.images, args.rounds)
        rows += rows_of(case, WHOLE, found[case])
    print(f"\nCPU time divided by that of {OURS}:\n\n{table(found)}")
    return rows


def compare_stages(processes: Processes, case: Case, args: argparse.Namespace) -> list[Row]:
    """Measure the stages of the path, for the first case."""
    rows: list[Row] = []
    for stage, (loaders, fields) in STAGES.items():
        loaders = loaders or {name: LOADERS[name] for name in PARTS}
        part = dataclasses.replace(case, **fields)  # type: ignore[arg-type]
        rows += rows_of(part, stage, processes.measure(loaders, part, args.images, args.rounds))
    return rows


def append(output: Path, rows: list[Row], **conditions: float | str) -> None:
    """Append rows to the result file with versions and further conditions."""
    stamp = {
        **harness.environment(torch.device("cpu")),
        "timm": version("timm"),
        "pillow": version("pillow"),
    }
    stamp |= conditions
    harness.write_rows(output, [{**stamp, **row} for row in rows], [*stamp, *rows[0]])


def parse_args() -> argparse.Namespace:
    parser = harness.make_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-pipeline.csv")
    parser.add_argument("--data", nargs="+", choices=("folder", "tars"), default=["folder", "tars"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384])
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--images", type=int, default=512, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pillow-simd", type=Path, metavar="DIR", help="folder that holds its PIL")
    parser.add_argument("--stages", action="store_true", help="parts of the first case alone")
    args = parser.parse_args()
    if args.pillow_simd and not (args.pillow_simd / "PIL").is_dir():
        parser.error(f"--pillow-simd must be a folder with a package PIL (got {args.pillow_simd})")
    for name in ("sizes", "copies", "images", "rounds", "workers"):
        value = getattr(args, name)
        if np.min(value) < 1:
            parser.error(f"--{name} must be 1 or more (got {value})")
    missing = [name for name in ("simplejpeg", "webdataset") if not find_spec(name)]
    if missing:
        parser.error(f"install {', '.join(missing)}: see --help")
    return args


def cases_of(args: argparse.Namespace, root: Path) -> list[Case]:
    """Write the images that a measurement needs to `root`; return the cases."""
    # no epoch ends within the rounds: at its end a loader's queues are empty
    links = -(-(args.rounds * (args.images + BATCH) + 8 * BATCH) // DISTINCT)
    write_images(root, DISTINCT, links)
    if "tars" in args.data:
        write_shards(root / "tars", root)
    return [
        Case(str(root), data, DISTINCT * links, size, copies, args.workers)
        for data, size, copies in itertools.product(args.data, args.sizes, args.copies)
    ]


def main() -> None:
    args = parse_args()
    with TemporaryDirectory() as root, closing(Processes(args.pillow_simd)) as processes:
        cases = cases_of(args, Path(root))
        if args.stages:
            rows = compare_stages(processes, cases[0], args)
        else:
            rows = compare_cases(processes, cases, args)
    simd = [found.version for found in distributions(path=[str(args.pillow_simd)])]
    append(
        args.output,
        rows,
        batch=BATCH,
        workers=args.workers,
        torchvision=version("torchvision"),
        simplejpeg=version("simplejpeg"),
        pillow_simd=simd[0] if simd else "",
    )


if __name__ == "__main__":
    main()
