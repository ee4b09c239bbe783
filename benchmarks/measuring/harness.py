"""The shared part of the benchmarks: correctness check, timing, environment columns, result files.

A benchmark compares its implementations with the reference, measures each with `measure`, and
appends rows to results/<device>.csv, which is never rewritten. On a GPU, Triton's `do_bench` takes
the times (warm-up excluded, L2 flushed between calls). On a CPU they are wall-clock times of single
calls, which mean little on a shared machine; the column `gpu` then names the CPU.
"""

import argparse
import csv
import datetime
import itertools
import os
import platform
import re
import statistics
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

from fastdeit.distributed.versions import find_commit

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "triton", "dali", "deepspeed")
MEASURED = ("ms_p20", "ms_p50", "ms_p80", "gbps", "pct_of_copy", "images_per_s", "peak_mib")
COUNTED = ("launches", "host_ms", "waits", "idle_pct")
"""The columns of a whole step, empty in other rows: see bench_engine."""
COLUMNS = (
    "date",
    "commit",
    "gpu",
    "cpu",
    *PACKAGES,
    "bench",
    "impl",
    "mode",
    "shape",
    "dtype",
    *MEASURED,
    *COUNTED,
)
H100_BYTES = 2.8e12
"""The bytes a second that a streaming kernel reaches on an H100; for estimates without one."""
H100_CLOCKS = 132 * 1.755e9
"""The clocks a second of all SMs of an H100, each of which issues the instructions of 128
threads."""
Row = dict[str, str | float]


@dataclass(frozen=True)
class Launch:
    """A call of an op's launcher that `resources.py` compiles without a GPU, and the conditions
    that its kernels must meet."""

    name: str
    run: Callable[[], object]
    wgmma: tuple[str, ...] = ()
    """The kernels whose matrix products must all be Hopper's warp-group instructions."""
    streams: tuple[str, ...] = ()
    """The kernels that only move data, whose loads and stores must be 128 bits wide."""
    oldest: int = 80
    """The oldest architecture that the launch is for."""


def gate(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """Raise AssertionError with the report of assert_close unless the tensors are close."""

    def message(report: str) -> str:
        return f"{name} differs from the reference: {report}"

    torch.testing.assert_close(actual, expected, msg=message)


def quantiles_ms(
    run: Callable[[], object], device: torch.device, repeat_ms: int = 200
) -> tuple[float, float, float]:
    """Return the 20, 50 and 80 % quantiles of a call's milliseconds.

    Calls are repeated for at least repeat_ms after a warm-up.
    """
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
    """Measure the copy bandwidth in GB/s, reads plus writes: the limit of a streaming kernel."""
    size = 2**28 if device.type == "cuda" else 2**24
    source = torch.ones(size, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / quantiles_ms(lambda: target.copy_(source), device)[1] / 1e6


def peak_mib(run: Callable[[], object], device: torch.device) -> float:
    """Return the peak memory of one call beyond what was allocated before; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def measure(
    run: Callable[[], object], device: torch.device, *, images: int, nbytes: int, copy: float
) -> Row:
    """Return the measured columns of one implementation.

    nbytes: the least that a call must read and write; copy: bandwidth of `copy_gbps`.
    """
    quantiles = quantiles_ms(run, device)
    peak = peak_mib(run, device)
    return measured_columns(quantiles, images=images, nbytes=nbytes, copy=copy, peak=peak)


def measured_columns(
    quantiles: Sequence[float], *, images: int, nbytes: int, copy: float, peak: float = 0.0
) -> Row:
    """Return the columns of a call whose milliseconds have these 20, 50 and 80 % quantiles; peak:
    MiB."""
    gbps = nbytes / quantiles[1] / 1e6
    rates = (gbps, 100 * gbps / copy, 1e3 * images / quantiles[1], peak)
    found = zip(MEASURED, (*quantiles, *rates), strict=True)
    return {name: float(f"{value:.4g}") for name, value in found}


def case_columns(bench: str, mode: str, shape: str, dtype: str, impl: str) -> Row:
    """Return the columns that identify a row among those of one environment."""
    return {"bench": bench, "mode": mode, "shape": shape, "dtype": dtype, "impl": impl}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu-{platform.machine()}"


def commit() -> str:
    """Return the short hash of the checkout, with +dirty when the tree differs.

    Without git or a checkout: $FASTDEIT_COMMIT, or "unknown".
    """
    return find_commit() or os.environ.get("FASTDEIT_COMMIT", "unknown")


def installed(package: str) -> str:
    """Return the version of a package, "" if it is missing."""
    try:
        if package == "dali":  # its wheel has another name for each CUDA version
            return import_module("nvidia.dali").__version__
        return version(package)
    except (ImportError, OSError):  # OSError: a metadata file or a library is missing
        return ""


def environment(device: torch.device) -> Row:
    """Return the columns of date, commit, device, CPU and versions; that of a missing package is
    empty."""
    stamp: Row = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "gpu": device_name(device),
        "cpu": cpu_name(),
    }
    return stamp | {package: installed(package) for package in PACKAGES}


def cpu_name() -> str:
    """Return the model of the CPU and the number of its cores that this process may use."""
    cores = len(os.sched_getaffinity(0))
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return f"{line.split(': ')[1]} x{cores}"
    return f"{platform.machine()} x{cores}"


def device_slug(device: torch.device) -> str:
    """Return the device's name in a form for file names."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower())


def append(rows: Iterable[Row], device: torch.device, folder: Path = RESULTS) -> Path:
    """Append rows to the device's file in the folder, with a header when it is new; return the
    file."""
    path = folder / f"{device_slug(device)}.csv"
    write_rows(path, rows, COLUMNS)
    return path


def write_rows(path: Path, rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Append rows to a CSV file, with a header when it is new.

    The columns of an existing file remain; missing ones are added after them, empty in old rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = _widen(path, columns) if path.exists() and path.stat().st_size else columns
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if not file.tell():
            writer.writeheader()
        writer.writerows(rows)


def _widen(path: Path, columns: Sequence[str]) -> Sequence[str]:
    """Add missing columns to a file, in one atomic replacement; return its columns."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        header = list(reader.fieldnames or ())
    wide = list(dict.fromkeys([*header, *columns]))
    if wide != header:
        beside = path.with_suffix(".new")
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, wide)
            writer.writeheader()
            writer.writerows(rows)
        beside.replace(path)
    return wide


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of a benchmark's command line, whose help is the module's docstring."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add --out, the folder of the result files."""
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")


def run_benchmark(
    doc: str | None, cases: Mapping[str, Iterable[tuple[Any, ...]]], bench: Callable[..., list[Row]]
) -> None:
    """Run the command line of a bench_<op>.py: measure every case and append its rows at once.

    doc: the module's docstring. cases: the first arguments of `bench`, by device type, the most
    important case first; device, environment columns and copy bandwidth follow them.
    """
    parser = make_parser(doc)
    add_out(parser)
    parser.add_argument("--cases", type=int, help="number of cases, from the first; default: all")
    args = parser.parse_args()
    functorch_config.donated_buffer = False  # a compiled backward is called more than once
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stamp = environment(device)
    copy = copy_gbps(device)
    rows = []
    for case in itertools.islice(cases[device.type], args.cases):
        new = bench(*case, device, stamp, copy)
        rows += new
        print(f"{len(rows)} rows in {append(new, device, args.out)}", flush=True)
    print(f"copy {copy:.0f} GB/s")
    show(rows)


def show(rows: Iterable[Row]) -> None:
    """Print the rows as one short table."""
    measured = ("ms_p50", "gbps", "pct_of_copy", "images_per_s", "peak_mib")
    columns = ("bench", "mode", "shape", "dtype", "impl", *measured)
    lines = [columns, *(tuple(str(row[column]) for column in columns) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def show_spread(values: Sequence[float]) -> str:
    """Return the mean, with the standard deviation if there are several values."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean
