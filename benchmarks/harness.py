"""What every kernel benchmark shares: the gate on correctness, the clock, the machine's stamp, the
row in the results.

A benchmark gates its implementations against the reference, measures each with `measure`, and
appends the rows to results/<device>.csv, which is never rewritten. On a GPU the clock is Triton's
(warm-up outside, L2 flushed between calls); on the CPU it is the wall clock of single calls, which
tells little on a shared machine and says so by `gpu`.
"""

import argparse
import csv
import datetime
import itertools
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import triton
from torch._functorch import config as functorch_config

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "dali", "deepspeed")
MEASURED = ("ms_p20", "ms_p50", "ms_p80", "gbps", "pct_of_copy", "images_per_s", "peak_mib")
COUNTED = ("launches", "host_ms", "waits", "idle_pct")
"""Of a whole step alone, empty elsewhere: see bench_engine."""
COLUMNS = (
    "date",
    "commit",
    "gpu",
    *PACKAGES,
    "bench",
    "impl",
    "mode",
    "shape",
    "dtype",
    *MEASURED,
    *COUNTED,
)
Row = dict[str, str | float]


@dataclass(frozen=True)
class Launch:
    """A call of an op's launcher that `resources.py` compiles without a GPU; what it asks of the
    kernels it names."""

    name: str
    run: Callable[[], object]
    wgmma: tuple[str, ...] = ()
    """Kernels whose matrix products must all be Hopper's warp-group instructions."""
    streams: tuple[str, ...] = ()
    """Kernels that only move memory: their loads and stores must be 128 bits wide."""


def gate(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """Stop the benchmark with assert_close's report when an implementation is not the reference's
    equal."""
    torch.testing.assert_close(
        actual, expected, msg=lambda report: f"{name} is not the reference: {report}"
    )


def quantiles_ms(
    run: Callable[[], object], device: torch.device, repeat_ms: int = 200
) -> tuple[float, float, float]:
    """Milliseconds of one call at 20, 50 and 80 %, over at least repeat_ms of calls after a
    warm-up."""
    if device.type == "cuda":
        return tuple(triton.testing.do_bench(run, rep=repeat_ms, quantiles=[0.2, 0.5, 0.8]))
    run()
    times: list[float] = []
    while sum(times) < repeat_ms or len(times) < 5:
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    p20, _, _, p80 = statistics.quantiles(times, n=5)
    return p20, statistics.median(times), p80


def copy_gbps(device: torch.device) -> float:
    """The device's copy bandwidth, read and write together, in GB/s: what a streaming kernel can
    reach."""
    source = torch.ones(
        2**28 if device.type == "cuda" else 2**24, dtype=torch.float32, device=device
    )
    target = torch.empty_like(source)
    return 2 * source.nbytes / quantiles_ms(lambda: target.copy_(source), device)[1] / 1e6


def peak_mib(run: Callable[[], object], device: torch.device) -> float:
    """Memory that one call allocates at its peak beyond what was there; 0 on the CPU, which keeps
    no count."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def measure(
    run: Callable[[], object], device: torch.device, *, images: int, nbytes: int, copy: float
) -> Row:
    """The measured columns of one implementation; nbytes: the least a call must read and write,
    copy: `copy_gbps`."""
    p20, p50, p80 = quantiles_ms(run, device)
    gbps = nbytes / p50 / 1e6
    found = (p20, p50, p80, gbps, 100 * gbps / copy, 1e3 * images / p50, peak_mib(run, device))
    return dict(zip(MEASURED, (float(f"{value:.4g}") for value in found), strict=True))


def device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu-{platform.machine()}"
    )


def commit() -> str:
    """Short hash of the checkout, with +dirty when the tree differs; outside of one
    $FASTDEIT_COMMIT, or "unknown"."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return os.environ.get("FASTDEIT_COMMIT", "unknown")
    return head.stdout.strip() + ("+dirty" if changes.stdout.strip() else "")


def installed(package: str) -> str:
    """The version of a package, "" if it is not there. DALI has a name a CUDA version, so it is
    asked itself."""
    try:
        return import_module("nvidia.dali").__version__ if package == "dali" else version(package)
    except (ImportError, OSError):  # also a metadata file or a library that is not there
        return ""


def environment(device: torch.device) -> Row:
    """The columns that say where and with what a row was measured; a package that is not there
    stays empty."""
    stamp: Row = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "gpu": device_name(device),
    }
    return stamp | {package: installed(package) for package in PACKAGES}


def append(rows: Iterable[Row], device: torch.device, folder: Path = RESULTS) -> Path:
    """Append rows to the device's file in the folder, with a header when it is new; returns the
    file."""
    path = folder / (re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()) + ".csv")
    write_rows(path, rows, COLUMNS)
    return path


def write_rows(path: Path, rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Append rows to a CSV file, with a header when it is new.

    A file keeps its columns; those it lacks are put behind them, and are empty in its old rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = _widen(path, columns) if path.exists() and path.stat().st_size else columns
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if not file.tell():
            writer.writeheader()
        writer.writerows(rows)


def _widen(path: Path, columns: Sequence[str]) -> Sequence[str]:
    """Give a file the columns that it lacks, at once or not at all; its columns then."""
    with path.open(newline="", encoding="utf-8") as file:
        old = csv.DictReader(file)
        rows, header = list(old), list(old.fieldnames or ())
    wide = list(dict.fromkeys([*header, *columns]))
    if wide != header:
        beside = path.with_suffix(".new")
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, wide)
            writer.writeheader()
            writer.writerows(rows)
        beside.replace(path)
    return wide


def run_benchmark(
    doc: str | None, cases: Mapping[str, Iterable[tuple[Any, ...]]], bench: Callable[..., list[Row]]
) -> None:
    """The command line of a bench_<op>.py: measure every case, append its rows at once, print all
    of them at the end.

    doc: the module's docstring. cases: by the device's type, the most telling first, what bench
    takes before device, stamp and copy bandwidth.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument(
        "--cases", type=int, help="how many of the cases, the first ones; default: all"
    )
    asked = parser.parse_args()
    functorch_config.donated_buffer = False  # a compiled backward is called more than once
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stamp, copy, rows = environment(device), copy_gbps(device), []
    for case in itertools.islice(cases[device.type], asked.cases):
        new = bench(*case, device, stamp, copy)
        rows += new
        print(f"{len(rows)} rows in {append(new, device, asked.out)}", flush=True)
    print(f"copy {copy:.0f} GB/s")
    show(rows)


def show(rows: Iterable[Row]) -> None:
    """Print the rows as one short table."""
    columns = (
        "bench",
        "mode",
        "shape",
        "dtype",
        "impl",
        "ms_p50",
        "gbps",
        "pct_of_copy",
        "images_per_s",
        "peak_mib",
    )
    lines = [columns, *(tuple(str(row[column]) for column in columns) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
